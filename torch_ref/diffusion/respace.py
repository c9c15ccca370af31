# SPDX-License-Identifier: Apache-2.0
"""Which of the trained timesteps a sampler visits, in numpy.

Sources: OpenAI's `respace.py` as used by Vchitect/Latte `diffusion/` (specifications as words); the timestep
spacings of diffusers' schedulers (Lin et al. 2023, table 2).
"""

import numpy as np

SPACINGS = ("leading", "trailing", "linspace")


def space_timesteps(num_timesteps, spec):
    """Timesteps kept of 0 .. num_timesteps-1 by a specification. Returns them ascending, int64.

    spec: "" all of them; "250" that many from first to last, with a fractional stride; "10,15,20" the same in each of
    as many equal sections; "ddim50" that many from 0, with the first integer stride that gives this number.
    Raises ValueError for another word, or a number that does not fit.
    """
    if spec == "":
        return np.arange(num_timesteps)
    if spec.startswith("ddim"):
        return _integer_stride(num_timesteps, _counts(spec.removeprefix("ddim"), spec, 1)[0])
    counts = _counts(spec, spec)
    size, longer = divmod(num_timesteps, len(counts))
    kept, start = [], 0
    for i, count in enumerate(counts):
        length = size + (i < longer)
        if count > length:
            raise ValueError(
                f"timesteps {spec!r}: section {i} has {length} timesteps, {count} were asked for; "
                f"ask for {length} or fewer"
            )
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # The stride is summed up and the sum rounded half to even, as in the original: i * stride rounds otherwise.
        kept.append(start + np.round(np.cumsum([0.0] + [stride] * (count - 1))))
        start += length
    return np.unique(np.concatenate(kept).astype(np.int64))


def respaced_betas(betas, timesteps):
    """Betas of the process that visits only some timesteps. Returns (betas (K,) float64, timestep_map (K,) int64).

    betas: (T,) of the trained process. timesteps: ascending ids into it. The cumulative products at these ids
    are kept; timestep_map gives the id that the model is told. Raises ValueError for ids out of range or order.
    """
    betas, timestep_map = np.asarray(betas, dtype=np.float64), np.asarray(timesteps, dtype=np.int64)
    inside = timestep_map.size and timestep_map.min() >= 0 and timestep_map.max() < len(betas)
    if not inside or (np.diff(timestep_map) <= 0).any():
        raise ValueError(
            f"timesteps must be ascending ids from 0 to {len(betas) - 1}, got {timestep_map.tolist()[:8]}; "
            "space_timesteps gives such a list"
        )
    kept = np.cumprod(1.0 - betas)[timestep_map]
    return 1.0 - kept / np.append(1.0, kept[:-1]), timestep_map


def spaced_grid(num_timesteps, steps, spacing, steps_offset=0):
    """Timesteps by the spacing words of diffusers. Returns (steps,) float64, descending.

    spacing: "leading" multiples of num_timesteps // steps, plus steps_offset; "trailing" backwards from the last
    with a fractional stride, rounded; "linspace" from last to first, not rounded. Raises ValueError for another
    word, a number of steps outside 1 .. num_timesteps, or an offset that leaves the range.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing is {spacing!r}; expected one of {', '.join(SPACINGS)}")
    if not 1 <= steps <= num_timesteps:
        raise ValueError(
            f"{steps} steps were asked for; expected 1 to {num_timesteps}, the trained timesteps"
        )
    if spacing == "linspace":
        return np.linspace(0.0, num_timesteps - 1, steps)[::-1]
    if spacing == "trailing":
        return np.round(np.arange(num_timesteps, 0, -num_timesteps / steps)[:steps]) - 1.0
    grid = np.arange(steps, dtype=np.float64)[::-1] * (num_timesteps // steps) + steps_offset
    if grid[-1] < 0 or grid[0] >= num_timesteps:
        raise ValueError(
            f"steps_offset {steps_offset} gives timesteps {grid[-1]:.0f} to {grid[0]:.0f}, outside 0 to "
            f"{num_timesteps - 1}; published pipelines use 0 or 1"
        )
    return grid


def _integer_stride(num_timesteps, count):
    for stride in range(1, num_timesteps):
        timesteps = np.arange(0, num_timesteps, stride)
        if len(timesteps) == count:
            return timesteps
    raise ValueError(
        f"no integer stride takes {count} of {num_timesteps} timesteps; use {str(count)!r} (fractional stride)"
    )


def _counts(text, spec, most=None):
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words) or (most and len(words) > most):
        raise ValueError(
            f'timesteps {spec!r} cannot be read; expected "" (all), a number such as "250", "ddim50", or numbers '
            'per section such as "10,15,20"'
        )
    return [int(word) for word in words]
