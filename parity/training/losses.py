# SPDX-License-Identifier: Apache-2.0
"""Cases of `training/losses.py`. Sizes of the nets are those of `step.py`; conditions and drops of every kind."""

from parity.harness.case import Case
from parity.harness.inputs import array, integers, lengths, normal
from parity.training.step import CAPTIONS, LATTE

X = normal(2, 3, 4, 4, 6)  # (N, F, C, H, W)
T = array([3, 977])
DROP = array([False, True])
FLOATS = ("fp64", "fp32")  # float32 under every policy of half precision


def prediction(name, model, batch, frames=3, **rest):
    """What a net makes of noisy latents and a batch."""
    inputs = dict(x_t=normal(2, frames, 4, 4, 6), t=T, batch=batch, **rest)
    return Case("predict", inputs=inputs, name=name, parts=dict(model=model))


def latte(condition):
    """A tiny Latte."""
    return "models.latte.Latte", {**LATTE, "condition": condition}


CAPTION = dict(
    text=normal(2, 7, 20),
    text_mask=lengths(7, [3, 7]),
    drop=DROP,
    null_text=normal(7, 20),
    null_text_mask=lengths(7, 2),
)
CASES = [
    Case(
        "posterior_sample",
        inputs=dict(
            mean=normal(2, 3, 4, 4, 6, scale=4.0),
            logvar=normal(2, 3, 4, 4, 6, mean=-1.0),
            noise=normal(2, 3, 4, 4, 6),
            scaling_factor=0.18215,
        ),
        dtypes=FLOATS,
    ),
    Case("drop_text", inputs=dict(text=normal(2, 7, 20), drop=DROP, null_text=normal(7, 20)), name="text"),
    Case(
        "drop_text", inputs=dict(text=normal(2, 3, 7), drop=DROP, null_text=normal(7)), name="mask_of_images"
    ),
    prediction("none", latte("none"), dict(drop=DROP)),
    prediction("class", latte("class"), dict(label=array([2, 5]))),
    prediction(
        "joint",
        latte("class"),
        dict(label=array([2, 5]), image_labels=integers(2, 2, high=7), drop=DROP),
        frames=5,
        use_image_num=2,
    ),
    prediction("text", latte("text"), dict(text=normal(2, 77, 768), drop=DROP, null_text=normal(77, 768))),
    prediction("caption", ("models.latte_t2v.LatteT2V", CAPTIONS), CAPTION),
    prediction(
        "caption_joint",
        ("models.latte_t2v.LatteT2V", CAPTIONS),
        {**CAPTION, "text": normal(2, 3, 7, 20), "text_mask": lengths(7, [[1, 7, 4], [6, 2, 5]])},
        frames=5,
        use_image_num=2,
    ),
]
