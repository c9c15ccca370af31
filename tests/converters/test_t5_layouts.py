# SPDX-License-Identifier: Apache-2.0
"""T5 layouts: the listings of v1.1-XXL, both ways, without weights; transformers as the judge of names, shapes and
numbers; the two names of the embedding; inference of the configuration.
"""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from converters.errors import ConversionError
from converters.layouts import candidates, choose
from converters.layouts.t5 import BIAS, EMBED, LAYOUTS, MODEL, OURS, SHARED
from converters.stream import TensorEntry
from tests.converters.listings import arrays_of, entries_of, listing, same_bits, shapes_of, unread
from tests.converters.test_vae_layouts import random_tensors, read

BY_NAME = {layout.name: layout for layout in LAYOUTS}
HOME = OURS[0]
XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
}
TINY = XXL | {
    "vocab_size": 29,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 17,
    "num_layers": 3,
    "num_heads": 7,
    "relative_attention_num_buckets": 10,
}
UNGATED = TINY | {"feed_forward_proj": "relu"}
TABLES = ("shared.embedding_table", "encoder.embed_tokens.embedding_table")
NAMES = {  # of the one embedding, in the order in which a layout writes them
    "transformers-t5": (SHARED,),
    "transformers-t5-both": (SHARED, EMBED),
    "mindone-t5": TABLES,
}


def build(config, name="T5EncoderModel"):
    """transformers' model of one of our configurations, with weights that show every mistake."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.T5Config(**config)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def build_on_meta(config, name="T5EncoderModel"):
    with torch.device("meta"):
        return build(config, name)


def almost_unread(shapes):
    """Entries that cannot be read but for the embedding, whose two names are compared: zeros, one byte each."""
    entries = unread(shapes)
    for name in {SHARED, EMBED, *TABLES} & shapes.keys():
        zeros = np.broadcast_to(np.uint8(0), shapes[name])
        entries[name] = TensorEntry("U8", zeros.shape, lambda zeros=zeros: zeros)
    return entries


# Listings of the real model


@pytest.mark.parametrize("name", BY_NAME)
def test_listing_goes_both_ways(name):
    layout, shapes = BY_NAME[name], listing(name)
    assert choose(shapes, None, {}, "t5") is layout
    config = layout.resolve(shapes, {}, "")
    assert config == XXL
    ours, extras, notes = layout.to_ours(almost_unread(shapes), config)
    assert shapes_of(ours) == listing("transformers-t5") and (extras, notes) == ({}, [])
    theirs, left, notes = layout.to_theirs(ours, {}, config)
    assert shapes_of(theirs) == shapes and (left, notes) == ({}, [])


def test_listings_are_what_transformers_and_mindspore_name():
    from mindspore import nn

    model = build_on_meta(XXL)
    both = shapes_of(model.state_dict())
    assert len(both) == 220 and listing("transformers-t5-both") == both
    assert listing("transformers-t5") == shapes_of(dict(model.named_parameters()))  # each tensor once
    (table,) = nn.Embedding(3, 4).parameters_dict()
    embeddings = [
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, torch.nn.Embedding)
    ]
    renamed = {f"{path}.weight": f"{path}.{table}" for path in embeddings}
    assert len(renamed) == 3
    assert listing("mindone-t5") == {renamed.get(name, name): shape for name, shape in both.items()}


@pytest.mark.parametrize("name", BY_NAME)
def test_listing_is_detected_as_one_layout_of_all_families(name):
    shapes = listing(name)
    assert [(family.name, layout.name) for family, layout in candidates(shapes)] == [("t5", name)]


@pytest.mark.parametrize(
    "changes",
    [{}, {"feed_forward_proj": "relu"}, {"num_layers": 1, "d_kv": 1}, {"num_heads": 1, "d_model": 5}],
    ids=str,
)
def test_table_is_that_of_transformers(changes):
    config = TINY | changes
    shapes = shapes_of(dict(build_on_meta(config).named_parameters()))
    layout = BY_NAME["transformers-t5"]
    assert layout.resolve(shapes, {}, "") == config
    assert shapes_of(layout.to_ours(unread(shapes), config)[0]) == shapes


# Weights


@pytest.mark.parametrize("config", [TINY, UNGATED], ids=["gated", "ungated"])
@pytest.mark.parametrize(("first", "second"), itertools.product(LAYOUTS, LAYOUTS))
def test_random_weights_there_and_back(first, second, config):
    tensors = random_tensors(HOME, config)
    start, _, _ = first.to_theirs(tensors, {}, config)
    ours, found = read(first, start)
    assert found == config
    assert same_bits(arrays_of(ours), arrays_of(tensors))
    assert same_bits(arrays_of(first.to_theirs(ours, {}, config)[0]), arrays_of(start))
    over, _ = read(second, second.to_theirs(ours, {}, config)[0])
    assert same_bits(arrays_of(first.to_theirs(over, {}, config)[0]), arrays_of(start))


@pytest.mark.parametrize("config", [TINY, UNGATED], ids=["gated", "ungated"])
@pytest.mark.parametrize("name", BY_NAME)
def test_every_single_missing_name_is_noticed(name, config):
    layout = BY_NAME[name]
    shapes = shapes_of(layout.to_theirs(random_tensors(HOME, config), {}, config)[0])
    for missing in shapes.keys() - set(NAMES[name]):
        rest = {other: shape for other, shape in shapes.items() if other != missing}
        assert choose(rest, None, {}, "t5") is layout
        with pytest.raises(ConversionError, match=rf"missing \(1\):\s+{re.escape(missing)} "):
            layout.resolve(rest, {}, "")
    rest = {other: shape for other, shape in shapes.items() if other not in NAMES[name]}
    with pytest.raises(ConversionError, match=r"missing \(\d\):\s+" + re.escape(NAMES[name][0])):
        choose(rest, None, {}, "t5").resolve(rest, {}, "")


@torch.no_grad()
def outputs(model):
    encoder = model.get_encoder()
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [28, 7, 1, 8, 2, 0, 0, 0]])
    return encoder(tokens, attention_mask=(tokens != 0).long()).last_hidden_state


def assert_same_outputs(a, b):
    expected = outputs(b)
    assert torch.isfinite(expected).all() and torch.equal(outputs(a), expected)


@pytest.mark.parametrize("config", [TINY, UNGATED], ids=["gated", "ungated"])
@pytest.mark.parametrize("layout", [*LAYOUTS, HOME], ids=lambda layout: layout.name)
def test_the_network_computes_the_same_numbers(tmp_path, layout, config):
    """Back from every layout into transformers' model; what has its names is loaded by transformers itself."""
    model = build(config)
    theirs, _, _ = layout.to_theirs(
        entries_of({name: p.detach() for name, p in model.named_parameters()}), {}, config
    )
    ours, _ = read(layout, entries_of(arrays_of(theirs)))
    by_us = build(config)
    by_us.load_state_dict(
        {
            name: torch.from_numpy(arrays_of(ours)[SHARED if name == EMBED else name])
            for name in by_us.state_dict()
        }
    )
    assert_same_outputs(by_us, model)
    if layout.name == "mindone-t5":
        return
    save_file(arrays_of(theirs), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(layout.describe(config)))
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_outputs(loaded, model)
    loaded.save_pretrained(tmp_path / "again")
    found, _ = MODEL.arguments(json.loads((tmp_path / "again" / "config.json").read_text()), "config.json")
    assert MODEL.require(found, {}) == config


@pytest.mark.parametrize("config", [TINY, UNGATED], ids=["gated", "ungated"])
def test_a_decoder_is_left_out(config):
    full = build(config | {"num_decoder_layers": 2}, "T5ForConditionalGeneration")
    state = entries_of(full.state_dict())
    layout = choose(shapes_of(state), None, {}, "t5")
    assert layout.name == "transformers-t5-both"
    assert layout.resolve(shapes_of(state), {}, "") == config
    ours, extras, notes = layout.to_ours(state, config)
    assert extras == {} and len(notes) == 1 and re.match(r"dropped .*only the encoder is used", notes[0])
    encoder = build(config)
    encoder.load_state_dict(
        {name: torch.from_numpy(array) for name, array in arrays_of(ours).items()}, strict=False
    )
    assert_same_outputs(encoder, full)
    del state[EMBED]  # as transformers saves it today
    assert choose(shapes_of(state), None, {}, "t5").name == "transformers-t5"
    assert same_bits(arrays_of(read(BY_NAME["transformers-t5"], state)[0]), arrays_of(ours))


# The two names of the embedding


@pytest.mark.parametrize(
    ("wanted", "one", "other"),
    [("transformers-t5", SHARED, EMBED), ("transformers-t5-both", SHARED, EMBED), ("mindone-t5", *TABLES)],
)
def test_either_name_or_both_with_equal_bits(wanted, one, other):
    layout = BY_NAME[wanted]
    tensors = random_tensors(HOME, TINY)
    entries = dict(layout.to_theirs(tensors, {}, TINY)[0])
    both = entries | {other: entries[one]}
    for absent in (one, other):
        alone = {name: entry for name, entry in both.items() if name != absent}
        chosen = choose(shapes_of(alone), None, {}, "t5")
        assert chosen.name == wanted.removesuffix("-both")
        ours, config = read(chosen, alone)
        assert config == TINY and same_bits(arrays_of(ours), arrays_of(tensors))
    ours, _ = read(layout, both)
    assert same_bits(arrays_of(ours), arrays_of(tensors))
    differing = entries[one].read().copy()
    differing[-1, -1] = np.nextafter(differing[-1, -1], 9, dtype=np.float32)
    with pytest.raises(ConversionError, match="two that differ"):
        read(layout, both | entries_of({other: differing}))
    halved = entries_of({other: differing[:-1]})
    with pytest.raises(ConversionError, match=r"mis-shaped \(1\)"):
        read(layout, both | halved)


# The configuration


def test_published_config_files():
    """The keys of google/t5-v1_1-xxl and t5-small, and everything that transformers writes today."""
    from transformers import T5Config

    published = {
        "_name_or_path": "/home/patrick/hugging_face/t5/t5-v1_1-xxl",
        "architectures": ["T5Model"],
        "d_ff": 10240,
        "d_kv": 64,
        "d_model": 4096,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "n_positions": 512,
        "num_decoder_layers": 24,
        "num_heads": 64,
        "num_layers": 24,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"num_beams": 4}},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.21.1",
        "use_cache": True,
        "vocab_size": 32128,
    }
    layout, shapes = BY_NAME["transformers-t5"], listing("transformers-t5")
    config, _ = MODEL.arguments(published, "config.json")
    assert layout.resolve(shapes, config, "config.json") == XXL
    config, _ = MODEL.arguments(T5Config(**XXL).to_dict(), "config.json")
    assert MODEL.require(config, {}) == XXL
    for key, value in (
        ("model_type", "umt5"),
        ("is_decoder", True),
        ("quantization_config", {"bits": 8}),
        ("pruned_heads", {"0": [1]}),
    ):
        with pytest.raises(ConversionError, match=f"{key} changes the network"):
            MODEL.arguments(published | {key: value}, "config.json")
    with pytest.raises(ConversionError, match="feed_forward_proj has a wrong value"):
        MODEL.arguments(published | {"feed_forward_proj": "gated-silu"}, "config.json")
    with pytest.raises(ConversionError, match="no argument 'd_vk'"):
        MODEL.arguments({"d_vk": 64}, "config.json")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"is_gated_act": True}, "gated-gelu"),
        ({"dense_act_fn": "relu"}, "relu"),
        ({"is_gated_act": False, "dense_act_fn": "relu", "feed_forward_proj": "relu"}, "relu"),
        ({"is_gated_act": True, "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu"}, "gated-gelu"),
        ({"is_gated_act": True, "feed_forward_proj": "relu"}, None),
        ({"dense_act_fn": "silu"}, None),
        ({"dense_act_fn": "gelu", "feed_forward_proj": "gated-gelu"}, None),
    ],
)
def test_two_spellings_of_the_activation(given, found):
    if found is not None:
        assert MODEL.arguments(given, "config.json")[0] == {"feed_forward_proj": found}
    else:
        with pytest.raises(ConversionError, match="unknown or contradicted"):
            MODEL.arguments(given, "config.json")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"num_layers": 12}, "num_layers: 12 by side.json, 24 in the file"),
        ({"num_heads": 32}, "num_heads: 32 by side.json, 64 in the file"),
        ({"d_kv": 128}, "d_kv: 128 by side.json, 64 in the file"),
        ({"feed_forward_proj": "relu"}, "wi_0.weight .* belongs to feed_forward_proj='gated-gelu'"),
        ({"relative_attention_max_distance": 8}, "contradict each other"),
        ({"num_layers": 10**9}, "asks for .* tensors"),
    ],
)
def test_configuration_against_shapes_names_both(given, line):
    with pytest.raises(ConversionError, match=line):
        BY_NAME["transformers-t5"].resolve(listing("transformers-t5"), given, "side.json")


def test_faults_are_listed():
    layout, shapes = BY_NAME["transformers-t5"], listing("transformers-t5")
    strange = BIAS.replace("block.0", "block.1")  # umt5 has such a table in every block
    with pytest.raises(ConversionError, match=rf"unknown \(1\):\s+{re.escape(strange)}"):
        layout.resolve(shapes | {strange: (32, 64)}, {}, "")
    odd = {
        name: (4095, *s[1:]) if name.endswith((".q.weight", ".k.weight")) else s for name, s in shapes.items()
    }
    with pytest.raises(ConversionError, match=r"mis-shaped \(48\)"):
        layout.resolve(odd, {}, "")
    assert layout.detect(shapes) and not layout.detect({"encoder.conv_in.weight": (1,)})
