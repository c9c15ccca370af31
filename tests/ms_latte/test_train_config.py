# SPDX-License-Identifier: Apache-2.0
"""The schema of the training command: published keys, other publications' spellings, mistakes in one line; the plan."""

import pytest
import yaml

from ms_latte.config import CONFIGS, ConfigError, build, dump, find_config, parse
from ms_latte.train_config import ALIASES, FREE, HOST, TrainConfig
from ms_latte.training.loop import Plan, Position
from ms_latte.training.run_state import differences

SHIPPED = sorted(CONFIGS.glob("training/*.yaml"))

# What users of the published MindSpore recipes type: mindone's examples/latte/train.py and its data yaml.
PUBLISHED = """
    data_config_file dataset_name output_path pretrained_model_path device_target max_device_memory mode use_parallel
    enable_modelarts num_workers json_data_path resume optim betas optim_eps group_strategy weight_decay seed
    warmup_steps clip_checkpoint
    train_batch_size start_learning_rate end_learning_rate decay_steps scheduler dataset_sink_mode sink_size epochs
    init_loss_scale loss_scale_factor scale_window gradient_accumulation_steps use_ema clip_grad max_grad_norm
    use_recompute patch_embedder dtype precision_mode model_name vae_checkpoint sd_scale_factor image_size num_frames
    num_classes enable_flash_attention drop_overflow_update loss_scaler_type ckpt_save_interval ckpt_max_keep step_mode
    profile log_level condition log_interval jit_level data_folder train_data_type sample_stride use_safer_augment
    image_video_joint use_image_num num_parallel_workers max_rowsize shuffle csv_path video_column caption_column
    class_column
"""

# The official repository's configs/*_train.yaml, with the values of its Sky Timelapse file.
OFFICIAL = dict(
    dataset="sky", data_path="/data/sky", pretrained_model_path=None, results_dir="./results", pretrained=None,
    model="Latte-XL/2", num_frames=16, image_size=256, num_sampling_steps=250, frame_interval=3, fixed_spatial=False,
    attention_bias=True, learn_sigma=True, extras=1, save_ceph=True, learning_rate=1e-4, ckpt_every=10000,
    clip_max_norm=0.1, start_clip_iter=20000, local_batch_size=5, max_train_steps=1000000, global_seed=3407,
    num_workers=8, log_every=50, lr_warmup_steps=0, resume_from_checkpoint=None, gradient_accumulation_steps=1,
    num_classes=None, use_compile=False, mixed_precision=False, enable_xformers_memory_efficient_attention=False,
    gradient_checkpointing=False,
)  # fmt: skip


def train(path=None, **overrides):
    return build(TrainConfig, path, {"data_folder": "x", **overrides} if path is None else overrides)


def mistake(path=None, **overrides):
    with pytest.raises(ConfigError) as caught:
        train(path, **overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_published_flag_names_exist():
    known = {*TrainConfig.model_fields, *ALIASES}
    published = PUBLISHED.split()
    assert len(published) > 60 and [name for name in published if name not in known] == []


def test_aliases_lead_to_keys():
    assert [name for name in ALIASES.values() if name not in TrainConfig.model_fields] == []
    assert [name for name in ALIASES if name in TrainConfig.model_fields] == []
    assert [name for name in (*FREE, *HOST) if name not in TrainConfig.model_fields] == []


def test_the_official_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "sky_train.yaml"
    values = {
        key: value for key, value in OFFICIAL.items() if key != "pretrained"
    }  # two names of one thing here
    path.write_text(yaml.safe_dump(values))
    found = train(path)
    assert (found.dataset_name, found.data_folder, found.sample_stride) == ("sky", "/data/sky", 3)
    assert (found.condition, found.train_batch_size, found.seed, found.ckpt_every) == ("none", 5, 3407, 10000)
    assert (found.start_clip_iter, found.max_grad_norm, found.clips) == (20000, 0.1, True)
    assert (found.dtype, found.use_recompute, found.resume, found.output_path) == (
        "fp32",
        False,
        False,
        "./results",
    )


def test_data_keys_may_stand_in_a_file_of_their_own(tmp_path):
    (tmp_path / "data.yaml").write_text("data_folder: here\nsample_stride: 2\nnum_frames: 8\n")
    (tmp_path / "train.yaml").write_text("data_config_file: data.yaml\nnum_frames: 16\n")
    found = train(tmp_path / "train.yaml")
    assert (found.data_folder, found.sample_stride, found.num_frames) == ("here", 2, 16)
    (tmp_path / "data.yaml").write_text("data_foldr: here\n")
    assert "data.yaml:1: unknown key data_foldr; did you mean data_folder?" in mistake(
        tmp_path / "train.yaml"
    )


@pytest.mark.parametrize(
    ("key", "text", "field", "value"),
    [
        ("betas", "0.9,0.99", "betas", (0.9, 0.99)),
        ("betas", ["0.9", "0.99"], "betas", (0.9, 0.99)),
        ("betas", "[0.9, 0.99]", "betas", (0.9, 0.99)),
        ("resume", "True", "resume", True),
        ("resume", "no", "resume", False),
        ("resume", "None", "resume", False),
        ("resume", "output/a", "resume", "output/a"),
        ("max_train_steps", "1e6", "max_train_steps", 1000000),
        ("image_size", "256x320", "image_size", (256, 320)),
        ("extras", "78", "condition", "text"),
        ("mixed_precision", "True", "dtype", "fp16"),
        ("mixed_precision", "bf16", "dtype", "bf16"),
        ("mode", "graph", "mode", 0),
        ("log_level", "logging.INFO", "log_level", "info"),
        ("set", ["depth=2"], "overrides", ("depth=2",)),
    ],
)
def test_spellings(key, text, field, value):
    assert getattr(train(**{key: text}), field) == value


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"lerning_rate": "1"}, "did you mean learning_rate?"),
        ({"train_batch_size": "0"}, "expected 1 or more"),
        ({"betas": "1,0.9"}, "below 1"),
        ({"betas": "0.9"}, "betas"),
        ({"ema_decay": "2"}, "0 to 1"),
        ({"scheduler": "cosin"}, "cosine_decay"),
        ({"drop_overflow_update": "False"}, "True"),
        ({"device_target": "GPU"}, "no GPU formulations"),
        ({"num_classes": "5"}, "condition class"),
        ({"start_clip_iter": "5", "clip_grad": "False"}, "two things"),
        ({"learning_rate": "1", "start_learning_rate": "2"}, "mean the same"),
        ({"sink_size": "0"}, "-1"),
        ({"fixed_spatial": "True"}, "False"),
        ({"data_folder": None}, "data_folder is missing"),
        ({"loss_scale_factor": "1"}, "above 1"),
        ({"max_train_steps": "1.5"}, "max_train_steps"),
    ],
)
def test_mistakes(overrides, told):
    assert told in mistake(**overrides)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files(path):
    """They open with their command, build, and stay what they are when dumped and read again."""
    first, *_ = path.read_text().splitlines()
    assert first.startswith("# python -m ms_latte.")
    needed = {} if "data_folder" in yaml.safe_load(path.read_text()) else {"data_folder": "x"}
    found = build(TrainConfig, path, needed)
    again = build(TrainConfig, None, yaml.safe_load(dump(found)))
    assert again == found
    assert find_config(f"configs/training/{path.name}") == path


def test_published_recipes():
    sky = build(TrainConfig, find_config("configs/training/sky_video.yaml"))
    assert (sky.start_learning_rate, sky.scheduler, sky.train_batch_size, sky.epochs) == (
        1e-4,
        "constant",
        5,
        3000,
    )
    assert (sky.weight_decay, sky.use_ema, sky.clips, sky.ckpt_save_interval, sky.num_frames) == (
        0,
        True,
        False,
        50,
        16,
    )
    cached = build(TrainConfig, find_config("sky_numpy_video.yaml"))
    assert (cached.num_frames, cached.sample_stride, cached.train_batch_size) == (128, 1, 1)
    assert (cached.gradient_accumulation_steps, cached.start_learning_rate, cached.use_recompute) == (
        4,
        2e-5,
        True,
    )


def test_every_key_has_an_explanation_on_the_help_page(capsys):
    with pytest.raises(SystemExit):
        parse(TrainConfig, ["--help"], "train", "", "")
    text = capsys.readouterr().out
    for group in ("model", "data", "optimisation", "device", "output"):
        assert f"\n{group}:\n" in text
    assert all(f"--{name} " in text for name in TrainConfig.model_fields)


# ------------------------------------------------------------------------------------------------- the plan


def test_rate_decay_and_clipping_count_updates():
    config = train(
        gradient_accumulation_steps="2", warmup_steps="2", start_clip_iter="1", epochs="3", ema_warmup="True"
    )
    plan = Plan(config, 4)
    assert plan.steps == 12 and plan.decay_steps == 4
    told = [plan.scalars(total) for total in range(5)]
    assert [float(one["lr"]) for one in told] == pytest.approx([5e-5, 5e-5, 1e-4, 1e-4, 1e-4])
    assert [bool(one["clip"]) for one in told] == [False, False, True, True, True]
    assert told[0]["ema_decay"] == told[1]["ema_decay"] < told[2]["ema_decay"]
    assert [plan.completes(total) for total in (1, 2, 3, 4)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (dict(ckpt_save_interval="2", epochs="3"), {6: "e2", 9: "e3"}),
        (dict(ckpt_save_interval="2", epochs="3", max_train_steps="7"), {6: "e2", 7: "s7"}),
        (dict(ckpt_save_interval="4", step_mode="True", epochs="3"), {4: "s4", 8: "s8", 9: "s9"}),
        (dict(ckpt_every="5", epochs="3"), {5: "s5", 9: "s9"}),
    ],
)
def test_when_checkpoints_are_due(overrides, names):
    plan, position, found = Plan(train(**overrides), 3), Position(), {}
    while position.total < plan.steps:
        position = position.after(3)
        if plan.saves(position):
            found[position.total] = plan.saves(position)
    assert found == names


def test_numbers_are_read_before_a_checkpoint():
    plan = Plan(train(dataset_sink_mode="True", sink_size="10", ckpt_every="4", sample_every="6"), 5)
    position, reads, pending = Position(), [], []
    for _ in range(20):
        position = position.after(5)
        pending.append(position)
        if plan.reads(position, pending):
            reads.append(position.total)
            pending = []
    assert reads == [4, 6, 8, 12, 16, 18, 20]
    assert Plan(train(dataset_sink_mode="True"), 5).reading == 5
    assert Plan(train(), 5).reading == 1


# ------------------------------------------------------------------------------------------------- what may change


def facts(cards=1, **overrides):
    return {
        "config": train(**overrides).model_dump(mode="json"),
        "cards": cards,
        "model": {"kind": "Latte", "config": {"depth": 2}},
        "data": {"clips": 3},
        "schedule": {},
    }


def test_differences_are_named():
    assert differences(facts(), facts(), FREE, HOST) == ([], [])
    free = dict(epochs="9", log_interval="7", ckpt_every="3", num_parallel_workers="3", output_path="b")
    assert differences(facts(), facts(**free), FREE, HOST) == ([], [])
    assert differences(facts(), facts(mode="0"), FREE, HOST) == ([], ["mode None there, 0 now"])
    refused, _ = differences(facts(), facts(seed="1", weight_decay="0.1"), FREE, HOST)
    assert refused == ["weight_decay 0.0 there, 0.1 now", "seed 3407 there, 1 now"]
    other = {**facts(), "model": {"kind": "Latte", "config": {"depth": 4}}, "data": {"clips": 4}}
    refused, _ = differences(facts(), other, FREE, HOST)
    assert refused == ["model config.depth 2 there, 4 now", "data clips 3 there, 4 now"]


def test_cards_and_batch_may_change_together():
    one = facts(cards=1, train_batch_size="8")
    assert differences(one, facts(cards=4, train_batch_size="2"), FREE, HOST)[0] == []
    assert differences(one, facts(cards=4, train_batch_size="8"), FREE, HOST)[0] == [
        "cards times train_batch_size 8 there, 32 now"
    ]
