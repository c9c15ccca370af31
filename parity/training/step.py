# SPDX-License-Identifier: Apache-2.0
"""Cases of `training/step.py`: tiny nets trained on the same batches, judged after 1, 10 and 100 steps.

eps is large, so that no element's first step depends on the sign of a gradient that is zero in exact arithmetic.
"""

from parity.harness.case import Case
from parity.harness.inputs import array, integers, lengths, normal

LATTE = dict(
    input_size=(4, 6), hidden_size=24, depth=2, num_heads=2, num_frames=3, num_classes=7, mlp_ratio=2.0
)
CAPTIONS = dict(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=8,
    num_layers=1,
    cross_attention_dim=24,
    attention_bias=True,
    sample_size=4,
    patch_size=2,
    activation_fn="gelu-approximate",
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    caption_channels=20,
    video_length=3,
)
OPTIMIZER = dict(eps=1e-3, weight_decay=0.5)
RATES = dict(schedule="cosine_decay", start=5e-3, end=1e-4, warmup_steps=3, decay_steps=80)
SCALER = dict(init=64.0, factor=2.0, window=4)


def latents(frames):
    """Posterior, noise and timesteps of clips (2, frames, 4, 4, 6)."""
    shape = (2, frames, 4, 4, 6)
    return dict(
        mean=normal(*shape, scale=4.0),
        logvar=normal(*shape, mean=-1.0),
        posterior=normal(*shape),
        noise=normal(*shape),
        t=integers(2, high=1000),
    )


def training(name, model, inputs, count, **steps):
    """A net trained for `count` micro steps."""
    steps = dict(count=count, optimizer=OPTIMIZER, rates=RATES, decay=0.9, scaler=SCALER, **steps)
    return Case("TrainingStep", {}, inputs, name, parts=dict(model=model), steps=steps)


CASES = [
    # Clipping begins in step 3; step 6 meets an infinite latent, is dropped and halves the scale. 100 steps in float32;
    # in float64 a slip shows in the first that has it, and half types drift alike from the tenth on.
    training(
        "class",
        ("models.latte.Latte", {**LATTE, "condition": "class"}),
        dict(**latents(3), label=array([2, 5]), drop=array([False, True])),
        count=100,
        fewer=10,
        max_grad_norm=0.1,
        clip_from=3,
        poisoned=6,
    ),
    # Everything once, for the registry of bugs: step 1 meets an infinity, clipping begins in step 3.
    training(
        "short",
        ("models.latte.Latte", {**LATTE, "condition": "class"}),
        dict(**latents(3), label=array([2, 5]), drop=array([False, True])),
        count=5,
        max_grad_norm=0.1,
        clip_from=3,
        poisoned=1,
    ),
    # Three windows of three micro steps; the second one is dropped.
    training(
        "accumulated",
        ("models.latte.Latte", {**LATTE, "condition": "class"}),
        dict(
            **latents(5),
            label=array([2, 5]),
            drop=array([False, True]),
            image_labels=array([[1, 6], [3, 0]]),
        ),
        count=9,
        accumulation_steps=3,
        use_image_num=2,
        poisoned=4,
    ),
    training(
        "caption",
        ("models.latte_t2v.LatteT2V", CAPTIONS),
        dict(
            **latents(3),
            text=normal(2, 7, 20),
            text_mask=lengths(7, [3, 7]),
            drop=array([False, True]),
            null_text=normal(7, 20),
            null_text_mask=lengths(7, 2),
        ),
        count=5,
        max_grad_norm=0.5,
    ),
]
