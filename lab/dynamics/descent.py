"""Gradient descent by any optax optimiser, on the full batch or on minibatches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lab.types import Dynamics, Params, Record


class Descent(NamedTuple):
    """State of gradient descent.

    Attributes:
        params: the parameters.
        opt_state: the optimiser's own state.
        loss: the loss that the last step started from; before the first the largest finite number,
            so that a state is finite until it diverges.
        rises: at how many steps so far the loss was above the one before; of minibatches, each
            loss is that of another batch.
    """

    params: Params
    opt_state: optax.OptState
    loss: Float[Array, ""]
    rises: Int[Array, ""]


def descent(
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    *,
    init: Callable[[], Params],
    observe: Callable[[Descent, Array], Record],
    inspect: Callable[[Descent, Array], Record] | None = None,
    batch: Callable[[Array], Any] | None = None,
) -> Dynamics:
    """Gradient descent, `params <- params + update(grad loss(params))`.

    Args:
        loss: loss(params) -> scalar; loss(params, batch) where `batch` is given.
        optimizer: any optax transformation; its rate may be a tracer.
        init: init() -> params.
        observe: observe(state, t) -> record, of a `Descent`.
        inspect: as `observe`, for what is costly.
        batch: batch(t), the batch of step t, such as
            `lambda t: lab.data.minibatch(key, t, (x, y), size=64)`.

    >>> process = descent(
    ...     lambda w: 0.5 * w**2,
    ...     optax.sgd(0.5),
    ...     init=lambda: jnp.float32(8),
    ...     observe=lambda state, t: {"w": state.params},
    ... )
    >>> process.step(process.init(), jnp.int32(0)).params
    Array(4., dtype=float32)
    """

    def batches(t: Array) -> tuple[Any, ...]:
        return () if batch is None else (batch(t),)

    def start() -> Descent:
        params = init()
        before = unknown(loss, params, *jax.eval_shape(batches, jnp.int32(0)))
        return Descent(params, optimizer.init(params), before, jnp.int32(0))

    def step(state: Descent, t: Array) -> Descent:
        moved = updated(loss, optimizer, state.params, state.opt_state, *batches(t))
        return Descent(*moved, state.rises + (moved[2] > state.loss))

    return Dynamics(start, step, observe, inspect)


def unknown(loss: Callable[..., Array], *arguments: Any) -> Float[Array, ""]:
    """The largest finite number of a loss's dtype: it stands for a loss not known yet.

    >>> float(unknown(lambda w: w**2, jnp.float16(1)))
    65504.0
    """
    like = jax.eval_shape(loss, *arguments)
    return jnp.full((), jnp.finfo(like.dtype).max, like.dtype)


def updated(
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    *arguments: Any,
) -> tuple[Params, optax.OptState, Float[Array, ""]]:
    """One step of an optimiser on loss(params, *arguments): new params and state, and the loss.

    >>> sgd = optax.sgd(0.5)
    >>> updated(lambda w, a: a * w, sgd, jnp.float32(8), sgd.init(jnp.float32(8)), 2.0)[0]
    Array(7., dtype=float32)
    """
    value, gradient = jax.value_and_grad(loss)(params, *arguments)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value
