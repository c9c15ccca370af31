# SPDX-License-Identifier: Apache-2.0
"""Cases of `diffusion/respace.py`: numpy in both twins, so they are judged by G1 alone."""

from parity.harness.case import Case

G1 = dict(dtypes=("fp64",))
BETAS = [1e-4, 0.003, 0.02, 0.11, 0.3, 0.75]


def timesteps(spec, name):
    """A specification of 1000 timesteps."""
    return Case("space_timesteps", inputs=dict(num_timesteps=1000, spec=spec), name=name, **G1)


def grid(spacing, steps, **rest):
    """A spacing word of diffusers."""
    return Case(
        "spaced_grid",
        inputs=dict(num_timesteps=1000, steps=steps, spacing=spacing, **rest),
        name=spacing,
        **G1,
    )


CASES = [
    timesteps("", "all"),
    timesteps("250", "fractional"),
    timesteps("17", "ties"),  # the stride is 62.4375, so the sum reaches a half
    timesteps("ddim50", "integer"),
    timesteps("10,15,20", "sections"),
    Case("respaced_betas", inputs=dict(betas=BETAS, timesteps=[0, 2, 3, 5]), **G1),
    grid("leading", 7, steps_offset=1),
    grid("trailing", 7),
    grid("linspace", 7),
]
