"""Networks as pairs of pure functions: `init(key) -> params` and `apply(params, x) -> y`."""

from lab.models.linear import deep_linear, end_to_end
from lab.models.mlp import mlp

__all__ = ["deep_linear", "end_to_end", "mlp"]
