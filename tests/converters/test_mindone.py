# SPDX-License-Identifier: Apache-2.0
"""mindone 0.5.0 as the judge: its classes have the names and shapes of our tables, and load what we write."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers

from converters import load
from converters.convert import convert
from converters.layouts import FAMILIES
from torch_ref.models.latte import Latte

SIDE = Path(__file__).with_name("mindone_side.py")
T2V = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=4,
    out_channels=8,
    num_layers=2,
    cross_attention_dim=16,
    attention_bias=True,
    sample_size=8,
    patch_size=2,
    activation_fn="gelu-approximate",
    num_embeds_ada_norm=1000,
    norm_type="ada_norm_single",
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    caption_channels=12,
    video_length=3,
)
AFFINE = {**T2V, "norm_elementwise_affine": True, "attention_bias": False, "activation_fn": "geglu"}
LATTE = dict(input_size=8, patch_size=2, in_channels=4, hidden_size=16, depth=4, num_heads=2, num_frames=3)
VAE = dict(
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=[8, 16, 16],
    layers_per_block=2,
    norm_num_groups=4,
    latent_channels=4,
    sample_size=16,
)
TEMPORAL = dict(  # 32 groups are fixed in the class
    down_block_types=["DownEncoderBlock2D"] * 3,
    block_out_channels=[32, 64, 64],
    layers_per_block=2,
    latent_channels=4,
    sample_size=16,
)
T5 = dict(
    vocab_size=32,
    d_model=16,
    d_kv=4,
    num_heads=4,
    d_ff=24,
    num_layers=2,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)
BLOCKS = {"pixel_order": "blocks"}
# name -> (family, layout, configuration of the published model, mindone's class, its configuration, target)
CASES = {
    "latte": ("latte", "mindone-latte", {**LATTE, **BLOCKS}, "models.latte.Latte", LATTE, "x.ckpt"),
    "latte-class": (
        "latte",
        "mindone-latte",
        {**LATTE, **BLOCKS, "condition": "class", "num_classes": 5},
        "models.latte.Latte",
        {**LATTE, "condition": "class", "num_classes": 5},
        "x.ckpt",
    ),
    "latte-text": (
        "latte",
        "mindone-latte",
        {**LATTE, **BLOCKS, "condition": "text"},
        "models.latte.Latte",
        {**LATTE, "condition": "text"},
        "x.ckpt",
    ),
    "latte-linear": (
        "latte",
        "mindone-latte-linear",
        {**LATTE, "pixel_order": "strided"},
        "models.latte.Latte",
        {**LATTE, "patch_embedder": "linear"},
        "x.ckpt",
    ),
    "t2v-folder": ("latte", "mindone-diffusers", T2V, "diffusers.LatteTransformer3DModel", T2V, "x"),
    "t2v-ckpt": ("latte", "mindone-diffusers", T2V, "diffusers.LatteTransformer3DModel", T2V, "x.ckpt"),
    "t2v-affine": ("latte", "mindone-diffusers", AFFINE, "diffusers.LatteTransformer3DModel", AFFINE, "x"),
    "vae-folder": ("vae", "diffusers-vae", VAE, "diffusers.AutoencoderKL", VAE, "x"),
    "vae-ckpt": ("vae", "diffusers-vae", VAE, "diffusers.AutoencoderKL", VAE, "x.ckpt"),
    "temporal": (
        "vae",
        "diffusers-temporal-vae",
        TEMPORAL,
        "diffusers.AutoencoderKLTemporalDecoder",
        TEMPORAL,
        "x",
    ),
    "t5-folder": ("t5", "transformers-t5", T5, "transformers.T5EncoderModel", T5, "x"),
    "t5-ckpt": ("t5", "transformers-t5", T5, "transformers.T5EncoderModel", T5, "x.ckpt"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[dict, dict]]:
    """name -> (mindone's answer, our tensors as (shape, hash) in their names)."""
    root = tmp_path_factory.mktemp("mindone")
    jobs, written = [], {}
    for name, (family, to, config, class_name, theirs, target) in CASES.items():
        folder = root / name
        folder.mkdir()
        source = published(folder, class_name, theirs, config)
        overrides = {"num_heads": 2, "pixel_order": config["pixel_order"]} if "pixel_order" in config else {}
        options = dict(family=family, overrides=overrides)
        convert(source, folder / "ours.safetensors", **options, say=lambda line: None)
        ours = folder / "ours.safetensors"
        convert(ours, folder / target, to=to, family=family, say=lambda line: None)
        place = (
            {"ckpt": str(folder / target)} if target.endswith(".ckpt") else {"folder": str(folder / target)}
        )
        jobs.append({"class": class_name, "config": theirs, **place})
        layout = FAMILIES[family].layouts[to]
        checkpoint = load(ours, family=family)
        entries, left, _ = layout.to_theirs(checkpoint.tensors.entries, {}, checkpoint.config)
        assert not left
        written[name] = {
            key: (list(entry.shape), hashlib.sha256(np.ascontiguousarray(entry.read()).tobytes()).hexdigest())
            for key, entry in entries.items()
        }
    done = subprocess.run(
        [sys.executable, str(SIDE)], input=json.dumps(jobs), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, zip(json.loads(done.stdout), written.values(), strict=True), strict=True))


def published(folder: Path, class_name: str, config: dict, latte: dict) -> Path:
    """The PyTorch model with random weights, saved as its publishers do."""
    if class_name == "models.latte.Latte":
        model = Latte(**latte)
    elif class_name == "transformers.T5EncoderModel":
        model = transformers.T5EncoderModel(transformers.T5Config(**config))
    else:
        model = getattr(diffusers, class_name.removeprefix("diffusers."))(**config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    if class_name == "models.latte.Latte":
        torch.save({"ema": model.state_dict()}, folder / "published.pt")
        return folder / "published.pt"
    model.save_pretrained(folder / "published")
    return folder / "published"


@pytest.mark.parametrize("name", CASES)
def test_names_and_shapes_are_those_of_the_class(answers, name):
    answer, ours = answers[name]
    assert answer["shapes"] == {key: shape for key, (shape, _) in ours.items()}


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_arrives_bit_for_bit(answers, name):
    answer, ours = answers[name]
    assert answer["digests"] == {key: digest for key, (_, digest) in ours.items()}
    assert not any(answer["report"] or [])
