"""Two sets of parameters: how far apart, and what lies between, hidden units matched or not."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from lab.numerics import length, scaled
from lab.types import BadInput, Params

Permutations: TypeAlias = tuple[Int[np.ndarray, " _"], ...]
"""For each hidden layer which unit comes in the place of each: a permutation of 0 ... width - 1."""


def distance(params: Params, other: Params) -> Float[Array, ""]:
    """The Euclidean distance of all parameters together, `|θ - θ'|`.

    >>> float(distance({"w": jnp.array([3.0, 1.0])}, {"w": jnp.array([0.0, 5.0])}))
    5.0
    """
    return length(_flat(params) - _flat(other))


def cosine(params: Params, other: Params, *, origin: Params | None = None) -> Float[Array, ""]:
    """The cosine of the angle between two sets of parameters, seen from an origin (0 unless given).

    From their common start: whether two runs moved in one direction. NaN where one is at the
    origin.

    >>> two = jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0])
    >>> round(float(cosine(*two)), 4), float(cosine(*two, origin=jnp.array([1.0, 0.5])))
    (0.7071, -1.0)
    """
    start = 0.0 if origin is None else _flat(origin)
    one, two = scaled(_flat(params) - start), scaled(_flat(other) - start)
    return jnp.sum(one * two) / (length(one) * length(two))


def loss_between(
    loss: Callable[[Params], Array], params: Params, other: Params, *, points: int = 11
) -> Float[Array, " {points}"]:
    """The loss at (1 - a) θ + a θ', at `points` values of a from 0 to 1, evenly apart.

    Args:
        loss: loss(params) -> scalar.
        params: θ.
        other: θ', alike in structure.
        points: at least 2, the ends among them.

    Raises:
        BadInput: fewer than two points.

    >>> loss_between(lambda w: w**2, jnp.float32(-1), jnp.float32(1), points=3)
    Array([1., 0., 1.], dtype=float32)
    """
    if points < 2:
        raise BadInput(f"points: {points} on a line; give at least its 2 ends")

    def at(a: Array) -> Array:
        return loss(jax.tree.map(lambda one, two: (1 - a) * one + a * two, params, other))

    return jax.lax.map(at, jnp.linspace(0.0, 1.0, points))


def barrier(losses: Float[Array, "*n points"]) -> Float[Array, "*n"]:
    """How far the loss between two ends rises above the straight line between theirs, at most.

        max_a  L((1 - a) θ + a θ') - (1 - a) L(θ) - a L(θ')

    At least 0, that of the ends; 0 where the two are linearly connected. Source: Entezari, Sedghi,
    Saukh and Neyshabur 2022, arXiv 2110.06296 (Frankle et al. 2020, arXiv 1912.05671, have the mean
    of the ends in place of the line between).

    Args:
        losses: as of `loss_between`: evenly apart from one end to the other.

    >>> float(barrier(jnp.array([1.0, 5.0, 3.0])))
    3.0
    """
    a = jnp.broadcast_to(jnp.linspace(0.0, 1.0, losses.shape[-1], dtype=losses.dtype), losses.shape)
    # So written a constant is 0 above itself, whatever rounding does.
    above = losses - losses[..., :1] - a * (losses[..., -1:] - losses[..., :1])
    return jnp.max(above.at[..., -1].set(0), -1)


def weight_matching(params: Params, other: Params) -> Permutations:
    """The order of the other's hidden units that brings it nearest to params, of what was tried.

    `permuted(other, weight_matching(params, other))` is the same function as `other`. Minimised is
    the distance of all weights and biases, which is a sum of assignment problems, each solved
    exactly with the other layers held fixed, in turn until none gains (coordinate descent: a local
    minimum). It is started twice, and the nearer end taken: from the order that there is, and from
    the best match of each layer's incoming weights, first layer first, which finds the order of a
    permuted copy whatever it is. Signs are not matched (of tanh they could be). Not under `jit`.

    Source: Ainsworth, Hayase and Srinivasa 2023, arXiv 2209.04836, matching of weights; the starts
    are the lab's own.

    Args:
        params: of `lab.models.mlp`.
        other: of the same network.

    Returns:
        for each hidden layer the other's units in the order of those of params.

    Raises:
        BadInput: params that are not of `lab.models.mlp`, or of two networks.

    >>> from lab.models import mlp
    >>> params = mlp((3, 4, 2)).init(jax.random.key(0))
    >>> copy = permuted(params, (np.array([2, 0, 3, 1]),))
    >>> weight_matching(params, copy)[0].tolist()
    [1, 3, 0, 2]
    """
    ones, twos = _layers("params", params), _layers("other", other)
    shapes = [[[layer[0].shape for layer in of]] for of in (ones, twos)]
    if shapes[0] != shapes[1]:
        raise BadInput(f"other: kernels {shapes[1][0]}, where params have {shapes[0][0]}")
    widths = [kernel.shape[1] for kernel, _ in ones[:-1]]
    found: list[list[Int[np.ndarray, " _"]]] = []
    for incoming in (False, True):
        orders = [np.arange(width) for width in widths]
        if incoming:
            for i in range(len(widths)):
                orders[i] = _assigned(_likeness(ones, twos, orders, i, outgoing=False))
        gained = True
        while gained:
            gained = False
            for i in range(len(widths)):
                like = _likeness(ones, twos, orders, i, outgoing=True)
                new, here = _assigned(like), np.arange(widths[i])
                gain = like[here, new].sum() - like[here, orders[i]].sum()
                if gain > 1e-12 * np.abs(like).sum():
                    orders[i], gained = new, True
        found.append(orders)
    apart = [_apart(ones, twos, orders) for orders in found]
    return tuple(found[int(np.argmin(apart))])


def permuted(params: Params, permutations: Sequence[Any]) -> Params:
    """The same function with hidden units in another order: unit p[i] in the place of unit i.

    Args:
        params: of `lab.models.mlp`.
        permutations: for each hidden layer, p.

    Raises:
        BadInput: params that are not of `lab.models.mlp`; not a permutation for each hidden layer.

    >>> layers = {
    ...     "layer_1": {"kernel": jnp.array([[1.0, 2.0]])},
    ...     "layer_2": {"kernel": jnp.array([[3.0], [4.0]])},
    ... }
    >>> swapped = permuted(layers, ([1, 0],))
    >>> swapped["layer_1"]["kernel"].tolist(), swapped["layer_2"]["kernel"].tolist()
    ([[2.0, 1.0]], [[4.0], [3.0]])
    """
    widths = [kernel.shape[1] for kernel, _ in _layers("params", params)][:-1]
    orders = [np.asarray(order) for order in permutations]
    if [sorted(order.tolist()) for order in orders] != [list(range(width)) for width in widths]:
        raise BadInput(f"permutations: {permutations}; give one for each of {widths} hidden units")
    made = {}
    for i, name in enumerate(sorted(params, key=_number)):
        layer = dict(params[name])
        if i > 0:
            layer["kernel"] = layer["kernel"][orders[i - 1]]
        if i < len(orders):
            layer = {part: leaf[..., orders[i]] for part, leaf in layer.items()}
        made[name] = layer
    return {name: made[name] for name in params}


def _flat(params: Params) -> Float[Array, " n"]:
    return ravel_pytree(params)[0]


def _number(name: str) -> int:
    return int(name.removeprefix("layer_"))


def _layers(name: str, params: Params) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels and biases (zeros where there are none), first layer first, in float64."""
    try:
        layers = [params[f"layer_{i}"] for i in range(1, len(params) + 1)]
        kernels = [np.asarray(layer["kernel"], np.float64) for layer in layers]
        biases = [
            np.asarray(layer.get("bias", np.zeros(kernel.shape[1])), np.float64)
            for layer, kernel in zip(layers, kernels, strict=True)
        ]
    except (AttributeError, KeyError, TypeError):
        raise BadInput(f"{name}: not those of lab.models.mlp, {{'layer_1': ...}}") from None
    return list(zip(kernels, biases, strict=True))


def _likeness(ones: Any, twos: Any, orders: Any, i: int, *, outgoing: bool) -> np.ndarray:
    """Of unit a of hidden layer i of one and unit b of the other: the product of their weights."""
    (one, one_bias), (two, two_bias) = ones[i], twos[i]
    before = two[orders[i - 1]] if i else two
    like = one.T @ before + np.outer(one_bias, two_bias)
    if outgoing:
        after = twos[i + 1][0]
        after = after[:, orders[i + 1]] if i + 1 < len(orders) else after
        like = like + ones[i + 1][0] @ after.T
    return like


def _assigned(like: np.ndarray) -> np.ndarray:
    """The permutation of the largest sum."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(like, maximize=True)[1]


def _apart(ones: Any, twos: Any, orders: Any) -> float:
    """The squared distance, up to what no order changes."""
    whole = [np.arange(ones[0][0].shape[0]), *orders, np.arange(ones[-1][0].shape[1])]
    return -sum(
        float(np.sum(one * two[np.ix_(before, after)]) + bias @ other[after])
        for (one, bias), (two, other), before, after in zip(
            ones, twos, whole[:-1], whole[1:], strict=True
        )
    )
