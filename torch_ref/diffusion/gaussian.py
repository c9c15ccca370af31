# SPDX-License-Identifier: Apache-2.0
"""The Gaussian diffusion process: noising, the distribution of one step back, and the training losses.

Sources: Ho et al. 2020 (DDPM); Nichol and Dhariwal 2021 (learned range of the variance, variational bound);
OpenAI's `gaussian_diffusion.py` as used by Vchitect/Latte `diffusion/`.
"""

import math

import torch

from torch_ref.diffusion.schedule import Schedule, linear_betas
from torch_ref.models.layers import exp
from torch_ref.models.precision import Precision

FIXED_VARIANCES = ("small", "large")
CHANNEL_AXES = {1: "(N, C, F, H, W)", 2: "(N, F, C, H, W)"}


class GaussianDiffusion:
    """The process of some betas, for a model that predicts the noise.

    betas: (T,) numbers, None for the published linear ones; of a respaced process, together with its timestep_map
    (`respaced_betas`). channel_axis: 2 for latents (N, F, C, H, W), 1 for (N, C, F, H, W). learn_sigma: the model
    returns 2C channels, the second half places the log variance between its bounds; else the variance is the
    fixed "small" (of the posterior) or "large" (beta) one. t is (N,) integers that index the tables; a single
    one, (1,), serves all samples. Results are float32, float64 under Precision("fp64").
    Raises ValueError for another channel_axis or fixed_variance, or a model output of other channels.
    """

    def __init__(
        self,
        betas=None,
        timestep_map=None,
        channel_axis=2,
        learn_sigma=True,
        fixed_variance="large",
        precision=Precision(),
    ):
        if channel_axis not in CHANNEL_AXES:
            raise ValueError(
                f"channel_axis is {channel_axis!r}; expected 2 for latents {CHANNEL_AXES[2]} or 1 for {CHANNEL_AXES[1]}"
            )
        if fixed_variance not in FIXED_VARIANCES:
            raise ValueError(f"fixed_variance is {fixed_variance!r}; expected {' or '.join(FIXED_VARIANCES)}")
        schedule = Schedule(linear_betas() if betas is None else betas)
        ids = range(schedule.num_timesteps) if timestep_map is None else timestep_map
        if len(ids) != schedule.num_timesteps:
            raise ValueError(
                f"timestep_map has {len(ids)} entries for {schedule.num_timesteps} betas; respaced_betas gives both"
            )
        self.num_timesteps, self.channel_axis = schedule.num_timesteps, channel_axis
        self.learn_sigma, self.fixed_variance, self.precision = learn_sigma, fixed_variance, precision
        self.timestep_map = torch.tensor([int(i) for i in ids], dtype=torch.int32)  # (T,)
        self.sqrt_alphas_cumprod = self._table(schedule.sqrt_alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = self._table(schedule.sqrt_one_minus_alphas_cumprod)
        self.sqrt_recip_alphas_cumprod = self._table(schedule.sqrt_recip_alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = self._table(schedule.sqrt_recipm1_alphas_cumprod)
        self.posterior_mean_coef1 = self._table(schedule.posterior_mean_coef1)
        self.posterior_mean_coef2 = self._table(schedule.posterior_mean_coef2)
        self.min_log_variance = self._table(schedule.posterior_log_variance_clipped)
        self.max_log_variance = self._table(schedule.log_betas)
        fixed = schedule.posterior_log_variance_clipped.copy()
        if fixed_variance == "large":
            fixed[1:] = schedule.log_betas[1:]  # the first stays the posterior's, as in the original
        self.fixed_log_variance = self._table(fixed)

    def map_timesteps(self, t):
        """Timesteps that the model is told: t (N,) -> (N,) int32."""
        return self.timestep_map[t]

    def q_sample(self, x0, t, noise):
        """x0 with the noise of t steps: x0 and noise of one shape -> the same shape."""
        x0, noise = to_state(x0, self.precision), to_state(noise, self.precision)
        return (
            _at(self.sqrt_alphas_cumprod, t, x0) * x0 + _at(self.sqrt_one_minus_alphas_cumprod, t, x0) * noise
        )

    def predict_x0(self, x, t, eps):
        """The clean latents that x contains if eps is its noise: two of one shape -> the same shape."""
        x, eps = to_state(x, self.precision), to_state(eps, self.precision)
        return (
            _at(self.sqrt_recip_alphas_cumprod, t, x) * x - _at(self.sqrt_recipm1_alphas_cumprod, t, x) * eps
        )

    def q_posterior(self, x0, x, t):
        """Mean and log variance of the step before x, given the clean latents: two of the shape of x."""
        x0, x = to_state(x0, self.precision), to_state(x, self.precision)
        mean = _at(self.posterior_mean_coef1, t, x) * x0 + _at(self.posterior_mean_coef2, t, x) * x
        return mean, _at(self.min_log_variance, t, x).expand(x.shape)

    def p_mean_variance(self, model_output, x, t, clip_denoised=False):
        """What the model makes of x at t: (mean, log variance, predicted clean latents), each of the shape of x.

        clip_denoised limits the clean latents to [-1, 1]; published samplers of latents do not.
        """
        eps, v = split_sigma(model_output, x, self.channel_axis, self.learn_sigma, self.precision)
        x = to_state(x, self.precision)
        if self.learn_sigma:
            frac = (v + 1) * 0.5  # v in [-1, 1] spans the range between the two bounds
            low, high = _at(self.min_log_variance, t, x), _at(self.max_log_variance, t, x)
            log_variance = frac * high + (1 - frac) * low
        else:
            log_variance = _at(self.fixed_log_variance, t, x).expand(x.shape)
        x0 = self.predict_x0(x, t, eps)
        x0 = torch.clamp(x0, -1.0, 1.0) if clip_denoised else x0
        return self.q_posterior(x0, x, t)[0], log_variance, x0

    def training_losses(self, model_output, x0, x_t, t, noise):
        """Terms of the published loss, which is their sum: (mse (N,), vb (N,)), means over all axes but the batch.

        model_output: of the model at x_t = q_sample(x0, t, noise) and map_timesteps(t). mse is that of the noise.
        vb is the term of the variational bound at t in bits per dimension; through it no gradient reaches the
        predicted noise, only the variance. Zero if the variance is fixed.
        """
        eps, v = split_sigma(model_output, x_t, self.channel_axis, self.learn_sigma, self.precision)
        mse = _mean(torch.square(to_state(noise, self.precision) - eps))
        if not self.learn_sigma:
            return mse, torch.zeros_like(mse)
        frozen = torch.cat([eps.detach(), v], dim=self.channel_axis)
        true_mean, true_log_variance = self.q_posterior(x0, x_t, t)
        mean, log_variance, _ = self.p_mean_variance(frozen, x_t, t)
        kl = normal_kl(true_mean, true_log_variance, mean, log_variance)
        x0 = to_state(x0, self.precision)
        likelihood = discretized_gaussian_log_likelihood(x0, mean, log_variance * 0.5)
        vb = torch.where(t == 0, -_mean(likelihood), _mean(kl))  # (N,)
        return mse, vb * (1.0 / math.log(2.0))

    def _table(self, values):
        return torch.tensor(values, dtype=self.precision.table_dtype)


def to_state(x, precision):
    """x in the type of the process: float32, or float64 under Precision("fp64")."""
    return x.to(precision.table_dtype)


def split_sigma(model_output, x, channel_axis, learn_sigma, precision=Precision()):
    """Noise and variance of a model output, in the type of the process: (eps, v); without learn_sigma, (eps, eps).

    model_output has 2C channels with learn_sigma, else C, of latents x with C. Raises ValueError for others.
    """
    C, channels = x.shape[channel_axis], model_output.shape[channel_axis]
    if channels != (2 * C if learn_sigma else C):
        raise ValueError(
            f"model output has {channels} channels on axis {channel_axis} for latents of {C}, expected "
            f"{2 * C if learn_sigma else C} with learn_sigma {learn_sigma}: check learn_sigma, and channel_axis "
            f"(2 for {CHANNEL_AXES[2]}, 1 for {CHANNEL_AXES[1]})"
        )
    model_output = to_state(model_output, precision)
    if not learn_sigma:
        return model_output, model_output
    eps, v = model_output.chunk(2, dim=channel_axis)
    return eps, v


def normal_kl(mean1, log_variance1, mean2, log_variance2):
    """Kullback-Leibler divergence of normal distributions, elementwise, in nats: four of one shape -> the same."""
    d = log_variance1 - log_variance2
    distance = torch.square(mean1 - mean2) * exp(-log_variance2)
    return (torch.expm1(d) - d + distance) * 0.5


def discretized_gaussian_log_likelihood(x, mean, log_scale):
    """Log probability of the bin of width 2/255 around x, elementwise, in nats: three of one shape -> the same.

    The outermost bins, beyond +-0.999, reach to infinity; probabilities below 1e-12 count as that. The
    cumulative distribution is the tanh approximation of the original.
    """
    centered, inverse = x - mean, exp(-log_scale)
    half_bin = 1.0 / 255.0
    # A bin and its mirror image have one probability; left of the mean no digits are lost to 1 - small.
    left = -torch.abs(centered)
    inside = _cdf(inverse * (left + half_bin)) - _cdf(inverse * (left - half_bin))
    below = _cdf(inverse * (centered + half_bin))
    above = _cdf(inverse * (half_bin - centered))
    inside = torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))
    return torch.log(torch.clamp(inside, min=1e-12))


def _cdf(x):
    # (1 + tanh(u)) / 2 = sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): exact, and small values keep their digits.
    return torch.sigmoid(x * (x * x * 0.07135481627260025 + 1.5957691216057308))


def _at(table, t, x):
    return table[t].reshape((-1,) + (1,) * (x.ndim - 1))  # (N, 1, 1, ...)


def _mean(x):
    return x.reshape(x.shape[0], -1).mean(1)  # (N,)
