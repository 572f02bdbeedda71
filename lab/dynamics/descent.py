"""Gradient descent by any optax optimiser, on the full batch or on minibatches."""

import inspect as signatures
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lab.types import BadInput, Dynamics, Params, Record

Objective: TypeAlias = Callable[[Params], tuple[Array, Any]]
"""objective(params) -> (loss, what else it returns): the loss of one step, of its params alone."""

Slope: TypeAlias = Callable[[Objective, Params], tuple[tuple[Array, Any], Params]]
"""slope(objective, params) -> ((loss, aux), gradient): what the optimiser is to descend by."""


class Descent(NamedTuple):
    """State of gradient descent.

    Attributes:
        params: the parameters.
        opt_state: the optimiser's own state.
        loss: the loss that the last step started from; before the first that of the initial
            params, on the batch of step 0.
        rises: at how many steps so far the loss was above the one before; of minibatches, each
            loss is that of another batch.
        aux: what the loss returned beside its value at the last step (`has_aux`), or what is
            carried from step to step (`carry`); None without either.
    """

    params: Params
    opt_state: optax.OptState
    loss: Float[Array, ""]
    rises: Int[Array, ""]
    aux: Any = None


def descent(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    init: Callable[[], Params],
    observe: Callable[[Descent, Array], Record],
    inspect: Callable[[Descent, Array], Record] | None = None,
    batch: Callable[[Array], Any] | None = None,
    has_aux: bool = False,
    carry: Callable[[], PyTree] | None = None,
    key: PRNGKeyArray | None = None,
) -> Dynamics:
    """Gradient descent, `params <- params + update(grad loss(params))`.

    The loss is called `loss(params[, carried][, batch][, key=])`, with those that are given below.
    An optimiser that asks for more than the gradient is given, by these names, `value`, `grad` and
    `value_fn`: params -> loss, or, as `optax.contrib.sam` asks for it, `grad_fn`: (params, i) ->
    gradient, all on the batch of the step. Of `optax.LookaheadParams` the loss takes the fast ones.

    Args:
        loss: gives a scalar, a mean over the batch.
        optimizer: any optax transformation; its rate may be a tracer.
        init: init() -> params.
        observe: observe(state, t) -> record, of a `Descent`.
        inspect: as `observe`, for what is costly.
        batch: batch(t), the batch of step t, such as
            `lambda t: lab.data.minibatch(key, t, (x, y), size=64)`.
        has_aux: whether the loss returns (value, aux), whatever aux is.
        carry: carry() -> what the loss is given beside the params at step 0, such as batch
            statistics; it returns (value, what step t + 1 is given).
        key: where the loss draws (dropout): it is given `key=fold_in(key, t)`. Fold nothing else
            into it.

    Raises:
        BadInput: a loss that takes or returns something else, an optimiser that asks for something
            else, `has_aux` beside `carry`.

    >>> process = descent(
    ...     lambda w: 0.5 * w**2,
    ...     optax.sgd(0.5),
    ...     init=lambda: jnp.float32(8),
    ...     observe=lambda state, t: {"w": state.params},
    ... )
    >>> process.step(process.init(), jnp.int32(0)).params
    Array(4., dtype=float32)
    """
    objective = objectives(loss, batch=batch, has_aux=has_aux, carry=carry, key=key)
    return descending(steepest, objective, optimizer, init, carry, observe, inspect)


def descending(
    slope: Slope,
    objective: Callable[[Any, Array], Objective],
    optimizer: optax.GradientTransformation,
    init: Callable[[], Params],
    carry: Callable[[], PyTree] | None,
    observe: Callable[[Descent, Array], Record],
    inspect: Callable[[Descent, Array], Record] | None,
) -> Dynamics:
    """Descent by any slope of objective(aux, t), the objective of step t: see `descent`."""

    def start() -> Descent:
        params, carried = strong(init()), None if carry is None else strong(carry())
        opt_state, value, aux = begun(objective(carried, jnp.int32(0)), optimizer, params)
        return Descent(params, opt_state, value, jnp.int32(0), aux if carried is None else carried)

    def step(state: Descent, t: Array) -> Descent:
        params, opt_state, value, aux = updated(
            objective(state.aux, t), optimizer, state.params, state.opt_state, slope
        )
        # At step 0 both are of the same params, and differ by rounding alone.
        rises = state.rises + ((t > 0) & (value > state.loss))
        return Descent(params, opt_state, value, rises, aux)

    return Dynamics(start, step, observe, inspect)


def objectives(
    loss: Callable[..., Any],
    *,
    batch: Callable[[Array], Any] | None = None,
    has_aux: bool = False,
    carry: Callable[[], PyTree] | None = None,
    key: PRNGKeyArray | None = None,
) -> Callable[[Any, Array], Objective]:
    """objective(carried, t) -> the loss of step t, of the params alone: see `descent`.

    Raises:
        BadInput: `has_aux` beside `carry`, a loss that takes something else; when it is called, a
            loss that returns something else.

    >>> objectives(lambda w, x: w * x, batch=lambda t: t + 1)(None, jnp.int32(2))(jnp.float32(5))
    (Array(15., dtype=float32), None)
    """
    if has_aux and carry is not None:
        raise BadInput("has_aux: True beside carry; what the loss returns is carried, drop has_aux")
    shown = ["params", *["carried"] * (carry is not None), *["batch"] * (batch is not None)]
    _check_takes(loss, shown, {"key": key} if key is not None else {})

    def objective(carried: Any, t: Array) -> Objective:
        given = () if carry is None else (carried,)
        given += () if batch is None else (batch(t),)
        named = {} if key is None else {"key": jax.random.fold_in(key, t)}

        def of(params: Params) -> tuple[Array, Any]:
            returned = loss(params, *given, **named)
            if carry is None and not has_aux:
                return _scalar(returned), None
            if not isinstance(returned, tuple) or len(returned) != 2:
                wanted = "(value, aux)" if has_aux else "(value, what is carried on)"
                raise BadInput(f"loss: returned {_shown(returned)}; return a pair {wanted}")
            value, aux = returned
            return _scalar(value), aux if has_aux else _alike(aux, carried)

        return of

    return objective


def steepest(objective: Objective, params: Params) -> tuple[tuple[Array, Any], Params]:
    """The objective and its gradient."""
    return jax.value_and_grad(objective, has_aux=True)(params)


def begun(
    objective: Objective, optimizer: optax.GradientTransformation, params: Params
) -> tuple[optax.OptState, Float[Array, ""], Any]:
    """An optimiser's state at the start, the loss there and its aux.

    >>> begun(lambda w: (w**2, None), optax.sgd(0.1), jnp.float32(3))[1]
    Array(9., dtype=float32)
    """
    return optimizer.init(params), *objective(_seen(params))


def updated(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    slope: Slope = steepest,
) -> tuple[Params, optax.OptState, Float[Array, ""], Any]:
    """One step of an optimiser: new params and state, and loss and aux where it started.

    Raises:
        BadInput: the optimiser asks for what descent does not know.

    >>> sgd = optax.sgd(0.5)
    >>> updated(lambda w: (2.0 * w, None), sgd, jnp.float32(8), sgd.init(jnp.float32(8)))[0]
    Array(7., dtype=float32)
    """
    (value, aux), gradient = slope(objective, _seen(params))

    def value_fn(at: Params) -> Array:
        return objective(at)[0]

    update = optax.with_extra_args_support(optimizer).update
    known = {"value": value, "grad": gradient, "value_fn": value_fn}
    takes = signatures.signature(update).parameters
    if not any(taken.kind is taken.VAR_KEYWORD for taken in takes.values()):
        known |= {"grad_fn": lambda at, i: jax.grad(value_fn)(at)}
        known = {name: given for name, given in known.items() if name in takes}
    try:
        updates, opt_state = update(gradient, opt_state, params, **known)
        got, wanted = ([leaf.shape for leaf in jax.tree.leaves(of)] for of in (updates, params))
        if got != wanted:
            raise ValueError(f"shapes {got} of updates, where the params have {wanted}")
    except (BadInput, jax.errors.JAXTypeError):
        raise
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise BadInput(
            f"optimizer: given {', '.join(['the gradient', *known])}, its update says: {error}; "
            "write what needs something else as a lab.types.Dynamics"
        ) from error
    return optax.apply_updates(params, updates), opt_state, value, aux


def strong(tree: PyTree) -> PyTree:
    """Arrays, as strongly typed as a step returns them: a Python number is weak.

    >>> strong({"mean": 0.0})
    {'mean': Array(0., dtype=float32)}
    """

    def leaf(x: Any) -> Array:
        x = jnp.asarray(x)
        keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return x if keys else lax.convert_element_type(x, x.dtype)

    return jax.tree.map(leaf, tree)


def _seen(params: Params) -> Params:
    """The params that the loss takes."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _check_takes(loss: Callable[..., Any], shown: list[str], named: dict[str, Any]) -> None:
    """Refuse a loss that cannot be called so."""
    try:
        takes = signatures.signature(loss)
    except (TypeError, ValueError):  # of some callables written in C
        return
    try:
        takes.bind(*shown, **named)
    except TypeError:
        given = ", ".join([*shown, *[f"{name}=" for name in named]])
        raise BadInput(f"loss: takes {takes}; it is given ({given})") from None


def _scalar(value: Any) -> Array:
    fits = isinstance(value, Array) and value.shape == ()
    if not fits or not jnp.issubdtype(value.dtype, jnp.floating):
        also = "; with has_aux=True or carry=... it may be (value, more)"
        pair = isinstance(value, tuple)
        raise BadInput(f"loss: returned {_shown(value)}; return a real scalar{also * pair}")
    return value


def _alike(new: PyTree, old: PyTree) -> PyTree:
    """What is carried on, if it can take the place of what was carried."""
    new = strong(new)
    one: Any = jax.tree.structure(new)
    if one != jax.tree.structure(old) or _shown(new) != _shown(old):
        raise BadInput(f"loss: carries on {_shown(new)}; carry it as it came, {_shown(old)}")
    return new


def _shown(tree: Any) -> str:
    """A pytree with its arrays as dtype[shape].

    >>> _shown({"mean": jnp.zeros((2, 3))})
    "{'mean': float32[2, 3]}"
    """

    class Named(str):
        def __repr__(self) -> str:
            return str(self)

    def leaf(x: Any) -> Any:
        return Named(f"{x.dtype}{list(x.shape)}" if isinstance(x, Array) else repr(x))

    return repr(jax.tree.map(leaf, tree))
