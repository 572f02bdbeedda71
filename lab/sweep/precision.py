"""float32 means float32: products as exact as their arguments, on every machine.

JAX's default is TF32 on recent GPUs and bfloat16 on TPUs, good to three digits, which no closed
form survives. On a CPU both are the same.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


def matmul_precision() -> str:
    """What `jax_default_matmul_precision` is here: what the caller has chosen, or "highest"."""
    return str(jax.config.jax_default_matmul_precision or "highest")  # type: ignore[attr-defined]


def exact_products(function: Callable[P, T]) -> Callable[P, T]:
    """`function` with products at full precision, unless the caller has chosen another."""

    @functools.wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.default_matmul_precision(matmul_precision()):
            return function(*args, **kwargs)

    return exact
