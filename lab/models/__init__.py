"""Networks as pairs of pure functions: `init(key) -> params` and `apply(params, x) -> y`."""

from lab.models.attention import attention_blocks, attention_weights, merged_attention
from lab.models.conv import conv_net
from lab.models.libraries import Stateful, from_equinox, from_nnx
from lab.models.linear import deep_linear, end_to_end
from lab.models.mlp import batch_norm, mlp
from lab.models.rates import by_layer, rate_factors
from lab.models.transformer import transformer

__all__ = [
    "Stateful",
    "attention_blocks",
    "attention_weights",
    "batch_norm",
    "by_layer",
    "conv_net",
    "deep_linear",
    "end_to_end",
    "from_equinox",
    "from_nnx",
    "merged_attention",
    "mlp",
    "rate_factors",
    "transformer",
]
