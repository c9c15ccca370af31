# SPDX-License-Identifier: Apache-2.0
"""Cases of `encoders/vae.py`."""

from parity.harness.case import Case
from parity.harness.inputs import linspace, normal

# force_upcast would make the float16 net a float32 one.
KL = dict(
    block_out_channels=[16, 24, 32],
    layers_per_block=1,
    latent_channels=5,
    norm_num_groups=8,
    force_upcast=False,
)
TEMPORAL = dict(block_out_channels=[32, 64], layers_per_block=1, latent_channels=5, force_upcast=False)

CASES = [
    Case("AutoencoderKL", KL, dict(x=normal(2, 3, 12, 16, scale=0.5), noise=normal(2, 5, 3, 4))),
    Case("AutoencoderKL", KL, dict(x=normal(2, 3, 13, 18, scale=0.5)), name="encode", method="encode"),
    Case("AutoencoderKL", KL, dict(z=normal(2, 5, 3, 4)), name="decode", method="decode"),
    Case(
        "AutoencoderKL",
        KL,
        dict(latents=normal(2, 3, 5, 2, 4, scale=0.2), chunk=2),
        name="decode_video",
        method="decode_video",
    ),
    Case(
        "AutoencoderKL",
        {**KL, "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
        dict(x=normal(2, 3, 12, 16, scale=0.5)),
        name="bare",
    ),
    Case(
        "AutoencoderKL",
        {**KL, "force_upcast": True},
        dict(z=normal(2, 5, 3, 4)),
        name="upcast",
        method="decode",
        dtypes=("fp16", "bf16"),
    ),
    Case(
        "AutoencoderKLTemporalDecoder",
        TEMPORAL,
        dict(x=normal(6, 3, 6, 8, scale=0.5), noise=normal(6, 5, 3, 4), num_frames=3),
    ),
    Case(
        "AutoencoderKLTemporalDecoder",
        TEMPORAL,
        dict(x=normal(2, 3, 7, 10, scale=0.5)),
        name="encode",
        method="encode",
    ),
    # Five frames in chunks of three: the last chunk is shorter, and no chunk joins two videos.
    Case(
        "AutoencoderKLTemporalDecoder",
        TEMPORAL,
        dict(latents=normal(2, 5, 5, 2, 4, scale=0.2), chunk=3),
        name="decode_video",
        method="decode_video",
    ),
    # Beyond both ends of the range of logvar.
    Case("moments", inputs=dict(x=linspace(60.0, -60.0, 2, 6, 3, 4))),
    Case(
        "sample_posterior",
        inputs=dict(mean=normal(2, 5, 3, 4), logvar=normal(2, 5, 3, 4, scale=2.0), noise=normal(2, 5, 3, 4)),
    ),
    Case(
        "sample_posterior",
        inputs=dict(mean=normal(2, 5, 3, 4), logvar=normal(2, 5, 3, 4, scale=2.0), noise=normal(2, 5, 3, 4)),
        name="all_half",
        islands="compute",
        dtypes=("fp16", "bf16"),
    ),
]
