# SPDX-License-Identifier: Apache-2.0
"""Cases of `diffusion/gaussian.py`: first, middle and last timesteps of the published process, both channel axes."""

from parity.harness.case import Case
from parity.harness.inputs import array, linspace, normal

X = normal(3, 5, 2, 6, 4)  # (N, F, C, H, W)
OUTPUT = normal(3, 5, 4, 6, 4)
T = array([0, 41, 998])
# Clean and noisy latents of the first timestep, 0.005 apart; the ends of the range lie beyond +-0.999.
CLEAN, NEAR = linspace(-1.2, 1.2, 3, 5, 2, 6, 4), linspace(-1.195, 1.205, 3, 5, 2, 6, 4)


def process(method, inputs, name="", init=None, **rest):
    """A method of the process."""
    name = f"{method}-{name}" if name else method
    return Case("GaussianDiffusion", init or {}, inputs, name, method, **rest)


CASES = [
    process("q_sample", dict(x0=X, t=T, noise=normal(3, 5, 2, 6, 4))),
    process("predict_x0", dict(x=X, t=T, eps=normal(3, 5, 2, 6, 4))),
    process("q_posterior", dict(x0=X, x=normal(3, 5, 2, 6, 4), t=T)),
    process(
        "map_timesteps", dict(t=array([2, 0])), init=dict(betas=[1e-4, 0.1, 0.3], timestep_map=[0, 3, 7])
    ),
    process("p_mean_variance", dict(model_output=OUTPUT, x=X, t=T)),
    process("p_mean_variance", dict(model_output=OUTPUT, x=X, t=T, clip_denoised=True), "clipped"),
    process(
        "p_mean_variance",
        dict(model_output=normal(3, 4, 5, 6, 4), x=normal(3, 2, 5, 6, 4), t=T),
        "channels_first",
        dict(channel_axis=1),
    ),
    process("p_mean_variance", dict(model_output=X, x=X, t=T), "large", dict(learn_sigma=False)),
    process(
        "p_mean_variance",
        dict(model_output=X, x=X, t=T),
        "small",
        dict(learn_sigma=False, fixed_variance="small"),
    ),
    process(
        "training_losses", dict(model_output=OUTPUT, x0=X, x_t=NEAR, t=array([1, 41, 998]), noise=X), "kl"
    ),
    process(
        "training_losses",
        dict(model_output=OUTPUT, x0=CLEAN, x_t=NEAR, t=array([0, 0, 0]), noise=X),
        "first",
    ),
    process(
        "training_losses",
        dict(
            model_output=normal(3, 4, 5, 6, 4),
            x0=linspace(-1.2, 1.2, 3, 2, 5, 6, 4),
            x_t=linspace(-1.195, 1.205, 3, 2, 5, 6, 4),
            t=T,
            noise=normal(3, 2, 5, 6, 4),
        ),
        "channels_first",
        dict(channel_axis=1),
    ),
    process(
        "training_losses",
        dict(model_output=X, x0=CLEAN, x_t=NEAR, t=T, noise=normal(3, 5, 2, 6, 4)),
        "fixed",
        dict(learn_sigma=False),
    ),
    Case("to_state", inputs=dict(x=X)),
    Case(
        "split_sigma",
        inputs=dict(model_output=OUTPUT, x=X, channel_axis=2, learn_sigma=True),
        name="frames_first",
    ),
    Case(
        "split_sigma",
        inputs=dict(
            model_output=normal(3, 4, 5, 6, 4), x=normal(3, 2, 5, 6, 4), channel_axis=1, learn_sigma=True
        ),
        name="channels_first",
    ),
    Case(
        "normal_kl",
        inputs=dict(
            mean1=normal(4, 30),
            log_variance1=normal(4, 30),
            mean2=normal(4, 30),
            log_variance2=normal(4, 30),
        ),
        dtypes=("fp64", "fp32"),
    ),
    Case(
        "discretized_gaussian_log_likelihood",
        inputs=dict(x=CLEAN, mean=NEAR, log_scale=normal(3, 5, 2, 6, 4, mean=-4.6, scale=0.1)),
        dtypes=("fp64", "fp32"),
    ),
]
