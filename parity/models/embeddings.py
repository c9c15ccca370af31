# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/embeddings.py`."""

from parity.harness.case import Case
from parity.harness.inputs import array, normal

STEPS = array([0, 1, 37, 999])  # cos 1 and sin 0 at 0; the largest angles at 999
# Two rows for four samples, as guidance has them.
SIZES = dict(
    resolution=array([[512.0, 768.0], [256.0, 1024.0]]),
    aspect_ratio=array([[0.6666666], [0.25]]),
)

CASES = [
    Case("timestep_embedding", inputs=dict(timesteps=STEPS, dim=256)),
    Case("timestep_embedding", inputs=dict(timesteps=array([0.5, 123.25]), dim=31), name="float_odd"),
    Case("timestep_embedding", inputs=dict(timesteps=STEPS, dim=256, downscale_freq_shift=1), name="shifted"),
    # cos 1 and sin 0 throughout (cos_sin_order); fractions, of which an integer cast leaves nothing (timestep_integer).
    Case(
        "timestep_embedding",
        inputs=dict(timesteps=array([0, 0]), dim=256),
        name="probe_zero",
        probe="order of cosine and sine",
    ),
    Case(
        "timestep_embedding",
        inputs=dict(timesteps=array([0.5, 123.25, 998.5]), dim=256),
        name="probe_fraction",
        probe="type of the timestep",
    ),
    Case("PatchProjection", dict(patch_size=2, in_channels=4, embed_dim=24), dict(latent=normal(3, 4, 6, 8))),
    Case(
        "PatchEmbed",
        dict(height=6, width=6, patch_size=2, in_channels=4, embed_dim=24),
        dict(latent=normal(3, 4, 6, 6)),
    ),
    Case(
        "PatchEmbed",
        dict(
            height=6,
            width=8,
            patch_size=2,
            in_channels=4,
            embed_dim=24,
            interpolation_scale=2,
            layer_norm=True,
        ),
        dict(latent=normal(3, 4, 8, 12)),
        name="rescaled",
    ),
    Case(
        "PatchEmbed",
        dict(height=6, width=8, patch_size=2, in_channels=4, embed_dim=24, base_size=(3, 4), bias=False),
        dict(latent=normal(3, 4, 8, 12)),
        name="per_axis",
    ),
    # Latents of no size: the result is the table, and its type shows (positions_bf16).
    Case(
        "PatchEmbed",
        dict(height=22, width=30, patch_size=2, in_channels=4, embed_dim=24, bias=False),
        dict(latent=normal(2, 4, 22, 30, scale=1e-3)),
        name="probe_quiet",
        probe="type of the position table",
    ),
    # 2 x 8 = 16 patches: the table of a 4 x 4 grid has the right length (square_table).
    Case(
        "PatchEmbed",
        dict(height=4, width=16, patch_size=2, in_channels=4, embed_dim=24),
        dict(latent=normal(3, 4, 4, 16)),
        name="probe_square",
        probe="height and width of the grid",
    ),
    Case("TimestepEmbedder", dict(hidden_size=48), dict(t=STEPS)),
    Case(
        "LabelEmbedder", dict(num_classes=7, hidden_size=24, dropout_prob=0.1), dict(labels=array([0, 3, 7]))
    ),
    Case(
        "LabelEmbedder",
        dict(num_classes=7, hidden_size=24, dropout_prob=0.1),
        dict(labels=array([0, 3, 6]), drop_ids=array([True, False, True])),
        name="dropped",
    ),
    Case("TimestepEmbedding", dict(in_channels=32, time_embed_dim=48), dict(sample=normal(3, 32))),
    Case("CombinedTimestepSizeEmbeddings", dict(embedding_dim=48, size_emb_dim=16), dict(timestep=STEPS)),
    Case(
        "CombinedTimestepSizeEmbeddings",
        dict(embedding_dim=48, size_emb_dim=16, use_additional_conditions=True),
        dict(timestep=STEPS, **SIZES),
        name="sizes",
    ),
    Case(
        "CombinedTimestepLabelEmbeddings",
        dict(num_classes=7, embedding_dim=48),
        dict(timestep=STEPS, class_labels=array([0, 7, 3, 6])),
    ),
    Case("AdaLayerNormSingle", dict(embedding_dim=48), dict(timestep=STEPS)),
    Case(
        "AdaLayerNormSingle",
        dict(embedding_dim=48, use_additional_conditions=True),
        dict(timestep=STEPS, added_cond_kwargs=SIZES),
        name="sizes",
    ),
    Case("CaptionProjection", dict(in_features=20, hidden_size=48), dict(caption=normal(2, 7, 20))),
]
