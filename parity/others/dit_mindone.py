# SPDX-License-Identifier: Apache-2.0
"""mindone's DiTTransformer2DModel against diffusers', at a tiny size: python -m parity other dit_mindone"""

from parity import api
from parity.harness.inputs import array, normal

COMPARISON = api.Comparison(
    name="mindone.DiTTransformer2DModel",
    reference="parity.others.mindone_side:diffusers_model",
    port="parity.others.mindone_side:mindone_model",
    config=dict(
        name="DiTTransformer2DModel",
        config=dict(
            num_attention_heads=4,
            attention_head_dim=18,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=10,
            patch_size=2,
            num_embeds_ada_norm=7,
        ),
    ),
    inputs=dict(
        hidden_states=normal(2, 4, 10, 10),
        timestep=array([7, 995]),
        class_labels=array([1, 5]),
        return_dict=False,
    ),
    weights="names",
)
