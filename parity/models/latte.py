# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/latte.py`. Tiny nets have every dimension different; the thin net has the full depth."""

from parity.harness.case import Case
from parity.harness.inputs import Seed, array, integers, normal

TINY = dict(input_size=(8, 12), hidden_size=48, depth=4, num_heads=3, num_frames=3, num_classes=7)
TIMES = array([3, 977])
X = normal(2, 3, 4, 8, 12)
TABLES = ("pos_embed", "temp_embed")


def net(name, init=None, inputs=None, **rest):
    """A tiny whole net."""
    return Case(
        "Latte", {**TINY, **(init or {})}, {"x": X, "t": TIMES, **(inputs or {})}, name, net="Latte", **rest
    )


CASES = [
    net("none"),
    net("class", dict(condition="class"), dict(y=array([2, 7]))),
    net(
        "flash",
        dict(condition="class", attention="flash"),
        dict(y=array([2, 7])),
        dtypes=("fp16", "bf16"),
    ),
    net("dropped", dict(condition="class"), dict(y=array([2, 5]), drop_ids=array([False, True]))),
    net("text", dict(condition="text"), dict(text_embedding=normal(2, 77, 768, scale=0.2))),
    net("joint", inputs=dict(x=normal(2, 5, 4, 8, 12), use_image_num=2)),
    net(
        "joint_class",
        dict(condition="class"),
        dict(x=normal(2, 5, 4, 8, 12), use_image_num=2, y=array([2, 7]), y_image=integers(2, 2, high=7)),
    ),
    net(
        "guidance",
        dict(condition="class"),
        dict(x=normal(4, 3, 4, 8, 12), t=array([3, 977, 3, 977]), y=array([2, 5, 7, 7]), cfg_scale=7.0),
        method="forward_with_cfg",
    ),
    net(
        "guidance_all",
        dict(condition="class"),
        dict(x=normal(2, 3, 4, 8, 12), t=array([3, 3]), y=array([2, 7]), cfg_scale=4.0, guided_channels=None),
        method="forward_with_cfg",
    ),
    net("fewer_frames", inputs=dict(x=normal(2, 2, 4, 8, 12))),
    net("resized", inputs=dict(x=normal(2, 5, 4, 12, 10)), keep=TABLES),
    net("one_frame", inputs=dict(x=normal(2, 1, 4, 8, 12))),
    net("no_sigma", dict(learn_sigma=False, patch_size=4)),
    net("strided", dict(pixel_order="strided")),
    net("all_half", islands="compute", dtypes=("fp16", "bf16")),
    Case(
        "init_weights", inputs=dict(rng=Seed(11)), parts=dict(model=("Latte", {**TINY, "condition": "class"}))
    ),
    Case(
        "Latte",
        dict(
            input_size=(6, 8),
            hidden_size=72,
            depth=28,
            num_heads=4,
            num_frames=3,
            num_classes=7,
            condition="class",
        ),
        dict(x=normal(2, 3, 4, 6, 8), t=TIMES, y=array([2, 7])),
        "thin",
        size="thin",
        net="Latte",
    ),
]
