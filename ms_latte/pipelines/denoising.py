# SPDX-License-Identifier: Apache-2.0
"""What both pipelines share: noise of each sample from its own seed, the loop over the steps, decoding."""

import mindspore as ms
import numpy as np

from ms_latte.video_io import to_uint8


class Noise:
    """Standard normal numbers for a batch, each sample from its own generator, so that a sample is the same alone
    and in any batch.

    seeds: one whole number a sample; shape: of one sample. `initial` comes first, then one `step` after the other.
    """

    def __init__(self, seeds, shape):
        self.generators = [np.random.default_rng(seed) for seed in seeds]
        self.shape = tuple(shape)

    def draw(self):
        """(N, *shape), float32."""
        drawn = [one.standard_normal(self.shape, dtype=np.float32) for one in self.generators]
        return np.stack(drawn)


def denoise(predict, sampler, noise, initial=None, axes=None, on_step=None):
    """Run all steps of `sampler` from noise; returns the latents, a tensor.

    predict(x, t (N,)) -> model output; noise: Noise of the batch; initial: unit noise (N, *shape) of the caller
    instead of drawn; axes: order of axes from the shape of `noise` to that of the model, N first; on_step(i) is
    called after each step. Numbers are not read back between steps: a device may run ahead of the host.
    """
    order = (
        (lambda array: array) if axes is None else (lambda array: np.ascontiguousarray(array.transpose(axes)))
    )
    drawn = noise.draw()  # also with `initial`, so that the noise of the steps stays the same
    start = drawn if initial is None else np.asarray(initial, np.float32)
    x = ms.Tensor(order(start) * np.float32(sampler.init_scale))
    times = [ms.Tensor(np.full(len(start), t, time_type(sampler.timesteps))) for t in sampler.timesteps]
    history = ()
    for i, t in enumerate(times):
        output = predict(sampler.scale_input(x, i), t)
        fresh = ms.Tensor(order(noise.draw())) if sampler.needs_noise else None
        x, history = sampler.step(i, x, output, noise=fresh, history=history)
        if on_step:
            on_step(i)
    return x


def in_batches(some, samples, batch_size):
    """some(slice) -> tensor, for `samples` rows in groups of at most `batch_size`; float32 numpy, all rows."""
    groups = [slice(i, min(i + batch_size, samples)) for i in range(0, samples, batch_size)]
    return np.concatenate([some(rows).astype(ms.float32).asnumpy() for rows in groups])


def time_type(timesteps):
    """int32 for whole timesteps, float32 for others (some solvers ask between two of them)."""
    return np.int32 if np.issubdtype(np.asarray(timesteps).dtype, np.integer) else np.float32


def check_noise(noise, shape):
    """Raise ValueError if the caller's noise has another shape than the latents."""
    if noise is not None and np.shape(noise) != shape:
        raise ValueError(f"noise is {np.shape(noise)}, expected {shape} (N, F, C, h, w)")


def decode(vae, latents, scaling_factor=None, chunk=None):
    """Latents (N, F, C, h, w), numpy -> frames, uint8 (N, F, H, W, 3), one sample after the other.

    scaling_factor: the VAE's own by default; chunk: frames at once,
    the VAE's default if None. Raises VideoError if the result holds NaN.
    """
    videos = []
    for sample in np.asarray(latents, np.float32):
        if scaling_factor is not None:  # the VAE divides by its own
            sample = sample * np.float32(vae.scaling_factor / scaling_factor)
        pixels = vae.decode_video(ms.Tensor(sample[None]), **({} if chunk is None else {"chunk": chunk}))
        videos.append(to_uint8(pixels.astype(ms.float32).asnumpy()[0]))
    return np.stack(videos)
