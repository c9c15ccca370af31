# SPDX-License-Identifier: Apache-2.0
"""Bugs of checkpoint loading (`ms_latte/checkpoint.py`): what reaches which parameter."""

from parity.mutants import gates, mutant

LATTE, T2V = "latte.Latte-class", "latte_t2v.LatteT2V-mask2d"
BITS = gates("G0 G1 G2", "G0 G2")
FILL = "checkpoint._fill"
EACH = "parameter.set_data(_value(tensors[name], parameter, precision))"
ALL = "for name, parameter in parameters.items():"


def _round_weights(model):
    import mindspore as ms
    from mindspore import ops

    for parameter in model.get_parameters():
        parameter.set_data(ops.cast(ops.cast(parameter.value(), ms.bfloat16), parameter.dtype))


MUTANTS = [
    mutant(
        "weight_transposed",
        "square weights transposed on loading",
        "attention.Attention-space",
        BITS,
        (
            FILL,
            EACH,
            "value = tensors[name].T if len(set(parameter.shape)) == 1 else tensors[name]\n"
            "        parameter.set_data(_value(value, parameter, precision))",
        ),
    ),
    mutant(
        "label_table_skipped",
        "the label table looked up under another name and left as it was (mindone)",
        LATTE,
        BITS,
        (FILL, EACH, f'if "embedding_table" not in name: {EACH}'),
    ),
    mutant(
        "biases_skipped",
        "biases left at zero",
        "mlp.Mlp",
        BITS,
        (FILL, EACH, f'if not name.endswith("bias"): {EACH}'),
    ),
    mutant(
        "fused_order",
        "fused query, key and value rows stored as (k, q, v)",
        "attention.Attention-space",
        BITS,
        (
            FILL,
            EACH,
            "q, k, v = np.split(np.asarray(tensors[name]), 3) if 'qkv' in name else [tensors[name]] * 3\n"
            "        value = np.concatenate([k, q, v]) if 'qkv' in name else q\n"
            "        parameter.set_data(_value(value, parameter, precision))",
        ),
    ),
    mutant(
        "queries_and_keys",
        "weights of queries and keys exchanged",
        "attention.MultiHeadAttention-self",
        BITS,
        (
            FILL,
            "tensors[name], parameter",
            'tensors[name.replace("to_q", "to_#").replace("to_k", "to_q").replace("to_#", "to_k")], parameter',
        ),
    ),
    mutant(
        "blocks_shifted",
        "every block gets the weights of the block before it",
        LATTE,
        BITS,
        (
            FILL,
            "tensors[name], parameter",
            'tensors[name.replace("blocks.1.", "blocks.0.").replace("blocks.2.", "blocks.1.")], parameter',
        ),
    ),
    mutant(
        "temporal_blocks_from_spatial",
        "temporal blocks get the weights of the spatial ones",
        T2V,
        BITS,
        (
            FILL,
            "tensors[name], parameter",
            'tensors[name.replace("temporal_transformer", "transformer")], parameter',
        ),
    ),
    mutant(
        "temporal_table_zero",
        "temporal positions stay zero (early mindone)",
        LATTE,
        BITS,
        (FILL, EACH, f'{EACH} if name != "temp_embed" else parameter.set_data(0 * parameter)'),
    ),
    mutant(
        "stored_table_recomputed",
        "the stored position table replaced by the formula",
        LATTE,
        BITS,
        (FILL, EACH, f'if name != "pos_embed": {EACH}'),
    ),
    mutant(
        "patch_kernel_channels_last",
        "the patch kernel read as (D, p, p, C)",
        "layers.PatchConv",
        BITS,
        (
            FILL,
            EACH,
            "value = np.asarray(tensors[name])\n"
            "        value = value.transpose(0, 2, 3, 1).reshape(value.shape) if value.ndim == 4 else value\n"
            "        parameter.set_data(_value(value, parameter, precision))",
        ),
    ),
    mutant(
        "bf16_weights",
        "weights rounded to bf16 on loading",
        LATTE,
        gates("G0 G1 G2", "G0", "-"),
        change=_round_weights,
        note="bf16 weights are the weights of a bf16 model: no bug there",
    ),
    mutant(
        "float16_weights",
        "weights passed through float16 on loading",
        "mlp.Mlp",
        gates("G0 G1 G2", "-"),
        (
            FILL,
            "tensors[name], parameter",
            "np.asarray(tensors[name]).astype(np.float16).astype(np.float32), parameter",
        ),
        note="float16 holds half-precision weights of ordinary size exactly",
    ),
    mutant(
        "shared_modulation",
        "tables of all blocks loaded from the first (one parameter under many names)",
        T2V,
        BITS,
        (
            FILL,
            EACH,
            "one = 'blocks' in name and 'scale_shift' in name\n"
            "        value = tensors['transformer_blocks.0.scale_shift_table' if one else name]\n"
            "        parameter.set_data(_value(value, parameter, precision))",
        ),
    ),
    mutant(
        "unknown_names_ignored",
        "a loader that ignores names it does not know",
        "mlp.Mlp",
        gates("-", "-"),
        ("checkpoint._check", "if any(groups.values()):", 'if groups["missing"] or groups["mis-shaped"]:'),
        note="the harness loads complete files; strictness is tested in tests/ms_latte/test_checkpoint.py",
    ),
]
