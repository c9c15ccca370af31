# SPDX-License-Identifier: Apache-2.0
"""The encoder of T5 (v1.1-XXL reads LatteT2V's captions): transformers, whose names are ours, and mindone.

Symbols: V vocabulary, D width, N heads, K width of a head, F MLP width, B buckets of relative positions, i block.
The embedding has two names, and files hold either or both. mindone up to 0.3.0 saved one table and, depending on
the version, looked for the other, so "mindone-t5" writes both.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from converters.errors import ConversionError
from converters.layouts.base import Config, Layout, Model, Rule, Shapes, rename, same

# feed_forward_proj -> what newer files say besides: (is_gated_act, dense_act_fn)
ACTIVATIONS = {"relu": (False, "relu"), "gated-gelu": (True, "gelu_new")}
SHARED, EMBED = "shared.weight", "encoder.embed_tokens.weight"
ATTENTION, MLP = "encoder.block.{i}.layer.0", "encoder.block.{i}.layer.1"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

OUR_RULES = (
    same(SHARED, "V", "D"),
    same(f"{ATTENTION}.SelfAttention.q.weight", "N*K", "D"),
    same(f"{ATTENTION}.SelfAttention.k.weight", "N*K", "D"),
    same(f"{ATTENTION}.SelfAttention.v.weight", "N*K", "D"),
    same(f"{ATTENTION}.SelfAttention.o.weight", "D", "N*K"),
    same(BIAS, "B", "N"),
    same(f"{ATTENTION}.layer_norm.weight", "D"),
    same(f"{MLP}.DenseReluDense.wi.weight", "F", "D", feed_forward_proj="relu"),
    same(f"{MLP}.DenseReluDense.wi_0.weight", "F", "D", feed_forward_proj="gated-gelu"),
    same(f"{MLP}.DenseReluDense.wi_1.weight", "F", "D", feed_forward_proj="gated-gelu"),
    same(f"{MLP}.DenseReluDense.wo.weight", "D", "F"),
    same(f"{MLP}.layer_norm.weight", "D"),
    same("encoder.final_layer_norm.weight", "D"),
)
OTHER_NAME = Rule(EMBED, SHARED, ("V", "D"))
DECODER = (
    Rule("decoder.{*}", None, drop=True, why="only the encoder is used"),
    Rule("lm_head.weight", None, drop=True, why="only the encoder is used"),
)
BOTH_RULES = (OUR_RULES[0], OTHER_NAME, *OUR_RULES[1:], *DECODER)


def _aliases(given: Config) -> Config:
    """`is_gated_act` and `dense_act_fn` of newer files must say what `feed_forward_proj` says."""
    said = {key: given.pop(key) for key in ("is_gated_act", "dense_act_fn") if key in given}
    if not said:
        return given
    fitting = [
        name
        for name, (gated, function) in ACTIVATIONS.items()
        if given.get("feed_forward_proj", name) == name
        and said.get("is_gated_act", gated) == gated
        and said.get("dense_act_fn", function) == function
    ]
    if not fitting:
        raise ConversionError(
            "feed_forward_proj has a value that is unknown or contradicted",
            got={key: given[key] for key in ("feed_forward_proj",) if key in given} | said,
            expected=" or ".join(ACTIVATIONS),
        )
    if len(fitting) == 1:
        given["feed_forward_proj"] = fitting[0]
    return given


def _infer(dims: Mapping[str, int], names: Collection[str]) -> Config:
    """What the tensors show. Not visible, and alike in every published T5 and in transformers' constructor:
    relative_attention_max_distance, layer_norm_epsilon, dropout_rate (of training only), and which activation
    belongs to a gated or an ungated MLP.
    """
    gated = any(".DenseReluDense.wi_" in name for name in names)
    config: Config = {
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.1,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }
    return config | {key: dims[symbol] for symbol, key in SYMBOLS.items() if symbol in dims}


def _dims(config: Config) -> dict[str, int]:
    return {symbol: config[key] for symbol, key in SYMBOLS.items() if key in config}


def _remedies(key: str, dims: Mapping[str, int]) -> str:
    if key == "d_kv":
        return f"the rows of q are no multiple of the {dims.get('N')} heads of {BIAS}: the file is damaged"
    return f"pass --set {key}=..."


def _validate(config: Config) -> None:
    exact = config["relative_attention_num_buckets"] // 4  # distances with a bucket of their own
    if not 0 < exact < config["relative_attention_max_distance"]:
        raise ConversionError(
            "relative_attention_num_buckets and relative_attention_max_distance contradict each other",
            got=f"{config['relative_attention_num_buckets']}, {config['relative_attention_max_distance']}",
            expected="4 buckets or more, and a distance beyond a quarter of them",
        )


SYMBOLS = {
    "V": "vocab_size",
    "D": "d_model",
    "K": "d_kv",
    "F": "d_ff",
    "i": "num_layers",
    "N": "num_heads",
    "B": "relative_attention_num_buckets",
}
# Of transformers' config.json: the decoder, the tokenizer, generation, training, what a call returns.
HARMLESS = """
    architectures bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_factor
    is_encoder_decoder label2id length_penalty max_length min_length n_positions no_repeat_ngram_size
    num_beam_groups num_beams num_decoder_layers num_return_sequences output_attentions output_hidden_states output_past
    output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate scale_decoder_outputs sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache
"""
MODEL = Model(
    name="T5EncoderModel",
    keys={
        **dict.fromkeys(SYMBOLS.values(), "count"),
        "relative_attention_max_distance": "count",
        "dropout_rate": "fraction",
        "layer_norm_epsilon": "fraction",
        "feed_forward_proj": "|".join(ACTIVATIONS),
    },
    ignored={
        **dict.fromkeys(HARMLESS.split(), ()),
        "model_type": ("t5", "mt5"),  # umt5 has a table of positions in every block
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    },
    aliases=_aliases,
    infer=_infer,
    dims=_dims,
    symbols=SYMBOLS,
    remedies=_remedies,
    validate=_validate,
)


def _is_t5(shapes: Shapes) -> bool:
    return any(
        name.startswith("encoder.block.") and (".SelfAttention." in name or ".DenseReluDense." in name)
        for name in shapes
    )


def _is_mindone(shapes: Shapes) -> bool:
    return _is_t5(shapes) and any(name.endswith(".embedding_table") for name in shapes)


def _has_both(shapes: Shapes) -> bool:
    return _is_t5(shapes) and not _is_mindone(shapes) and SHARED in shapes and EMBED in shapes


def _describe(config: Config) -> dict:
    """config.json in transformers' spelling."""
    return {"architectures": [MODEL.name], "model_type": "t5", "is_encoder_decoder": True, **config}


LAYOUTS = (
    Layout(
        "transformers-t5",
        MODEL,
        (*OUR_RULES, replace(OTHER_NAME, tied=True), *DECODER),
        lambda shapes: _is_t5(shapes) and not _has_both(shapes) and not _is_mindone(shapes),
        evidence=f"{SHARED} or {EMBED}, one of them; a decoder is left out",
        describe=_describe,
    ),
    Layout(
        "transformers-t5-both",
        MODEL,
        BOTH_RULES,
        _has_both,
        evidence=f"{SHARED} and {EMBED}; a decoder is left out",
        describe=_describe,
    ),
    Layout(
        "mindone-t5",
        MODEL,
        rename(
            BOTH_RULES,
            (r"^((shared|.*\.embed_tokens|.*\.relative_attention_bias)\.)weight$", r"\1embedding_table"),
        ),
        _is_mindone,
        evidence="shared.embedding_table, encoder.embed_tokens.embedding_table: files of nn.Embedding's time",
        describe=_describe,
    ),
)
OURS = (Layout("ours", MODEL, OUR_RULES, lambda shapes: False, describe=_describe),)
