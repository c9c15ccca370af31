# SPDX-License-Identifier: Apache-2.0
"""A small VAE for small pictures, fitted in minutes on a CPU: for sets that no published VAE suits."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ms_latte import device
from ms_latte.encoders.vae import AutoencoderKL, sample_posterior
from ms_latte.parts import factor_of
from ms_latte.training.optim import AdamW, trainable_parameters
from ms_latte.training.schedules import learning_rate

SMALL = dict(
    block_out_channels=[8, 16, 32], layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
)
KL_WEIGHT = 1e-4  # keeps latents finite and near the size of one, without blurring pictures
LOGVAR = -4.6  # of the posterior at first: a tenth of the latents' size
RATE, WARMUP = 4e-3, 20
CHUNK = 32  # pictures that are encoded at once
# Formulations with few launches, which is what a step on small pictures spends its time on (CPU).
FAST = dict(conv2d="im2col_batch", conv2d_upsampled="im2col_batch", group_norm="native")


def fresh(rng, **config):
    """A small AutoencoderKL with random weights; `config` wins over SMALL."""
    vae = AutoencoderKL(**{**SMALL, **config})
    for name, parameter in sorted(vae.parameters_and_names()):
        shape = tuple(parameter.shape)
        value = np.full(shape, float("norm" in name and name.endswith("weight")))
        if len(shape) > 1:
            value = rng.normal(0.0, int(np.prod(shape[1:])) ** -0.5, shape)
            value *= 0.3 if name.endswith("conv2.weight") else 1.0  # blocks begin near the identity
        if name.startswith("quant_conv"):
            value[vae.latent_channels :] = LOGVAR if name.endswith("bias") else 0.0
        parameter.set_data(ms.Tensor(value, parameter.dtype))
    return vae


class Fitting(nn.Cell):
    """One step of a VAE: pixels x (N, 3, H, W), noise of the posterior (N, C, h, w), rate () -> the loss before it, ().

    Minimised are absolute and squared error of the pictures, and a little of the divergence of the posterior from the
    standard normal distribution (Kingma and Welling 2014).
    """

    def __init__(self, vae):
        super().__init__(auto_prefix=False)
        self.vae, self.optimizer = vae, AdamW(trainable_parameters(vae), precision=vae.precision)
        self.value_and_grad = ms.value_and_grad(self.loss, None, self.optimizer.parameters)

    def construct(self, x, noise, rate):
        value, gradients = self.value_and_grad(x, noise)
        self.optimizer.update(gradients, rate, ms.Tensor(True))
        return value

    def loss(self, x, noise):
        """What is minimised, ()."""
        mean, logvar = self.vae.encode(x)
        error = self.vae.decode(sample_posterior(mean, logvar, noise, self.vae.precision)) - x
        divergence = 0.5 * (ops.square(mean) + ops.exp(logvar) - 1 - logvar)
        average = ops.ReduceMean()
        return average(ops.abs(error)) + average(ops.square(error)) + KL_WEIGHT * average(divergence)


def fit(vae, pictures, steps, batch_size=4, seed=0, on_step=None):
    """Fit a VAE to pictures, uint8 (N, H, W, 3), by AdamW with a cosine schedule; on_step(i, loss) after each step.

    Returns a VAE with the same weights whose scaling_factor makes latents of these pictures one in size, as Stable
    Diffusion's does for photographs (Rombach et al. 2022, appendix G).
    """
    shape = (batch_size, vae.latent_channels, *(side // factor_of(vae) for side in pictures.shape[1:3]))
    with device.formulations(**FAST):
        step = Fitting(vae)
        for i in range(steps):
            rng = np.random.default_rng([seed, i])
            x = to_tensor(pictures[rng.integers(len(pictures), size=batch_size)])
            noise = ms.Tensor(rng.standard_normal(shape, dtype=np.float32))
            rate = learning_rate(i, "cosine_decay", RATE, 0.0, WARMUP, max(steps - WARMUP, 1))
            value = float(step(x, noise, ms.Tensor(rate, ms.float32)).asnumpy())
            if on_step:
                on_step(i, value)
        return scaled(vae, pictures)


def scaled(vae, pictures):
    """The same VAE with a scaling_factor of 1 / (standard deviation of all latents of the pictures)."""
    means = [
        vae.encode(to_tensor(pictures[i : i + CHUNK]))[0].asnumpy() for i in range(0, len(pictures), CHUNK)
    ]
    factor = float(1 / np.concatenate(means).std())
    same = AutoencoderKL(**{**vae.config, "scaling_factor": factor})
    weights = dict(vae.parameters_and_names())
    for name, parameter in same.parameters_and_names():
        parameter.set_data(ms.Tensor(weights[name].asnumpy()))
    return same


def psnr(vae, pictures):
    """Peak signal-to-noise ratio in dB of pictures that are encoded and decoded."""
    errors = []
    for i in range(0, len(pictures), CHUNK):
        x = to_tensor(pictures[i : i + CHUNK])
        errors.append(np.square((vae(x) - x).asnumpy()).mean((1, 2, 3)))
    return float(10 * np.log10(4 / np.concatenate(errors).mean()))


def to_tensor(pictures):
    """uint8 (N, H, W, 3) -> pixels (N, 3, H, W) in [-1, 1]."""
    pixels = pictures.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return ms.Tensor(np.ascontiguousarray(pixels))
