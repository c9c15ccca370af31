# SPDX-License-Identifier: Apache-2.0
"""Cases of `diffusion/samplers.py`: the first, a middle and the last step of every sampler, both channel axes."""

from parity.harness.case import Case
from parity.harness.inputs import normal

X, NOISE = normal(2, 5, 3, 6, 4), normal(2, 5, 3, 6, 4)  # (N, F, C, H, W)
OUTPUT, FAINT = normal(2, 5, 6, 6, 4), normal(2, 3, 5, 6, 4, scale=0.1)
VIDEO = dict(x=normal(2, 3, 5, 6, 4), model_output=normal(2, 6, 5, 6, 4))  # (N, C, F, H, W)
DIFFUSERS = dict(steps=7, channel_axis=1)


def step(target, i, name, init=None, inputs=None, **rest):
    """One step. Seven steps unless said."""
    inputs = {"x": X, "model_output": OUTPUT, "i": i, **(inputs or {})}
    return Case(target, {"steps": 7, **(init or {})}, inputs, name, "update", **rest)


def video_step(target, i, name, init=None, **inputs):
    """One step of latents with channels before frames."""
    return Case(target, {**DIFFUSERS, **(init or {})}, {**VIDEO, "i": i, **inputs}, name, "update")


CASES = [
    step("DDPMSampler", 0, "first", inputs=dict(noise=NOISE)),
    step("DDPMSampler", 3, "middle", inputs=dict(noise=NOISE)),
    # Faint latents, so that the noise which does not belong here would be a tenth of the result.
    step("DDPMSampler", 6, "last", inputs=dict(x=normal(2, 5, 3, 6, 4, scale=0.1), noise=NOISE)),
    step("DDPMSampler", 4, "clipped", dict(clip_denoised=True), dict(noise=NOISE)),
    step(
        "DDPMSampler",
        4,
        "fixed",
        dict(learn_sigma=False),
        dict(model_output=normal(2, 5, 3, 6, 4), noise=NOISE),
    ),
    video_step("DDPMSampler", 5, "leading", dict(spacing="leading"), noise=normal(2, 3, 5, 6, 4)),
    step("DDIMSampler", 0, "first"),
    step("DDIMSampler", 3, "middle"),
    step("DDIMSampler", 6, "last"),
    step("DDIMSampler", 3, "eta_1", dict(eta=1.0), dict(noise=NOISE)),
    step("DDIMSampler", 3, "clipped", dict(clip_denoised=True)),
    step("DDIMSampler", 3, "integer_stride", dict(steps="ddim8")),
    # Faint latents at timestep 1, where an offset of one is a part of the result (sampler_timestep_from_one).
    video_step("DDIMSampler", 6, "leading", dict(spacing="leading", steps_offset=1), x=FAINT),
    video_step("DDIMSampler", 3, "linspace", dict(spacing="linspace")),
    video_step("DDIMSampler", 6, "last_alpha", dict(spacing="leading", set_alpha_to_one=False)),
    Case("EulerSampler", DIFFUSERS, dict(x=VIDEO["x"], i=2), "input", "scale_input"),
    video_step("EulerSampler", 0, "first"),
    video_step("EulerSampler", 3, "middle", dict(spacing="leading")),
    video_step("EulerSampler", 6, "last"),
    video_step("DPMSolverSampler", 0, "first"),
    video_step("DPMSolverSampler", 3, "second_order", x0_before=normal(2, 3, 5, 6, 4)),
    video_step("DPMSolverSampler", 3, "trailing", dict(spacing="trailing"), x0_before=normal(2, 3, 5, 6, 4)),
    video_step("DPMSolverSampler", 6, "last", x0_before=normal(2, 3, 5, 6, 4)),
    Case(
        "guide",
        inputs=dict(model_output=normal(4, 5, 6, 6, 4), scale=7.0, guided_channels=3),
        name="noise_alone",
    ),
    Case(
        "guide",
        inputs=dict(model_output=normal(4, 6, 5, 6, 4), scale=7.5, channel_axis=1, order="uncond_first"),
        name="all_channels",
    ),
]
