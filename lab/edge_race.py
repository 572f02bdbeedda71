"""The race of `lab.dynamics.race`, run from where gradient flow comes to the edge of stability."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from lab.dynamics import Flow, race, until_edge
from lab.sweep import final_states, sweep
from lab.tasks import Task
from lab.types import BadInput, Dynamics


def edge_race(
    task: Callable[[Array, Array, Array], Task],
    x: Array,
    y: Array,
    *,
    lrs: tuple[float, ...],
    seeds: Sequence[int],
    warm_steps: int,
    steps: int,
    store: Path,
    directions: int = 1,
    parts: int = 4,
) -> xr.Dataset:
    """Descent, central flow and gradient flow at two rates, from one start a seed.

    The start is where gradient flow from the initial weights comes to 0.97 of 2 / lr, lr the larger
    rate. Dims (lr, seed, step); what a record holds says `race`, of which `swung`, `said`, `lost`
    and `promised` are the sums so far of both variances and both losses.

    Args:
        task: task(seed, x, y), the network of one seed.
        x: examples, shape (n, ...).
        y: their labels.
        lrs: the rates, ascending.
        seeds: of the initial weights; they follow one another.
        warm_steps: steps of gradient flow, each a quarter of the rate, to come to the start.
        steps: of descent after the start.
        store: a folder for both sweeps.
        directions: how many eigenvalues the central flow may hold at 2 / lr.
        parts: Euler steps of the central flow for a step of descent.

    Raises:
        BadInput: other than two rates, ascending.
    """
    if len(lrs) != 2 or lrs[0] >= lrs[1]:
        raise BadInput(f"lrs: {lrs}; give two, ascending")

    def warming(seed: Array | int, x: Array, y: Array) -> Dynamics:
        one = task(jnp.asarray(seed), x, y)
        return until_edge(one.loss, one.init, lr=lrs[1], key=one.measures)

    def racing(lr: Array, seed: Array, x: Array, y: Array, starts: Array) -> Dynamics:
        one = task(seed, x, y)
        start = ravel_pytree(one.init())[1](starts[seed - seeds[0]])
        return race(one.loss, start, lr=lr, key=one.measures, directions=directions, parts=parts)

    shared, where = {"x": x, "y": y}, {"seed": seeds}
    warm = sweep(
        warming,
        where,
        steps=warm_steps,
        every=max(1, warm_steps // 20),
        shared=shared,
        store=store / "warm",
    )
    final: Flow = final_states(warm, jax.eval_shape(warming(0, x, y).init))
    starts = jax.vmap(lambda params: ravel_pytree(params)[0])(final.params)
    data = sweep(
        racing,
        {"lr": lrs, **where},
        steps=steps,
        every=1,
        shared=shared | {"starts": starts},
        attrs={"seed": {"vary": "initial weights"}},
        store=store / "race",
    )
    sums = {
        "swung": data.variance,
        "said": data.predicted_variance,
        "lost": data.loss,
        "promised": data.predicted_loss,
    }
    return data.assign({name: values.cumsum("step") for name, values in sums.items()})
