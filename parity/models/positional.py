# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/positional.py`: tables are float64 in both twins, so they are judged by G1 alone."""

from parity.harness.case import Case

G1 = dict(dtypes=("fp64",))

CASES = [
    Case("get_1d_sincos_pos_embed", inputs=dict(embed_dim=48, length=7), **G1),
    Case(
        "get_1d_sincos_pos_embed",
        inputs=dict(embed_dim=48, length=7, interpolation_scale=2.0),
        name="scaled",
        **G1,
    ),
    Case("get_2d_sincos_pos_embed", inputs=dict(embed_dim=48, grid_size=(3, 5)), **G1),
    Case(
        "get_2d_sincos_pos_embed",
        inputs=dict(embed_dim=48, grid_size=(3, 5), base_size=4, interpolation_scale=2.0),
        name="rescaled",
        **G1,
    ),
    Case("timestep_frequencies", inputs=dict(dim=256, double=True), **G1),
    Case("timestep_frequencies", inputs=dict(dim=256), name="float32", **G1),
    Case(
        "timestep_frequencies",
        inputs=dict(dim=256, double=True, downscale_freq_shift=1),
        name="shifted",
        **G1,
    ),
]
