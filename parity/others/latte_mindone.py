# SPDX-License-Identifier: Apache-2.0
"""mindone's LatteTransformer3DModel against diffusers', at a tiny size: python -m parity other latte_mindone"""

from parity import api
from parity.harness.inputs import array, normal

COMPARISON = api.Comparison(
    name="mindone.LatteTransformer3DModel",
    reference="parity.others.mindone_side:diffusers_model",
    port="parity.others.mindone_side:mindone_model",
    config=dict(
        name="LatteTransformer3DModel",
        config=dict(
            num_attention_heads=4,
            attention_head_dim=18,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=72,
            attention_bias=True,
            sample_size=10,
            patch_size=2,
            activation_fn="gelu-approximate",
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            caption_channels=20,
            video_length=3,
        ),
    ),
    inputs=dict(
        hidden_states=normal(2, 4, 3, 10, 8),
        timestep=array([7, 995]),
        encoder_hidden_states=normal(2, 6, 20),
        return_dict=False,
    ),
    weights="names",
)
