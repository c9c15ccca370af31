# SPDX-License-Identifier: Apache-2.0
"""The T5 encoder, v1.1 ("gated-gelu") and v1.0 ("relu"): it reads the captions of LatteT2V.

Source: arXiv 1910.10683 and transformers `models/t5/modeling_t5.py`, whose parameter names and arguments are kept. Axis
legend: B batch, L tokens, D width (d_model), A heads, K width of a head (d_kv), F width of the MLP (d_ff).

In half precision the residual stream stays in the island type, because T5 overflows float16 there: single channels
grow beyond 65504 from block to block. For the same reason the last product of the MLP and what enters it are float32
under fp16, its weights (`wo`) included, as in transformers; bfloat16 has the range and needs neither.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import initializer

from ms_latte.models.constants import constant
from ms_latte.models.layers import GELU, Embedding, Linear, TokenLayout, merge_heads, split_heads, spread
from ms_latte.models.precision import Precision
from ms_latte.models.primitives import batch_matmul, batch_matmul_t, reduce_mean_keep, softmax
from ms_latte.pretrained import Pretrained

# Bias of a dropped key: its weight becomes 0 in every type, and float16 holds its sum with a logit.
DROPPED = -(2.0**15)


def relative_position_buckets(length, num_buckets, max_distance):
    """Bucket of every pair of tokens: (L, L) int32 array, row query, column key.

    Half of the buckets are for keys behind the query, half for the others. Of each half, the first half holds a
    single distance e each; the other k buckets widen with the logarithm up to max_distance, and the last one holds
    everything beyond. Exact in integers: distance n leaves the j-th of them where (n / e)^k >= (max_distance / e)^j.
    """
    half = num_buckets // 2
    exact, step, of_distance = half // 2, 0, []
    steps = half - exact
    for n in range(length):
        while (
            step < steps - 1 and n**steps * exact ** (step + 1) >= max_distance ** (step + 1) * exact**steps
        ):
            step += 1
        of_distance.append(n if n < exact else exact + step)
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
    return np.array(of_distance, np.int32)[np.abs(relative)] + np.int32(half) * (relative > 0)


def attention_bias(position_bias, attention_mask, batch, precision=Precision()):
    """What every block adds to its logits: positions, and a large negative number at dropped keys.

    position_bias (A, L, L); attention_mask (B, L), 1 for the tokens to keep and 0 for padding, or None -> (B*A, L, L)
    in the island type. A row that keeps no token attends to all of them: its result is finite and of no use.
    """
    A, L = position_bias.shape[:2]
    bias = ops.tile(precision.up(position_bias), (batch, 1, 1))  # (B*A, L, L)
    if attention_mask is None:
        return bias
    mask = ops.cast(attention_mask, precision.island_dtype)
    dropped = (1 - mask) * DROPPED  # (B, L)
    dropped = ops.tile(spread(dropped, batch * A).expand_dims(1), (1, L, 1))  # (B*A, L, L)
    return precision.step(bias + dropped)


class T5LayerNorm(nn.Cell):
    """Division by the root mean square of the last axis, times weight: no mean, no bias. x (..., D) -> (..., D)."""

    def __init__(self, dim, eps, precision=Precision()):
        super().__init__()
        self.dim, self.eps, self.precision = dim, eps, precision
        self.weight = ms.Parameter(initializer("ones", (dim,), precision.dtype))

    def construct(self, hidden_states):
        p = self.precision
        x = p.up(hidden_states)
        scale = ops.rsqrt(reduce_mean_keep(ops.square(x), -1) + constant(self.eps, x))  # (..., 1)
        # MS: tiled, since a broadcast product is slow on the CPU
        scale = ops.tile(scale, (1,) * (x.ndim - 1) + (self.dim,))
        return p.round(x * scale * p.up(self.weight))

    def extend_repr(self):
        return f"dim={self.dim}, eps={self.eps}"


class T5DenseActDense(nn.Cell):
    """Linear, ReLU, Linear without biases, T5 v1.0: (tokens, D) -> (tokens, D), under fp16 in float32."""

    def __init__(self, config, precision=Precision()):
        super().__init__()
        self.wide = _wide(precision)
        self.wi = Linear(config["d_model"], config["d_ff"], bias=False, precision=precision)
        self.wo = Linear(config["d_ff"], config["d_model"], bias=False, precision=self.wide)

    def construct(self, hidden_states):
        return self.wo(self.wide.round(ops.relu(self.wi(hidden_states))))


class T5DenseGatedActDense(nn.Cell):
    """wo (GELU(wi_0 x) * wi_1 x) without biases, T5 v1.1 (arXiv 2002.05202): (tokens, D) -> (tokens, D), under fp16 in
    float32. The GELU is the tanh form, "gelu_new" in transformers."""

    def __init__(self, config, precision=Precision()):
        super().__init__()
        self.wide = _wide(precision)
        self.wi_0 = Linear(config["d_model"], config["d_ff"], bias=False, precision=precision)
        self.wi_1 = Linear(config["d_model"], config["d_ff"], bias=False, precision=precision)
        self.wo = Linear(config["d_ff"], config["d_model"], bias=False, precision=self.wide)
        self.act = GELU("tanh", precision=precision)

    def construct(self, hidden_states):
        gate = self.wide.up(self.act(self.wi_0(hidden_states)))  # (tokens, F)
        return self.wo(self.wide.round(gate * self.wide.up(self.wi_1(hidden_states))))


FEED_FORWARDS = {"relu": T5DenseActDense, "gated-gelu": T5DenseGatedActDense}


class T5LayerFF(nn.Cell):
    """hidden_states + MLP(norm(hidden_states)): (tokens, D) -> (tokens, D) in the island type."""

    def __init__(self, config, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.DenseReluDense = FEED_FORWARDS[config["feed_forward_proj"]](config, precision=precision)
        self.layer_norm = T5LayerNorm(config["d_model"], config["layer_norm_epsilon"], precision=precision)

    def construct(self, hidden_states):
        p = self.precision
        x = self.DenseReluDense(self.layer_norm(hidden_states))
        return p.step(p.up(hidden_states) + p.up(x))


class T5Attention(nn.Cell):
    """Self-attention without biases and without a scale of the logits: hidden_states (B*L, D) -> (B*L, D).

    position_bias (B*A, L, L) from `attention_bias`, the same for all blocks; layout: TokenLayout(B, 1, L). Only
    block 0 has the table of positions (has_relative_attention_bias), which `compute_bias` reads.
    """

    def __init__(self, config, has_relative_attention_bias=False, precision=Precision()):
        super().__init__()
        width = config["num_heads"] * config["d_kv"]
        self.num_heads, self.precision = config["num_heads"], precision
        self.num_buckets = config["relative_attention_num_buckets"]
        self.max_distance = config["relative_attention_max_distance"]
        self.q = Linear(config["d_model"], width, bias=False, precision=precision)
        self.k = Linear(config["d_model"], width, bias=False, precision=precision)
        self.v = Linear(config["d_model"], width, bias=False, precision=precision)
        self.o = Linear(width, config["d_model"], bias=False, precision=precision)
        if has_relative_attention_bias:
            self.relative_attention_bias = Embedding(self.num_buckets, self.num_heads, precision=precision)

    def construct(self, hidden_states, position_bias, layout):
        p = self.precision
        q = split_heads(self.q(hidden_states), layout, self.num_heads)[0]  # (B*A, L, K)
        k = split_heads(self.k(hidden_states), layout, self.num_heads)[0]
        v = split_heads(self.v(hidden_states), layout, self.num_heads)[0]
        logits = p.up(p.round(batch_matmul_t(q, k)))  # (B*A, L, L)
        weights = p.round(softmax(p.step(logits + p.up(position_bias))))
        x = p.round(batch_matmul(weights, v))  # (B*A, L, K)
        return self.o(merge_heads(x, layout, self.num_heads))

    def compute_bias(self, length):
        """What every head adds to the logit of a pair of tokens: (A, L, L)."""
        buckets = _buckets(
            length, self.num_buckets, self.max_distance
        )  # MS: a constant of the graph compiler
        return self.relative_attention_bias(buckets).permute(2, 0, 1)

    def extend_repr(self):
        return f"num_heads={self.num_heads}, num_buckets={self.num_buckets}, max_distance={self.max_distance}"


class T5LayerSelfAttention(nn.Cell):
    """hidden_states + attention(norm(hidden_states)), as `T5Attention`: (B*L, D) -> (B*L, D) in the island type."""

    def __init__(self, config, has_relative_attention_bias=False, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.SelfAttention = T5Attention(config, has_relative_attention_bias, precision=precision)
        self.layer_norm = T5LayerNorm(config["d_model"], config["layer_norm_epsilon"], precision=precision)

    def construct(self, hidden_states, position_bias, layout):
        p = self.precision
        x = self.SelfAttention(self.layer_norm(hidden_states), position_bias, layout)
        return p.step(p.up(hidden_states) + p.up(x))


class T5Block(nn.Cell):
    """Self-attention and MLP, called as `T5Attention`: hidden_states (B*L, D) -> (B*L, D) in the island type."""

    def __init__(self, config, has_relative_attention_bias=False, precision=Precision()):
        super().__init__()
        self.layer = nn.CellList(
            [
                T5LayerSelfAttention(config, has_relative_attention_bias, precision=precision),
                T5LayerFF(config, precision=precision),
            ]
        )

    def construct(self, hidden_states, position_bias, layout):
        return self.layer[1](self.layer[0](hidden_states, position_bias, layout))


class T5Stack(nn.Cell):
    """All blocks and the last norm: inputs_embeds (B, L, D), attention_mask (B, L) or None -> (B, L, D).

    The bias of positions and mask is computed once, from the table of block 0, and shared by all blocks.
    """

    def __init__(self, config, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.block = nn.CellList(
            [
                T5Block(config, has_relative_attention_bias=i == 0, precision=precision)
                for i in range(config["num_layers"])
            ]
        )
        self.final_layer_norm = T5LayerNorm(
            config["d_model"], config["layer_norm_epsilon"], precision=precision
        )

    def construct(self, inputs_embeds, attention_mask=None):
        p = self.precision
        B, L, D = inputs_embeds.shape
        bias = self.block[0].layer[0].SelfAttention.compute_bias(L)  # (A, L, L)
        bias = attention_bias(bias, attention_mask, B, p)  # (B*A, L, L)
        x = p.up(inputs_embeds).reshape(B * L, D)
        for block in self.block:
            x = block(x, bias, TokenLayout(B, 1, L))
        return self.final_layer_norm(x).reshape(B, L, D)


class T5EncoderModel(nn.Cell, Pretrained):
    """Token ids to text features; arguments are the names in transformers' config.json, defaults those of v1.1-XXL.

    dropout_rate is kept for the file alone: the encoder is used frozen and never drops. Weights are zeros until
    they are loaded. Raises ValueError for another feed_forward_proj than "gated-gelu" and "relu", and for buckets that
    contradict the distance.
    """

    def __init__(
        self,
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        dropout_rate=0.1,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
        precision=Precision(),
    ):
        super().__init__()
        if feed_forward_proj not in FEED_FORWARDS:
            raise ValueError(
                f"feed_forward_proj is {feed_forward_proj!r}; expected one of {', '.join(FEED_FORWARDS)}"
            )
        if not 0 < relative_attention_num_buckets // 4 < relative_attention_max_distance:
            raise ValueError(
                f"relative_attention_num_buckets {relative_attention_num_buckets} and relative_attention_max_distance "
                f"{relative_attention_max_distance} do not fit; expected 4 buckets or more and a distance beyond a "
                "quarter of them: take both from the file's configuration"
            )
        self.precision = precision
        self.config = dict(  # constructor arguments as JSON can hold them; precision is the caller's choice
            vocab_size=vocab_size,
            d_model=d_model,
            d_kv=d_kv,
            d_ff=d_ff,
            num_layers=num_layers,
            num_heads=num_heads,
            relative_attention_num_buckets=relative_attention_num_buckets,
            relative_attention_max_distance=relative_attention_max_distance,
            dropout_rate=dropout_rate,
            layer_norm_epsilon=layer_norm_epsilon,
            feed_forward_proj=feed_forward_proj,
        )
        self.shared = Embedding(vocab_size, d_model, precision=precision)
        self.encoder = T5Stack(self.config, precision=precision)

    def construct(self, input_ids, attention_mask=None):
        """Features of the tokens: input_ids (B, L) integers, attention_mask (B, L), 1 for the tokens to keep and 0 for
        padding, or None -> (B, L, D). Raises ValueError for other shapes.

        What comes out at padding is finite and means nothing. A caption's features do not depend on its batch.
        """
        if input_ids.ndim != 2 or (attention_mask is not None and attention_mask.shape != input_ids.shape):
            mask = None if attention_mask is None else tuple(attention_mask.shape)
            raise ValueError(
                f"got input_ids {tuple(input_ids.shape)} and attention_mask {mask}; expected (B, L) for both, as the "
                "tokenizer gives them"
            )
        return self.encoder(self.shared(input_ids), attention_mask)


def _wide(precision):
    """Policy of `wo` and of what enters it: float32 where the model is float16 with float32 islands."""
    return Precision("fp32") if precision.compute == "fp16" and precision.islands == "fp32" else precision


@ops.constexpr
def _buckets(length, num_buckets, max_distance):
    return ms.Tensor(relative_position_buckets(length, num_buckets, max_distance))
