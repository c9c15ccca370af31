# SPDX-License-Identifier: Apache-2.0
"""Configurations: layers, aliases, and every mistake in one line that says where, what and what to do."""

import pytest
import yaml

from ms_latte.config import CONFIGS, ConfigError, build, dump, find_config, parse, read_yaml
from ms_latte.sample_config import ALIASES, SampleConfig

SHIPPED = sorted(CONFIGS.rglob("inference/*.yaml"))

# What users of the published recipes type: mindone's examples/latte/sample.py.
PUBLISHED = [
    "image_size",
    "num_frames",
    "num_classes",
    "num_samples",
    "model_name",
    "condition",
    "checkpoint",
    "vae_checkpoint",
    "sd_scale_factor",
    "sampling_steps",
    "guidance_scale",
    "device_target",
    "mode",
    "seed",
    "enable_flash_attention",
    "dtype",
    "precision_mode",
    "use_recompute",
    "patch_embedder",
    "ddim_sampling",
    "jit_level",
]


def sample(path=None, **overrides):
    return build(SampleConfig, path, overrides)


def mistake(path=None, **overrides):
    with pytest.raises(ConfigError) as caught:
        sample(path, **overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_published_flag_names_exist():
    assert [name for name in PUBLISHED if name not in SampleConfig.model_fields] == []


def test_aliases_lead_to_keys():
    assert [name for name in ALIASES.values() if name not in SampleConfig.model_fields] == []
    assert [name for name in ALIASES if name in SampleConfig.model_fields] == []


def test_file_then_command_line(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("sampling_steps: 250\nguidance_scale: 7.0\nclass_ids: [1, 2]\n")
    found = sample(path, sampling_steps="20", cfg_scale="1e0")
    assert (found.sampling_steps, found.guidance_scale, found.class_ids) == (20, 1.0, (1, 2))


@pytest.mark.parametrize(
    ("key", "text", "field", "value"),
    [
        ("image_size", "256", "image_size", (256, 256)),
        ("image_size", "256,320", "image_size", (256, 320)),
        ("image_size", "256x320", "image_size", (256, 320)),
        ("image_size", ["256", "320"], "image_size", (256, 320)),
        ("class_ids", ["1,13", "100"], "class_ids", (1, 13, 100)),
        ("output_format", "gif,mp4", "output_format", ("gif", "mp4")),
        ("prompts", "a, b", "prompts", ("a, b",)),
        ("text_prompt", ["a", "b"], "prompts", ("a", "b")),
        ("mode", "0", "mode", 0),
        ("ddim_sampling", "False", "ddim_sampling", False),
        ("sample_method", "DDPM", "sampler", "ddpm"),
        ("use_fp16", "True", "dtype", "fp16"),
        ("use_fp16", "False", "dtype", "fp32"),
        ("condition", "None", "condition", None),
        ("eta", "1e-1", "eta", 0.1),
        ("ckpt", "x.pt", "checkpoint", "x.pt"),
    ],
)
def test_values_as_users_write_them(key, text, field, value):
    assert getattr(sample(**{key: text}), field) == value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_frams", "3", "did you mean num_frames?"),
        ("cfg_scal", "3", "did you mean cfg_scale?"),
        ("zzz", "3", "--help lists all keys"),
        ("num_frames", "many", "--num_frames: got 'many'"),
        ("num_frames", "0", "1 or more"),
        ("sampling_steps", "1001", "at most 1000"),
        ("image_size", "0", "1 or more"),
        ("image_size", "1,2,3", "--image_size"),
        ("sampler", "pndm", "'ddpm', 'ddim', 'euler' or 'dpm++2m'"),
        ("condition", "image", "'none', 'class' or 'text'"),
        ("dtype", "fp8", "'fp32', 'fp16' or 'bf16'"),
        ("mode", "2", "0 or 1"),
        ("eta", "1.5", "from 0 to 1"),
        ("guidance_scale", "-1", "above 0"),
        ("guidance_scale", "nan", "above 0"),
        ("seed", "-1", "from 0 to"),
        ("class_ids", "-1", "from 0"),
        ("output_format", "avi", "'gif', 'mp4', 'png' or 'latents'"),
        ("output_format", "gif,gif", "different formats"),
        ("device_target", "GPU", "no GPU formulations"),
        ("device_target", "NPU", "expected CPU or Ascend"),
        ("ddim_sampling", "maybe", "boolean"),
    ],
)
def test_one_wrong_value(key, value, words):
    assert words in mistake(**{key: value})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (dict(eta="0.5", ddim_sampling="False"), "eta 0.5 belongs to ddim"),
        (dict(sampler="ddpm", ddim_sampling="True"), "say two things"),
        (dict(prompts="a", prompt_file="b"), "exclude each other"),
        (dict(prompts="a", class_ids="1"), "exclude each other"),
        (dict(embeddings="a", save_embeddings="b"), "leave one out"),
        (dict(latents_path="a", noise_path="b"), "no use beside it"),
        (dict(make_demo="True", checkpoint="a"), "leave checkpoint"),
        (dict(cfg_scale="1", guidance_scale="2"), "mean the same"),
    ],
)
def test_what_does_not_fit_together(overrides, words):
    assert words in mistake(**overrides)


def test_the_command_line_may_change_the_sampler_of_a_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("ddim_sampling: True\n")
    assert sample(path, sampler="ddpm").method == "ddpm"
    path.write_text("sampler: euler\n")
    assert sample(path, ddim_sampling="False").method == "ddpm"


def test_all_mistakes_are_told_at_once():
    found = mistake(num_frames="0", seed="x")
    assert "--num_frames" in found and "--seed" in found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nsampling_stps: 3\n", "unknown key a"),
        ("seed: 1\nsampling_stps: 3\n", ":2: unknown key sampling_stps; did you mean sampling_steps?"),
        ("seed: 1\nseed: 2\n", ":2: seed stands twice, first at"),
        ("- 1\n- 2\n", "got a list"),
        ("seed: [1\n", "not valid yaml"),
        ("seed: 1\n\nnum_frames: x\n", ":3: num_frames: got 'x'"),
    ],
)
def test_mistakes_of_a_file_name_its_line(tmp_path, text, words):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert words in mistake(path) and "a.yaml" in mistake(path)


def test_an_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "a.yaml") == {} and sample(tmp_path / "a.yaml") == sample()


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        sample().seed = 3


def test_the_resolved_configuration_builds_itself(tmp_path):
    first = sample(image_size="64,96", class_ids="3,4", guidance_scale="2")
    (tmp_path / "config.yaml").write_text(dump(first))
    assert sample(tmp_path / "config.yaml") == first
    assert set(yaml.safe_load(dump(first))) == set(SampleConfig.model_fields)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid_and_show_their_command(path):
    build(SampleConfig, path)
    assert path.read_text().startswith(f"# python -m ms_latte.sample -c configs/inference/{path.name}")


def test_shipped_configurations_are_those_of_the_recipes():
    assert {"sky", "ffs", "taichi", "ucf101", "t2v", "t2i", "demo"} <= {path.stem for path in SHIPPED}
    assert (sample(find_config("sky.yaml")).method, sample(find_config("sky")).sampling_steps) == (
        "ddpm",
        250,
    )
    assert sample(find_config("ucf101.yaml")).guidance_scale == 7.0
    assert sample(find_config("t2v.yaml")).image_size == (512, 512)
    assert sample(find_config("t2i.yaml")).num_frames == 1


@pytest.mark.parametrize(
    "path", ["configs/inference/sky.yaml", "inference/sky.yaml", "sky.yaml", "sky", "x/configs/inference/sky"]
)
def test_a_configuration_is_found_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(path) == CONFIGS / "inference" / "sky.yaml"


def test_a_file_as_given_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sky.yaml").write_text("seed: 1\n")
    assert sample(find_config("sky.yaml")).seed == 1


@pytest.mark.parametrize("path", ["skyy.yaml", "../config.py", "/sky.yaml"])
def test_a_missing_configuration_lists_the_shipped_ones(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"configs/inference/sky\.yaml"):
        find_config(path)


def command_line(*words):
    return parse(SampleConfig, list(words), "sample", "", "")


def test_command_line():
    path, values = command_line(
        "-c", "x", "-m", "Latte-XL/2", "--class_ids", "1", "3", "--prompt", "a b", "--seed=5"
    )
    assert path == "x"
    assert values == {"model_name": "Latte-XL/2", "class_ids": ["1", "3"], "prompt": ["a b"], "seed": "5"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num_frams", "3"), "did you mean num_frames"),
        (("--num_frams=3",), "did you mean num_frames"),
        (("--seed",), "expected one argument"),
        (("stray",), "'stray'"),
        (("--checkpoint=--",), "expected"),
        (("--see", "3"), "did you mean seed"),
    ],
)
def test_mistakes_of_the_command_line(words, message):
    with pytest.raises(ConfigError, match=message):
        build(SampleConfig, None, command_line(*words)[1])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        command_line("--help")
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in SampleConfig.model_fields)
    assert "{ddpm,ddim,euler,dpm++2m}" in shown and "(default 50)" in shown and "True|False" in shown


def test_a_file_of_prompts_replaces_those_of_the_configuration(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("prompts: [a dog]\n")
    config = build(SampleConfig, path, {"prompt_file": "more.txt"})
    assert (config.prompts, config.prompt_file) == ((), "more.txt")
