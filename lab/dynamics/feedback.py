"""Learning without the transpose: the error comes back by fixed random matrices."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient as held
from jaxtyping import Array, Float, PRNGKeyArray

from lab.dynamics.descent import Descent, descent
from lab.numerics import Number
from lab.types import BadInput, Dynamics, Params, Record

RULES = ("backpropagation", "alignment", "direct")
"""How the error comes back: by each layer's transpose, by a fixed random matrix in the place of it,
or from the output to each hidden layer at once by a fixed random matrix of its own."""

Matrices: TypeAlias = tuple[Array, ...]
"""One for each hidden layer, input first; none of backpropagation."""

Activation: TypeAlias = Callable[[Array], Array]


def feedback(
    loss: Callable[[Array, Any], Array],
    optimizer: optax.GradientTransformation,
    *,
    rule: str,
    matrices: Matrices | Callable[[Array], Matrices],
    init: Callable[[], Params],
    batch: Callable[[Array], tuple[Array, Any]],
    observe: Callable[[Descent, Array], Record],
    inspect: Callable[[Descent, Array], Record] | None = None,
    activation: Activation = jnp.tanh,
) -> Dynamics:
    """An MLP that learns by backpropagation, feedback alignment or direct feedback alignment.

    With `a_l = phi(h_l)`, `h_l = a_{l-1} W_l + b_l` and δ_L the loss's slope by the output h_L,

        backpropagation    δ_l = (δ_{l+1} W_{l+1}ᵀ) phi'(h_l)
        alignment          δ_l = (δ_{l+1} B_lᵀ) phi'(h_l)         B_l like W_{l+1}
        direct             δ_l = (δ_L B_lᵀ) phi'(h_l)             B_l: units of layer l x outputs

    and the optimiser is given `a_{l-1}ᵀ δ_l` for W_l, the sum of δ_l over examples for b_l, as if
    they were a gradient. The same from any network's outputs: `fed_back`.

    Sources: Lillicrap et al. 2016, "Random synaptic feedback weights support error backpropagation
    for deep learning" (alignment); Nøkland 2016, arXiv 1609.01596 (direct).

    Args:
        loss: loss(outputs, labels) -> scalar, a mean over examples.
        optimizer: any optax transformation; its rate may be a tracer.
        rule: one of the three.
        matrices: as `feedback_matrices` makes them; matrices(t), where they change with the step.
        init: init() -> params, those of `lab.models.mlp` in the standard parametrisation.
        batch: batch(t) -> (x, labels); `lambda t: (x, labels)` is the full batch.
        observe: observe(state, t) -> record, of a `Descent`.
        inspect: as `observe`, for what is costly.
        activation: that of the MLP, a function.

    Raises:
        BadInput: another rule, matrices or params of another shape; and as `descent`.

    >>> params = {"layer_1": {"kernel": jnp.ones((1, 1))}, "layer_2": {"kernel": jnp.ones((1, 1))}}
    >>> process = feedback(
    ...     lambda y, target: 0.5 * jnp.mean((y - target) ** 2),
    ...     optax.sgd(1.0),
    ...     rule="alignment",
    ...     matrices=(jnp.full((1, 1), -3.0),),
    ...     init=lambda: params,
    ...     batch=lambda t: (jnp.ones((1, 1)), jnp.zeros((1, 1))),
    ...     observe=lambda state, t: {},
    ...     activation=lambda h: h,
    ... )
    >>> new = process.step(process.init(), jnp.int32(0)).params
    >>> [float(layer["kernel"][0, 0]) for layer in new.values()]  # 1 - x e B, 1 - h e
    [4.0, 0.0]
    """
    fixed = None if callable(matrices) else matrices

    def drawn(t: Array) -> tuple[Any, ...]:
        return *batch(t), matrices(t) if callable(matrices) else fixed

    def of(params: Params, examples: tuple[Any, ...]) -> Array:
        x, labels, back = examples
        return loss(fed_back(params, x, back, rule=rule, activation=activation), labels)

    return descent(of, optimizer, init=init, observe=observe, inspect=inspect, batch=drawn)


def fed_back(
    params: Mapping[str, Mapping[str, Array]],
    x: Float[Array, "n d"],
    matrices: Matrices,
    *,
    rule: str,
    activation: Activation = jnp.tanh,
) -> Float[Array, "n c"]:
    """The outputs of an MLP, whose derivative by the params is that of a rule: see `feedback`.

    Of a loss of them `jax.grad` gives the rule's update, to be held beside backpropagation's. The
    second derivative means nothing, nor that by x. What is added forward is B times 0.

    Raises:
        BadInput: another rule, matrices or params of another shape.

    >>> params = {"layer_1": {"kernel": jnp.ones((1, 1))}, "layer_2": {"kernel": jnp.ones((1, 1))}}
    >>> def output(p, B):
    ...     x, phi = jnp.ones((1, 1)), lambda h: 2 * h
    ...     return fed_back(p, x, (B,), rule="alignment", activation=phi)[0, 0]
    >>> value, slopes = jax.value_and_grad(output)(params, jnp.full((1, 1), -3.0))
    >>> float(value), float(slopes["layer_1"]["kernel"][0, 0])  # 2, and B phi' x in place of W's
    (2.0, -6.0)
    """
    layers = _layers(params)
    _check(params, matrices, rule)
    h, far = layers[0](x), []
    for i, layer in enumerate(layers[1:]):
        a = activation(h)
        if rule == "backpropagation":
            h = layer(a)
            continue
        # Zero, with a's derivative.
        detour = (a - held(a)) @ matrices[i]
        h = layer(held(a))
        if rule == "alignment":
            h = h + detour
        else:
            far.append(detour)
    return sum(far, h)


def feedback_matrices(
    key: PRNGKeyArray, params: Params, *, rule: str, gain: Number = 1.0
) -> Matrices:
    """Random matrices for a rule, normal of variance gain / (units of the layer they lead to).

    So alignment's are drawn as `lab.models.mlp` draws the weights in whose place they are, of the
    same gain. None for backpropagation.

    Args:
        key: of the draw.
        params: those of an MLP; their shapes alone matter.
        rule: that they are for.
        gain: the variance times that number of units.

    Raises:
        BadInput: another rule, params that are not of an MLP.

    >>> from lab.models import mlp
    >>> params = mlp((7, 5, 4, 3)).init(jax.random.key(0))
    >>> for rule in ("alignment", "direct"):
    ...     [B.shape for B in feedback_matrices(jax.random.key(1), params, rule=rule)]
    [(5, 4), (4, 3)]
    [(5, 3), (4, 3)]
    """
    shapes = _shapes(params, rule)
    dtype = jax.tree.leaves(params)[0].dtype
    keys = jax.random.split(key, max(1, len(shapes)))
    return tuple(
        jnp.sqrt(gain / shape[0]).astype(dtype) * jax.random.normal(one, shape, dtype)
        for one, shape in zip(keys, shapes, strict=False)
    )


def _layers(params: Params) -> list[Callable[[Array], Array]]:
    """Each layer of an MLP as a function, input first."""

    def layer(of: Mapping[str, Array]) -> Callable[[Array], Array]:
        if "bias" in of:
            return lambda a: a @ of["kernel"] + of["bias"][None]
        return lambda a: a @ of["kernel"]

    return [layer(params[name]) for name in _names(params)]


def _names(params: Params) -> list[str]:
    """The layers of an MLP, in order."""
    names = [f"layer_{i}" for i in range(1, len(params) + 1)]
    if {*names} != {*params} or not all("kernel" in params[name] for name in names):
        raise BadInput(f"params: of {', '.join(params)}; give those of lab.models.mlp, layer_1 on")
    return names


def _shapes(params: Params, rule: str) -> list[tuple[int, int]]:
    """Those of a rule's matrices."""
    if rule not in RULES:
        raise BadInput(f"rule: {rule!r} is not one of {', '.join(RULES)}")
    later = [params[name]["kernel"].shape for name in _names(params)[1:]]
    if rule == "backpropagation":
        return []
    return later if rule == "alignment" else [(shape[0], later[-1][1]) for shape in later]


def _check(params: Params, matrices: Matrices, rule: str) -> None:
    """Refuse matrices that are not the rule's."""
    got, wanted = [B.shape for B in matrices], _shapes(params, rule)
    if got != wanted:
        raise BadInput(f"matrices: shapes {got}; {rule} takes {wanted}")
