# SPDX-License-Identifier: Apache-2.0
"""Rows of `python -m parity benchmark` about generation: a sampling step, the decoder of the VAE, the text encoder.

The port is timed beside the torch twin and, where one exists, beside the original in diffusers or transformers, all in
turns. Widths are the published ones; depths are cut so that a row takes seconds on two cores.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from parity.harness.backends import Worker
from parity.harness.case import Case
from parity.harness.full import LATTE, T2V
from parity.harness.inputs import array, integers, lengths, normal
from parity.harness.other import Other

STEPS = "2"  # a row takes this many steps and divides by them


@dataclass(frozen=True)
class Job:
    """One row. goal: of the ratio to each reference. sampling: what `clock_sampling` is asked, {} for one forward.
    original: the same from another library; its forward takes `steps` steps.
    """

    case: Case
    goal: float
    sampling: dict[str, Any] = field(default_factory=dict)
    original: Other | None = None
    library: str = ""

    @property
    def steps(self) -> int:
        """Steps that one forward of the original takes."""
        return int(STEPS) if self.sampling else 1

    def seconds(self, worker: Worker, inputs: dict[str, Any], loops: int) -> float:
        """Ask a twin: of one forward, or of one step."""
        if self.sampling:
            return worker(
                "clock_sampling", inputs=inputs, loops=loops, method=self.case.method, **self.sampling
            )
        return worker("clock", inputs=inputs, method=self.case.method, loops=loops)

    def original_seconds(self, worker: Worker, inputs: dict[str, Any], loops: int) -> float:
        """Ask the original."""
        return worker("clock", inputs=inputs, method="", loops=loops) / self.steps


def jobs(tiny: bool = False) -> list[Job]:
    """All rows. tiny: sizes that show that they run; their figures mean nothing."""
    return [_latte(tiny), _t2v(tiny), _vae(tiny), _temporal_vae(tiny), _text(tiny)]


def class_net(tiny: bool, samples: int) -> tuple[Case, tuple[int, ...]]:
    """A net of the class family, two blocks of the published width, and the shape (N, F, C, h, w) of its latents."""
    width = dict(hidden_size=48, num_heads=3) if tiny else dict(hidden_size=1152, num_heads=16)
    frames, size = (2, 8) if tiny else (16, 32)
    init = {**LATTE, **width, "depth": 2, "patch_size": 2, "num_frames": frames, "input_size": size}
    init |= dict(condition="class", num_classes=101)
    return Case("Latte", init, file="models.latte"), (samples, frames, 4, size, size)


def _latte(tiny):
    case, shape = class_net(tiny, samples=2)
    inputs = dict(x=normal(*shape), t=array([0, 0]), y=array([5, 101]), cfg_scale=7.0)
    name = f"sampling step, Latte {case.init['depth']} blocks, guided"
    case = replace(case, inputs=inputs, method="forward_with_cfg", name=name)
    sampler = dict(name="ddim", steps=f"ddim{STEPS}", channel_axis=2)
    return Job(case, 1.3, dict(state="x", time="t", sampler=sampler, noise=0))


def _t2v(tiny):
    init = {**T2V, "num_layers": 1, "sample_size": 8 if tiny else 32}
    init |= dict(video_length=2 if tiny else 16)
    if tiny:
        init |= dict(num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, caption_channels=24)
    frames, size, tokens = init["video_length"], init["sample_size"], 7 if tiny else 120
    inputs = dict(  # no mask of text: diffusers' transformer does not repeat one for its frames, and fails
        hidden_states=normal(2, 4, frames, size, size),
        timestep=array([0, 0]),
        encoder_hidden_states=normal(2, tokens, init["caption_channels"]),
    )
    case = Case("LatteT2V", init, inputs, file="models.latte_t2v")
    case = replace(case, name=f"sampling step, LatteT2V {2 * init['num_layers']} blocks, two samples")
    sampler = dict(name="ddim", steps=int(STEPS), channel_axis=1, spacing="leading", steps_offset=1)
    sampling = dict(state="hidden_states", time="timestep", sampler=sampler, noise=0)
    return Job(case, 1.3, sampling, _other("latte_step", init, inputs), "diffusers")


def _vae(tiny):
    init = _vae_widths(tiny)
    size = 4 if tiny else 32
    case = Case("AutoencoderKL", init, dict(z=normal(1, 4, size, size)), method="decode", file="encoders.vae")
    case = replace(case, name=f"VAE decode, 1 frame of {8 * size}x{8 * size}")
    return Job(case, 1.5, {}, _other("vae", init, case.inputs), "diffusers")


def _temporal_vae(tiny):
    init = _vae_widths(tiny)
    size, frames = (4, 2) if tiny else (16, 4)
    inputs = dict(z=normal(frames, 4, size, size), num_frames=frames)
    case = Case("AutoencoderKLTemporalDecoder", init, inputs, method="decode", file="encoders.vae")
    case = replace(case, name=f"temporal VAE decode, {frames} frames of {8 * size}x{8 * size}")
    return Job(case, 1.5, {}, _other("temporal_vae", init, inputs), "diffusers")


def _vae_widths(tiny):
    widths = dict(block_out_channels=[32, 32, 32, 32], layers_per_block=1)
    return widths if tiny else dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2)


def _text(tiny):
    init = dict(vocab_size=1000, d_model=2048, d_kv=64, d_ff=5120, num_layers=2, num_heads=32)
    if tiny:
        init |= dict(d_model=24, d_kv=6, d_ff=40, num_heads=4)
    inputs = dict(input_ids=integers(2, 120, high=1000), attention_mask=lengths(120, [20, 120]))
    case = Case("T5EncoderModel", init, inputs, file="encoders.t5")
    case = replace(case, name=f"T5 encoder, XL width, {init['num_layers']} of 24 blocks, 2 x 120 tokens")
    return Job(case, 1.3, {}, _other("t5", init, inputs), "transformers")


def _other(factory, init, inputs):
    return Other(factory, init, inputs, reference=f"{__name__}:{factory}")


# --- the originals, built inside a worker process


def latte_step(**init):
    """diffusers' transformer and its DDIM scheduler: one step, as its pipeline takes it (guidance left out)."""
    import torch
    from diffusers import DDIMScheduler, LatteTransformer3DModel

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            known = dict(init)
            known.pop("temporal_interpolation_scale")
            self.net = LatteTransformer3DModel(**known)
            self.scheduler = DDIMScheduler(steps_offset=1)
            self.scheduler.set_timesteps(int(STEPS))

        def forward(self, hidden_states, timestep, **text):
            for t in self.scheduler.timesteps:
                times = torch.full_like(timestep, int(t))
                out = self.net(hidden_states, times, **text, return_dict=False)[0]
                noise = out.chunk(2, dim=1)[0]
                hidden_states = self.scheduler.step(noise, int(t), hidden_states).prev_sample
            return hidden_states

    return Step()


def vae(**init):
    """diffusers' AutoencoderKL; `decode` returns a tensor."""
    from diffusers import AutoencoderKL

    up = ["UpDecoderBlock2D"] * len(init["block_out_channels"])
    return _decoder(AutoencoderKL(**_diffusers(init), up_block_types=up))


def temporal_vae(**init):
    """diffusers' AutoencoderKLTemporalDecoder."""
    from diffusers import AutoencoderKLTemporalDecoder

    return _decoder(AutoencoderKLTemporalDecoder(**_diffusers(init)))


def _diffusers(init):
    """diffusers' own defaults build a smaller net."""
    levels = len(init["block_out_channels"])
    return {**init, "down_block_types": ["DownEncoderBlock2D"] * levels}


def _decoder(net):
    import torch

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, z, **frames):
            return net.decode(z, **frames, return_dict=False)[0]

    return Decoder()


def t5(**init):
    """transformers' T5EncoderModel with its fastest attention for T5."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**init, feed_forward_proj="gated-gelu", use_cache=False))
