"""Learning rates of each layer, in proportion: what a width asks of an optimiser."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import optax
from jaxtyping import Array, PyTree

from lab.models.mlp import Scalar
from lab.types import BadInput, Params

OPTIMIZERS = ("adam", "sgd")


def rate_factors(
    sizes: Sequence[int],
    *,
    parametrisation: str = "mup",
    optimizer: str = "adam",
    base: int | float = 64,
    bias: bool = True,
) -> dict[str, dict[str, float]]:
    r"""What each layer's learning rate is multiplied by, so that ONE rate does at every width.

    For `mlp(sizes, parametrisation=..., bias=bias)`, with `m = fan_in`, `n = fan_out`; widths are
    counted in units of `base`, at which all factors are 1:

                             kernel          bias
        mup, ntk: l = 1      n^(-1/2)        n^(-1/2)
        mup, ntk: hidden     1 / m           n^(-1/2)
        mup, ntk: l = L      m^(-1/2)        1
        standard, or SGD     1               1

    Adam moves a weight by about its rate f, whatever the gradient's size (its eps taken as nothing:
    gradients shrink as 1 / width). The steps of a layer's weights agree with its inputs, so m of
    them, of multiplier A, add up to A m f; a bias, of multiplier B, adds B f. mup (A: sqrt n, 1,
    1 / sqrt m; B: sqrt n, sqrt n, 1; the number of inputs is fixed) is to move each preactivation
    by order 1. So Adam on `w` is Adam on `A w` at rates (1, 1 / m, 1 / m), on biases at 1: those of
    Yang et al. 2022, Table 3. ntk (A: 1 / sqrt m, B: 1) is to move the output by order 1 through
    each layer, of which a hidden preactivation moved by d moves it by d sqrt n: the same factors.

    The multipliers are meant for SGD with one rate: all factors are 1. Those of standard are 1 by
    convention, since that is the practice; one rate does not carry over there.

    Args:
        sizes: as of `mlp`: at least two positive widths, the input's first.
        parametrisation: "standard", "ntk" or "mup".
        optimizer: "adam", or any whose steps are of the size of its rate (adamw, lion, sign
            descent); or "sgd", with momentum or without.
        base: > 0, the width at which rates are chosen.
        bias: whether the layers have biases.

    Returns:
        `{"layer_1": {"kernel": factor, "bias": factor}, ...}`, for `by_layer`.

    Raises:
        BadInput: one line, naming the argument.

    References:
        Yang et al. 2022, arXiv:2203.03466, Table 3.

    >>> rate_factors((196, 256, 256, 10), bias=False)
    {'layer_1': {'kernel': 0.5}, 'layer_2': {'kernel': 0.25}, 'layer_3': {'kernel': 0.5}}
    """
    sizes = tuple(sizes)
    if len(sizes) < 2 or min(sizes) < 1:
        raise BadInput(f"sizes: {sizes} should be at least two positive widths, input first")
    if parametrisation not in ("standard", "ntk", "mup"):
        raise BadInput(f"parametrisation: {parametrisation!r} is not one of standard, ntk, mup")
    if optimizer not in OPTIMIZERS:
        raise BadInput(f"optimizer: {optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
    if not base > 0:
        raise BadInput(f"base: {base} should be above 0")
    last = len(sizes) - 2
    same = parametrisation == "standard" or optimizer == "sgd" or last == 0

    def layer(i: int, fan_in: float, fan_out: float) -> dict[str, float]:
        kernel = fan_out**-0.5 if i == 0 else fan_in**-0.5 if i == last else 1 / fan_in
        both = {"kernel": kernel, "bias": 1.0 if i == last else fan_out**-0.5}
        return {name: 1.0 if same else both[name] for name in ["kernel", *["bias"] * bias]}

    widths = enumerate(itertools.pairwise(size / base for size in sizes))
    return {f"layer_{i + 1}": layer(i, m, n) for i, (m, n) in widths}


def by_layer(
    optimizer: optax.GradientTransformation, factors: PyTree[Scalar]
) -> optax.GradientTransformationExtraArgs:
    """The optimiser with each layer's rate multiplied by a factor of its own.

    Its updates are multiplied, so the weight decay of `optax.adamw` is too; its state, and a norm
    that is clipped, are those of all layers together. Not for one whose steps are not proportional
    to its rate, such as a line search.

    Args:
        optimizer: any optax transformation.
        factors: a number, traced or not, for each leaf of the params or for a branch of them.

    Raises:
        BadInput: by `init`: a factor of what the params have not, a param that has none.

    >>> import jax.numpy as jnp
    >>> sgd = by_layer(optax.sgd(1.0), {"layer_1": 0.5, "layer_2": {"kernel": 2.0}})
    >>> params = {"layer_1": {"kernel": jnp.ones(1)}, "layer_2": {"kernel": jnp.ones(1)}}
    >>> updates, _ = sgd.update(params, sgd.init(params))
    >>> [float(layer["kernel"][0]) for layer in updates.values()]
    [-0.5, -2.0]
    """

    def init(params: Params) -> optax.EmptyState:
        _spread(factors, params)
        return optax.EmptyState()

    def update(
        updates: Params, state: optax.EmptyState, params: Params | None = None
    ) -> tuple[Params, optax.EmptyState]:
        of_each = _spread(factors, updates)
        return jax.tree.map(lambda u, f: (f * u).astype(u.dtype), updates, of_each), state

    scaled = optax.chain(optimizer, optax.GradientTransformation(init, update))
    return optax.with_extra_args_support(scaled)


def _spread(factors: PyTree, params: Params) -> PyTree:
    """Each param's factor: its own, or that of the branch it is on."""
    given: dict[Any, Any] = dict(jax.tree_util.tree_flatten_with_path(factors)[0])
    used = set()

    def factor(path: tuple[Any, ...], _: Array) -> Any:
        for end in range(len(path) + 1):
            if path[:end] in given:
                used.add(path[:end])
                return given[path[:end]]
        raise BadInput(f"factors: none for {_named(path)}; give one, 1 to leave its rate as it is")

    spread = jax.tree_util.tree_map_with_path(factor, params)
    for path in given.keys() - used:
        leaves, _ = jax.tree_util.tree_flatten_with_path(params)
        names = ", ".join(_named(path) for path, _ in leaves)
        raise BadInput(f"factors: {_named(path)!r} is not among the params: {names}")
    return spread


def _named(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
