# SPDX-License-Identifier: Apache-2.0
"""How the timestep modulates a block: norms that hold its embedding, and the table of adaLN-single.

Sources: diffusers `models/normalization.py` (AdaLayerNorm, AdaLayerNormZero); PixArt-alpha section 2.3.
"""

import mindspore as ms
from mindspore import nn

from ms_latte.models.embeddings import CombinedTimestepLabelEmbeddings
from ms_latte.models.layers import Embedding, LayerNorm, Linear, SiLU, modulate
from ms_latte.models.precision import Precision


class AdaLayerNorm(nn.Cell):
    """LayerNorm modulated by a learned embedding of the timestep.

    x (tokens, D) or (B, N, D); timestep () for all samples or (R,), one for each run of tokens as in
    `layers.spread`; whole numbers below num_embeddings -> shape of x. The order is scale, then shift. Raises
    ValueError for fractional timesteps and for a number of them that does not divide the tokens.
    """

    def __init__(self, embedding_dim, num_embeddings, norm_eps=1e-5, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.emb = Embedding(num_embeddings, embedding_dim, precision=precision)
        self.silu = SiLU(precision=precision)
        self.linear = Linear(embedding_dim, 2 * embedding_dim, precision=precision)
        self.norm = LayerNorm(embedding_dim, eps=norm_eps, precision=precision)

    def construct(self, x, timestep):
        if timestep.dtype not in (ms.int32, ms.int64):
            raise ValueError(
                f"AdaLayerNorm looks timesteps up in a table: expected whole numbers, got {timestep.dtype}; choose a "
                "sampler without fractional timesteps"
            )
        shape = x.shape
        modulation = self.linear(self.silu(self.emb(timestep.reshape(-1))))  # (R, 2*D)
        scale, shift = modulation.chunk(2, axis=1)  # (R, D) each
        x = self.norm(x.reshape(-1, shape[-1]))
        return modulate(x, shift, scale, self.precision).reshape(shape)


class AdaLayerNormZero(nn.Cell):
    """LayerNorm modulated by timestep and class (adaLN-Zero), and what else of a block they modulate.

    x (tokens, D) or (B, N, D), timestep (R,), class_labels (R,) -> x modulated, and gate_msa, shift_mlp, scale_mlp,
    gate_mlp, (R, D) each. num_embeddings: number of classes, the null label beside them.
    """

    def __init__(self, embedding_dim, num_embeddings, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.emb = CombinedTimestepLabelEmbeddings(num_embeddings, embedding_dim, precision=precision)
        self.silu = SiLU(precision=precision)
        self.linear = Linear(embedding_dim, 6 * embedding_dim, precision=precision)
        self.norm = LayerNorm(embedding_dim, eps=1e-6, precision=precision)

    def construct(self, x, timestep, class_labels):
        shape = x.shape
        modulation = self.linear(self.silu(self.emb(timestep, class_labels)))  # (R, 6*D)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, axis=1)
        x = modulate(self.norm(x.reshape(-1, shape[-1])), shift_msa, scale_msa, self.precision)
        return x.reshape(shape), gate_msa, shift_mlp, scale_mlp, gate_mlp


def table_modulation(table, timestep, precision):
    """Learned table plus shared modulation: table (k, D), timestep (R, k * D) -> k tensors (R, D) in the
    island type."""
    k, D = table.shape
    modulation = precision.up(table).reshape(1, k * D) + precision.up(timestep)  # (R, k*D)
    return precision.step(modulation).chunk(k, axis=1)
