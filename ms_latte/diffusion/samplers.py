# SPDX-License-Identifier: Apache-2.0
"""Samplers: from noise to latents, one step per call of the model. Every table is float64 numpy, ready before the loop.

    sampler = make_sampler("ddim", 50)
    x = sampler.init_scale * noise
    history = ()
    for i, t in enumerate(sampler.timesteps):
        output = model(sampler.scale_input(x, i), t)
        x, history = sampler.step(i, x, output, noise=None, history=history)

Sources: OpenAI's `gaussian_diffusion.py` (ancestral and DDIM); diffusers' DDIM, EulerDiscrete and
DPMSolverMultistep schedulers with the defaults of their classes.
"""

import inspect

import mindspore as ms
import numpy as np
from mindspore import ops

from ms_latte.diffusion.gaussian import GaussianDiffusion, split_sigma, to_state
from ms_latte.diffusion.respace import respaced_betas, space_timesteps, spaced_grid
from ms_latte.diffusion.schedule import Schedule, linear_betas
from ms_latte.models.constants import constant
from ms_latte.models.layers import exp
from ms_latte.models.precision import Precision

GUIDANCE_ORDERS = ("cond_first", "uncond_first")


class _Sampler:
    """What samplers share. timesteps: (K,) numpy, descending, what the model is told; init_scale: factor of the
    initial unit noise; needs_noise: whether `step` takes fresh noise."""

    init_scale = 1.0
    needs_noise = False

    def __init__(self, timesteps, channel_axis, learn_sigma, precision):
        self.timesteps, self.channel_axis = timesteps, channel_axis
        self.learn_sigma, self.precision = learn_sigma, precision

    def scale_input(self, x, i):
        """What the model gets as latents in step i."""
        return x

    def step(self, i, x, model_output, noise=None, history=()):
        """Step i = 0 .. K-1, the noisiest first. history: what the step before returned. -> (x, history)."""
        x, *history = self.update(i, x, model_output, noise, *history)
        return x, tuple(history)

    def _noise_of(self, model_output, x):
        eps, _ = split_sigma(model_output, x, self.channel_axis, self.learn_sigma, self.precision)
        return eps, to_state(x, self.precision)

    def _fresh(self, noise, i):
        if noise is None:
            raise ValueError(
                f"step {i} of {type(self).__name__} needs noise of the shape of x; draw it for every step"
            )
        return to_state(noise, self.precision)


class DDPMSampler(_Sampler):
    """Ancestral sampling with the variance of the model, or a fixed one.

    steps: a number or a specification of `space_timesteps`; with a spacing word, a number of `spaced_grid`. betas:
    of the trained process, None for the published ones. The rest as in GaussianDiffusion.
    """

    needs_noise = True

    def __init__(
        self,
        steps,
        betas=None,
        channel_axis=2,
        learn_sigma=True,
        fixed_variance="large",
        spacing=None,
        steps_offset=0,
        clip_denoised=False,
        precision=Precision(),
    ):
        betas = linear_betas() if betas is None else np.asarray(betas, dtype=np.float64)
        betas, ids = respaced_betas(betas, _visited(len(betas), steps, spacing, steps_offset))
        super().__init__(ids[::-1].copy(), channel_axis, learn_sigma, precision)
        self.diffusion = GaussianDiffusion(betas, ids, channel_axis, learn_sigma, fixed_variance, precision)
        self.clip_denoised = clip_denoised
        # Made here, so that no step waits for a number to reach the device.
        self.indices = [ms.Tensor([k], ms.int32) for k in range(len(ids))][::-1]  # (1,) each

    def update(self, i, x, model_output, noise=None):
        """x of the next step, in a tuple. The last step adds no noise; diffusers adds a trace of it if its timestep is
        not 0."""
        mean, log_variance, _ = self.diffusion.p_mean_variance(
            model_output, x, self.indices[i], self.clip_denoised
        )
        if i == len(self.indices) - 1:
            return (mean,)
        return (mean + exp(log_variance * 0.5) * self._fresh(noise, i),)


class DDIMSampler(_Sampler):
    """Song et al. 2021: deterministic for eta = 0, as random as ancestral sampling for eta = 1. The learned variance is
    not used.

    steps, betas: as in DDPMSampler. Without a spacing word the steps are OpenAI's. With one they are diffusers':
    set_alpha_to_one says whether the last step ends at clean latents or at the noise of timestep 0.
    Raises ValueError for eta outside 0 .. 1.
    """

    def __init__(
        self,
        steps,
        betas=None,
        channel_axis=2,
        learn_sigma=True,
        eta=0.0,
        spacing=None,
        steps_offset=0,
        set_alpha_to_one=True,
        clip_denoised=False,
        precision=Precision(),
    ):
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta is {eta}; expected 0 (deterministic) to 1 (as random as ddpm)")
        betas = linear_betas() if betas is None else np.asarray(betas, dtype=np.float64)
        ids = _visited(len(betas), steps, spacing, steps_offset)[::-1].copy()
        super().__init__(ids, channel_axis, learn_sigma, precision)
        self.needs_noise, self.clip_denoised = eta > 0, clip_denoised
        products = Schedule(betas).alphas_cumprod
        final = 1.0 if spacing is None or set_alpha_to_one else products[0]
        if spacing is None:
            before = np.append(products[ids[1:]], final)
        else:
            # As in diffusers, which steps back by T // K; with a fractional stride that is not the
            # next timestep.
            previous = ids - len(betas) // len(ids)
            before = np.where(previous >= 0, products[np.maximum(previous, 0)], final)
        now = products[ids]
        sigma = eta * np.sqrt((1.0 - before) / (1.0 - now) * np.maximum(1.0 - now / before, 0.0))
        self.recip, self.recipm1 = np.sqrt(1.0 / now).tolist(), np.sqrt(1.0 / now - 1.0).tolist()
        self.signal = np.sqrt(before).tolist()
        self.direction = np.sqrt(np.maximum(1.0 - before - sigma**2, 0.0)).tolist()
        self.sigma = sigma.tolist()

    def update(self, i, x, model_output, noise=None):
        """x of the next step, in a tuple."""
        eps, x = self._noise_of(model_output, x)
        x0 = x * constant(self.recip[i], x) - eps * constant(self.recipm1[i], x)
        if self.clip_denoised:
            x0 = ops.clamp(x0, -1.0, 1.0)
            eps = x * constant(self.recip[i], x) - x0  # what remains is the noise then
            eps = eps / constant(self.recipm1[i], x)
        x = x0 * constant(self.signal[i], x) + eps * constant(self.direction[i], x)
        return (x + self._fresh(noise, i) * constant(self.sigma[i], x) if self.sigma[i] > 0 else x,)


class EulerSampler(_Sampler):
    """Karras et al. 2022, Euler's method without churn: the state is x0 + sigma * noise, the model gets it scaled to
    unit variance.

    steps: a number. spacing, steps_offset: of `spaced_grid`; timesteps of "linspace" are fractions, as in diffusers.
    """

    def __init__(
        self,
        steps,
        betas=None,
        channel_axis=2,
        learn_sigma=True,
        spacing="linspace",
        steps_offset=0,
        precision=Precision(),
    ):
        betas = linear_betas() if betas is None else np.asarray(betas, dtype=np.float64)
        grid = spaced_grid(len(betas), _number(steps), spacing, steps_offset).astype(np.float32)
        super().__init__(grid, channel_axis, learn_sigma, precision)
        sigmas = _sigmas(betas, grid)
        self.init_scale = float(sigmas[0] if spacing != "leading" else np.sqrt(sigmas[0] ** 2 + 1.0))
        self.input_scale = (1.0 / np.sqrt(sigmas**2 + 1.0)).tolist()
        self.difference = np.diff(sigmas).tolist()

    def scale_input(self, x, i):
        """x (any shape) at unit variance, in the type of the process."""
        x = to_state(x, self.precision)
        return x * constant(self.input_scale[i], x)

    def update(self, i, x, model_output, noise=None):
        """x of the next step, in a tuple."""
        eps, x = self._noise_of(model_output, x)
        return (x + eps * constant(self.difference[i], x),)


class DPMSolverSampler(_Sampler):
    """DPM-Solver++(2M), Lu et al. 2022: order 2 from the step before (midpoint), order 1 in the first and last step.

    steps, spacing, steps_offset: as in EulerSampler; timesteps are integers. history holds the clean latents
    predicted in the step before.
    """

    def __init__(
        self,
        steps,
        betas=None,
        channel_axis=2,
        learn_sigma=True,
        spacing="linspace",
        steps_offset=0,
        precision=Precision(),
    ):
        betas = linear_betas() if betas is None else np.asarray(betas, dtype=np.float64)
        steps = _number(steps)
        # The solver ends at no noise instead of at the smallest timestep of one more.
        points = steps if spacing == "trailing" else steps + 1
        grid = np.round(spaced_grid(len(betas), points, spacing, steps_offset))[:steps].astype(np.int64)
        super().__init__(grid, channel_axis, learn_sigma, precision)
        sigmas = _sigmas(betas, grid)
        alphas = 1.0 / np.sqrt(sigmas**2 + 1.0)
        with np.errstate(divide="ignore"):
            h = np.diff(-np.log(sigmas))  # of the log signal-to-noise ratio; infinite in the last step
        self.recip, self.recipm1 = (1.0 / alphas).tolist(), sigmas.tolist()
        self.keep = (sigmas[1:] * alphas[1:] / (sigmas[:-1] * alphas[:-1])).tolist()
        self.gain = (alphas[1:] * -np.expm1(-h)).tolist()
        # Weight of the change of the clean latents: h / (2 h of the step before), 0 where the order is 1.
        ratio = np.zeros(steps)
        ratio[1:-1] = h[1:-1] / (2.0 * h[:-2])
        self.ratio = ratio.tolist()

    def update(self, i, x, model_output, noise=None, x0_before=None):
        """(x of the next step, clean latents predicted now)."""
        eps, x = self._noise_of(model_output, x)
        x0 = x * constant(self.recip[i], x) - eps * constant(self.recipm1[i], x)
        target = x0
        if self.ratio[i] > 0:
            if x0_before is None:
                raise ValueError(f"step {i} of DPMSolverSampler needs the history that step {i - 1} returned")
            target = x0 + (x0 - to_state(x0_before, self.precision)) * constant(self.ratio[i], x)
        return x * constant(self.keep[i], x) + target * constant(self.gain[i], x), x0


SAMPLERS = {
    "ddpm": DDPMSampler,
    "ddim": DDIMSampler,
    "euler": EulerSampler,
    "dpm++2m": DPMSolverSampler,
}


def make_sampler(name, steps, betas=None, channel_axis=2, eta=0.0, learn_sigma=True, **options):
    """A sampler by its name in SAMPLERS. options: further constructor arguments of its class.

    Raises ValueError for an unknown name or option, naming those that exist, and for eta with another than "ddim".
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; expected one of {', '.join(SAMPLERS)}")
    kind = SAMPLERS[name]
    known = list(inspect.signature(kind).parameters)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"sampler {name!r} has no option {', '.join(unknown)}; it takes {', '.join(known)}")
    if "eta" in known:
        options["eta"] = eta
    elif eta:
        raise ValueError(f"eta {eta} is an option of the sampler 'ddim', not of {name!r}; remove it")
    return kind(steps, betas=betas, channel_axis=channel_axis, learn_sigma=learn_sigma, **options)


def guide(
    model_output, scale, guided_channels=None, channel_axis=2, order="cond_first", precision=Precision()
):
    """Classifier-free guidance of a doubled batch: (2N, ...) -> (N, ...), uncond + scale * (cond - uncond).

    guided_channels: how many are guided, the others (variance) being those of the conditional half; None for all.
    Official Latte: 4 of 8, "cond_first" [conditional; null]. LattePipeline: all, "uncond_first" [negative; prompt].
    Raises ValueError for an odd batch or another order.
    """
    if order not in GUIDANCE_ORDERS:
        raise ValueError(f"guidance order is {order!r}; expected {' or '.join(GUIDANCE_ORDERS)}")
    if model_output.shape[0] % 2:
        raise ValueError(
            f"guidance needs an even batch of conditional and unconditional halves, got {model_output.shape[0]} rows"
        )
    halves = to_state(model_output, precision).chunk(2, axis=0)
    cond, uncond = halves if order == "cond_first" else halves[::-1]
    guided = uncond + (cond - uncond) * constant(scale, cond)
    channels = model_output.shape[channel_axis]
    if guided_channels is None or guided_channels >= channels:
        return guided
    k = guided_channels
    rest = cond.narrow(channel_axis, k, channels - k)
    return ops.cat([guided.narrow(channel_axis, 0, k), rest], axis=channel_axis)


def _visited(num_timesteps, steps, spacing, steps_offset):
    """Timesteps of a sampler that visits whole ones, ascending."""
    if spacing is None:
        if steps_offset:
            raise ValueError(f"steps_offset {steps_offset} goes with spacing 'leading'; none was given")
        return space_timesteps(num_timesteps, str(steps))
    grid = spaced_grid(num_timesteps, _number(steps), spacing, steps_offset)
    return np.round(grid).astype(np.int64)[::-1]


def _number(steps):
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
        raise ValueError(f"steps is {steps!r}; with a spacing word it must be a number of steps")
    return int(steps)


def _sigmas(betas, timesteps):
    """Noise over signal at some timesteps, interpolated between whole ones, and 0 at the end: (K + 1,) float64."""
    products = Schedule(betas).alphas_cumprod
    sigmas = np.interp(timesteps, np.arange(len(products)), np.sqrt((1.0 - products) / products))
    return np.append(sigmas, 0.0)
