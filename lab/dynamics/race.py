"""Gradient descent, its central flow and gradient flow side by side, from one start."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from lab.dynamics.central_flow import central_flow
from lab.dynamics.descent import descent
from lab.dynamics.flow import gradient_flow
from lab.types import Dynamics, Params


def race(
    loss: Callable[[Params], Array],
    start: Params,
    *,
    lr: float | Array,
    key: PRNGKeyArray,
    directions: int = 1,
    parts: int = 4,
) -> Dynamics:
    """Descent at a rate, and the two flows a unit of time `lr` each step.

    A step of descent oscillates: it is compared by the mean of two iterates, now and before, and
    its swing, half their difference, is a cycle's amplitude. A record holds

        from_central, from_flow     distance of that mean from the central flow, from gradient flow
        variance                    squared swing along the central flow's directions
        predicted_variance          tr X, of the central flow
        loss                        of descent
        central_loss                of the central flow's centre, L
        predicted_loss              L + tr X / lr, the mean over the oscillation
        top                         lr times the largest eigenvalue at the centre
        held                        how many eigenvalues are at 2 / lr

    Args:
        loss: of the parameters alone.
        start: of all three.
        lr: the rate.
        key: for the first directions.
        directions: how many eigenvalues the central flow may hold at 2 / lr.
        parts: Euler steps of the central flow for a step of descent.
    """
    same: dict[str, Any] = {"init": lambda: start, "observe": lambda state, t: {}}
    processes = {
        "descent": descent(loss, optax.sgd(lr), **same),
        "central": central_flow(loss, lr=lr, key=key, directions=directions, parts=parts, **same),
        "flow": gradient_flow(loss, dt=lr, key=key, **same),
    }

    def init() -> dict[str, Any]:
        return {name: process.init() for name, process in processes.items()} | {"before": start}

    def step(states: Mapping[str, Any], t: Array) -> dict[str, Any]:
        moved = {name: process.step(states[name], t) for name, process in processes.items()}
        return moved | {"before": states["descent"].params}

    def observe(states: Mapping[str, Any], t: Array) -> dict[str, Array]:
        central = states["central"]
        every = (states["descent"].params, states["before"], central.params, states["flow"].params)
        now, before, centre, other = (ravel_pytree(params)[0] for params in every)
        swing = central.directions @ (now - before) / 2  # a cycle of two steps: ± its amplitude
        spread, central_loss = jnp.trace(central.covariance), loss(central.params)
        return {
            "from_central": jnp.linalg.norm((now + before) / 2 - centre),
            "from_flow": jnp.linalg.norm((now + before) / 2 - other),
            "variance": jnp.sum(swing**2),
            "predicted_variance": spread,
            "loss": loss(states["descent"].params),
            "central_loss": central_loss,
            "predicted_loss": central_loss + spread / lr,
            "top": central.eigenvalues[0] * lr,
            "held": jnp.sum(lr * central.eigenvalues > 1.999),
        }

    return Dynamics(init, step, observe)


def until_edge(
    loss: Callable[[Params], Array],
    init: Callable[[], Params],
    *,
    lr: float,
    key: PRNGKeyArray,
    share: float = 0.97,
) -> Dynamics:
    """Gradient flow up to a share of the edge 2 / lr, by Euler steps of a quarter of the rate.

    Args:
        loss: of the parameters alone.
        init: init() -> params.
        lr: the rate that sets the edge.
        key: for the first direction.
        share: of 2 / lr, where the flow stops.
    """
    return gradient_flow(
        loss,
        init=init,
        dt=lr / 4,
        key=key,
        observe=lambda state, t: {"sharpness": state.sharpness, "time": state.time},
        until=lambda state: state.sharpness >= share * 2 / lr,
    )
