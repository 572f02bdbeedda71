"""Learning from one's own moving average: an online network that predicts a target network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lab.dynamics.descent import Objective, begun, objectives, updated
from lab.numerics import single
from lab.types import Dynamics, Params, Record


class Bootstrap(NamedTuple):
    """State of bootstrapping.

    Attributes:
        params: of the online network, which gradients move.
        target: of the target network, their moving average.
        opt_state: the optimiser's own state.
        loss: that the last step started from; before the first that of the initial params, on the
            batch of step 0.
    """

    params: Params
    target: Params
    opt_state: optax.OptState
    loss: Float[Array, ""]


def bootstrap(
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    *,
    init: Callable[[], Params],
    average: float | Array,
    observe: Callable[[Bootstrap, Array], Record],
    inspect: Callable[[Bootstrap, Array], Record] | None = None,
    batch: Callable[[Array], Any] | None = None,
) -> Dynamics:
    """Descent of `loss(params, target)` by params alone, the target following them slowly.

        params <- params + update(∂ loss / ∂ params),   target <- a target + (1 - a) params

    with the new params. At a = 0 the target is the params themselves (SimSiam), at 1 the network at
    init (a random target). Source: Grill et al. 2020, arXiv 2006.07733, equation 1.

    Args:
        loss: loss(params, target) -> scalar; loss(params, target, batch) where `batch` is given.
        optimizer: any optax transformation; its rate may be a tracer.
        init: init() -> params; the target starts as a copy, of bfloat16 or float16 in float32.
        average: a, from 0 to 1; may be a tracer.
        observe: observe(state, t) -> record, of a `Bootstrap`.
        inspect: as `observe`, for what is costly.
        batch: batch(t), the batch of step t.

    >>> process = bootstrap(
    ...     lambda w, target: 0.5 * (w - target - 1) ** 2,
    ...     optax.sgd(1.0),
    ...     init=lambda: jnp.float32(0),
    ...     average=0.9,
    ...     observe=lambda state, t: {"w": state.params},
    ... )
    >>> state = process.step(process.init(), jnp.int32(0))
    >>> float(state.params), round(float(state.target), 3)
    (1.0, 0.1)
    """

    def objective(target: Params, t: Array) -> Objective:
        return objectives(lambda params, *of: loss(params, target, *of), batch=batch)(None, t)

    def start() -> Bootstrap:
        params = init()
        opt_state, value, _ = begun(objective(single(params), jnp.int32(0)), optimizer, params)
        return Bootstrap(params, single(params), opt_state, value)

    def step(state: Bootstrap, t: Array) -> Bootstrap:
        params, opt_state, value, _ = updated(
            objective(state.target, t), optimizer, state.params, state.opt_state
        )
        target = optax.incremental_update(single(params), state.target, 1 - average)
        return Bootstrap(params, target, opt_state, value)

    return Dynamics(start, step, observe, inspect)
