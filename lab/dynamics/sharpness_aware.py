"""Sharpness-aware minimisation: descent by the gradient a little uphill."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray, PyTree

from lab.dynamics.descent import Descent, Objective, descending, objectives, steepest
from lab.numerics import Number, check_not_negative, unit
from lab.types import Dynamics, Params, Record


def sharpness_aware(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    rho: Number,
    init: Callable[[], Params],
    observe: Callable[[Descent, Array], Record],
    inspect: Callable[[Descent, Array], Record] | None = None,
    batch: Callable[[Array], Any] | None = None,
    has_aux: bool = False,
    carry: Callable[[], PyTree] | None = None,
    key: PRNGKeyArray | None = None,
) -> Dynamics:
    """Descent by the gradient at `w + rho g / |g|`, g the gradient at w, on the same batch.

    The length is that of all parameters together; where g is 0, so is the way uphill. The loss of
    the state is that at w, and so is its aux: statistics are carried on from there. A step takes
    two gradients. (`optax.contrib.sam` gives every second step to the ascent, unless opaque.)

    Source: Foret, Kleiner, Mobahi and Neyshabur 2021, arXiv 2010.01412, with p = 2.

    Args:
        loss: as `descent` takes it, and so all that is not named here.
        optimizer: any optax transformation, given that gradient.
        rho: how far uphill, zero or more; may be a tracer.
        init: init() -> params.
        observe: observe(state, t) -> record, of a `Descent`.
        inspect: as `observe`, for what is costly.
        batch: batch(t), the batch of step t.
        has_aux: whether the loss returns (value, aux).
        carry: carry() -> what the loss is given beside the params at step 0.
        key: where the loss draws; both gradients of a step draw the same.

    Raises:
        BadInput: rho below zero, and as `descent`.

    >>> process = sharpness_aware(
    ...     lambda w: 0.5 * w**2,
    ...     optax.sgd(0.5),
    ...     rho=2.0,
    ...     init=lambda: jax.numpy.float32(8),
    ...     observe=lambda state, t: {"w": state.params},
    ... )
    >>> float(process.step(process.init(), jax.numpy.int32(0)).params)  # the gradient at 10 is 10
    3.0
    """
    check_not_negative(rho=rho)

    def uphill(objective: Objective, params: Params) -> tuple[tuple[Array, Any], Params]:
        here, gradient = steepest(objective, params)
        flat, unravel = ravel_pytree(gradient)
        above = jax.tree.map(
            lambda w, u: (w + rho * u).astype(w.dtype), params, unravel(unit(flat))
        )
        return here, steepest(objective, above)[1]

    objective = objectives(loss, batch=batch, has_aux=has_aux, carry=carry, key=key)
    return descending(uphill, objective, optimizer, init, carry, observe, inspect)
