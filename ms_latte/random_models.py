# SPDX-License-Identifier: Apache-2.0
"""A tiny random Latte and VAE in the official formats, so that the whole way from checkpoint to video can be tried
without a download. They have learned nothing: the videos are coloured noise, the same for everybody.
`python -m ms_latte.demo` trains such models."""

import numpy as np

LATTE = dict(input_size=8, patch_size=2, hidden_size=48, depth=4, num_heads=3, num_frames=8)
VAE = dict(block_out_channels=[8, 16, 16, 16], layers_per_block=1, norm_num_groups=4)
SEED = 2401


def make(folder):
    """(path of the denoiser, path of the VAE) below `folder`, made from one seed where they are missing."""
    from ms_latte import checkpoint
    from ms_latte.encoders.vae import AutoencoderKL
    from ms_latte.models.latte import Latte

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, build, config in (
        ("latte-demo.pt", Latte, LATTE),
        ("vae-demo.safetensors", AutoencoderKL, VAE),
    ):
        paths.append(folder / name)
        if not paths[-1].exists():
            model = fill(build(**config), np.random.default_rng(SEED))
            checkpoint.save(model, paths[-1])
    return paths


def fill(model, rng):
    """Random weights of which none is degenerate: gates and biases too. Position tables stay."""
    import mindspore as ms

    for name, parameter in sorted(model.parameters_and_names()):
        if name in ("pos_embed", "temp_embed"):
            continue
        shape = tuple(parameter.shape)
        if len(shape) > 1:
            value = rng.normal(0.0, int(np.prod(shape[1:])) ** -0.5, shape)
        else:
            value = rng.normal(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1, shape)
        parameter.set_data(ms.Tensor(value, parameter.dtype))
    return model
