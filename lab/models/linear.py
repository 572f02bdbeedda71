"""Deep linear networks: linear functions, nonlinear learning."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lab.types import BadInput, Model

_INITS = ("normal", "orthogonal", "balanced")


def deep_linear(
    sizes: Sequence[int], *, scale: int | float | Float[Array, ""] = 1.0, init: str = "normal"
) -> Model:
    """A deep linear network, without biases: `y = x W_1 W_2 ... W_L`.

    Each layer is proportional to `scale` at init, so the end-to-end matrix is to `scale^L`:

        normal      W_l has independent normal entries of standard deviation scale / sqrt(fan_in).
        orthogonal  W_l = scale Q, with Q uniform among the matrices with orthonormal rows or
                    columns, whichever are fewer (Saxe et al. 2014).
        balanced    W_l^T W_l = W_{l+1} W_{l+1}^T for every l, which gradient flow conserves. With
                    A = U S V^T, normal with standard deviation 1 / sqrt(d), and R = S^(1/L):
                    W_1 = scale U R, W_l = scale R, W_L = scale R V^T, padded with zeros, whose
                    product is scale^L A (Arora et al. 2019, Procedure 1, transposed). Gradient
                    descent leaves the padded units at zero.

    (linen initialises layer by layer and could not say `balanced`; the params are the matrices.)

    Args:
        sizes: at least two positive widths, input first, output last.
        scale: the scale of each layer; may be traced.
        init: "normal", "orthogonal" or "balanced".

    Returns:
        Model. `init(key) -> (W_1, ..., W_L)`, W_l of shape [fan_in, fan_out]; `apply(params, x)`
        for x of shape [n, d] or [d]. Params are float32, or float64 when jax has x64 enabled.

    Raises:
        BadInput: one line, naming the argument, when it or the shape of `x` cannot be used; for
            "balanced", also when a hidden layer is narrower than both ends.

    References:
        Saxe et al. 2014, arXiv:1312.6120. Arora et al. 2019, arXiv:1810.02281.

    >>> model = deep_linear((4, 3, 2), scale=0.1, init="orthogonal")
    >>> params = model.init(jax.random.key(0))
    >>> [W.shape for W in params]
    [(4, 3), (3, 2)]
    >>> model.apply(params, jnp.ones((5, 4))).shape
    (5, 2)
    """
    sizes = tuple(sizes)
    if len(sizes) < 2 or min(sizes) < 1:
        raise BadInput(f"sizes: {sizes} should be at least two positive widths, input first")
    if init not in _INITS:
        raise BadInput(f"init: {init!r} is not one of {', '.join(_INITS)}")
    if init == "balanced" and min(sizes) < min(sizes[0], sizes[-1]):
        raise BadInput(
            f"sizes: {sizes} has a hidden layer narrower than {min(sizes[0], sizes[-1])}, the "
            "narrower end, which init='balanced' cannot pass through"
        )

    def initial(key: PRNGKeyArray) -> tuple[Float[Array, "_ _"], ...]:
        if init == "balanced":
            return tuple(scale * W for W in _balanced(key, sizes))
        kernel = (
            jax.nn.initializers.lecun_normal()
            if init == "normal"
            else jax.nn.initializers.orthogonal()
        )
        keys = jax.random.split(key, len(sizes) - 1)
        return tuple(
            scale * kernel(k, shape, float)
            for k, shape in zip(keys, itertools.pairwise(sizes), strict=True)
        )

    def apply(
        params: tuple[Float[Array, "_ _"], ...], x: Float[Array, "*n d"]
    ) -> Float[Array, "*n c"]:
        if x.shape[-1] != sizes[0]:
            raise BadInput(f"x: shape {x.shape} should end in {sizes[0]}, the first of sizes")
        return functools.reduce(jnp.matmul, params, x)

    return Model(initial, apply)


def end_to_end(params: Sequence[Float[Array, "_ _"]]) -> Float[Array, "d c"]:
    """The matrix of a deep linear network: `W_1 W_2 ... W_L`, of shape [d, c].

    >>> end_to_end((2 * jnp.eye(2), jnp.ones((2, 1))))
    Array([[2.],
           [2.]], dtype=float32)
    """
    return functools.reduce(jnp.matmul, params)


def _balanced(key: PRNGKeyArray, sizes: tuple[int, ...]) -> list[Array]:
    """The factors of a matrix with variance 1 / fan_in, each with the L-th root of its spectrum."""
    d, c, depth = sizes[0], sizes[-1], len(sizes) - 1
    A = jax.random.normal(key, (d, c), float) / jnp.sqrt(d)
    U, S, Vt = jnp.linalg.svd(A, full_matrices=False)
    # In the singular basis every layer is diagonal; only the two ends are turned out of it.
    root = jnp.diag(S ** (1 / depth))
    factors = [root] * depth
    factors[0] = U @ factors[0]
    factors[-1] = factors[-1] @ Vt
    return [
        jnp.pad(W, ((0, m - W.shape[0]), (0, n - W.shape[1])))
        for W, m, n in zip(factors, sizes[:-1], sizes[1:], strict=True)
    ]
