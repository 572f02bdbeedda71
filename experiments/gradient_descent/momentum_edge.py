"""Momentum moves the edge of stability; Adam has an edge of its own (Cohen et al. 2021, 2022).

Full batch, tanh network 196-32-32-10, 512 MNIST digits (14 x 14), half squared error. Sharpness
rises to the largest curvature at which the method would converge on a quadratic, and stays there
(derivations: `lab.theory.edges`; b = 0.9):

    gradient descent 2 / lr     heavy ball 2 (1 + b) / lr     Nesterov 2 (1 + b) / ((1 + 2b) lr)
    Adam, its preconditioned sharpness: 2 (1 + b1) / ((1 - b1) lr) = 38 / lr

    python -m experiments momentum_edge          # quick: half a minute on two cores
    python -m experiments momentum_edge paper    # two minutes; writes figures/

Expect each within a percent of its edge. Adam reaches its edge at any rate, in time: at 0.0005
within 6,000 steps, hence the small control. The rate rises from 0; without that, gradient descent
at 0.5 diverged in three seeds of four.

Sources: Cohen et al. 2021, arXiv 2103.00065 (momentum), and 2022, arXiv 2207.14484 (Adam). Rates
were chosen on seeds 100 to 103, which no preset uses, so that the edge lies below the sharpness
(12) that small rates attain.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, below
from lab.data import mnist
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures import curvature
from lab.measures.curves import late
from lab.models import mlp
from lab.plotting import STYLES, curve, key, panels, theory_line
from lab.sweep import sweep
from lab.tasks import regression
from lab.theory import edges
from lab.types import Dynamics

B = 0.9
SMALL = 0.02  # the control's share of a rate, at which no edge is reached
COHEN = "Cohen et al. 2021, arXiv 2103.00065: the edge with Polyak and with Nesterov momentum"


class Method(NamedTuple):
    """A method, its rate, and the sharpness at its edge, in units of 1 / rate."""

    optimizer: Callable[..., Any]
    lr: float
    edge: Any
    source: str = COHEN


METHODS = {
    "gradient descent": Method(optax.sgd, 0.5, edges.gradient_descent(1.0)),
    "heavy ball": Method(partial(optax.sgd, momentum=B), 1.0, edges.heavy_ball(1.0, B)),
    "Nesterov": Method(partial(optax.sgd, momentum=B, nesterov=True), 0.3, edges.nesterov(1.0, B)),
    "Adam": Method(
        partial(optax.adam, b1=B),
        0.01,
        edges.adam(1.0, B),
        "Cohen et al. 2022, arXiv 2207.14484, abstract: 38 / lr at b1 = 0.9",
    ),
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    seeds: int = 8
    """How many initialisations."""
    first_seed: int = 0
    """The first of them."""
    warmup: int = 2_000
    """Steps over which the rate rises from 0."""
    steps: int = 6_000
    """Steps of each run."""
    every: int = 100
    """Steps between two measurements."""
    krylov: int = 20
    """Hessian-vector products for a measurement of sharpness."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers."""


PRESETS = {"quick": Config(seeds=4, warmup=1_000, steps=4_000), "paper": Config()}


def training(
    share: Array, seed: Array, x: Array, y: Array, *, optimizer: str, config: Config
) -> Dynamics:
    """One method on the full batch; sharpness, of Adam preconditioned."""
    model = mlp((x.shape[1], *config.hidden, y.shape[1]), gain=0.25)
    task, method = regression(model, seed, x, y), METHODS[optimizer]

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        return {"loss": task.loss(state.params)}

    def inspect(state: Descent, t: Array) -> dict[str, Array]:
        operator = curvature.hessian(task.loss, state.params)
        if optimizer == "Adam":
            preconditioner = curvature.adam_preconditioner(state.opt_state, b1=B)
            operator = curvature.preconditioned(operator, preconditioner)
        top = curvature.top_eigenpair(operator, key=task.measures, k=config.krylov)
        return {"sharpness": top.value, "residual": top.residual}

    warmed = method.optimizer(optax.linear_schedule(0.0, share * method.lr, config.warmup))
    return descent(task.loss, warmed, init=task.init, observe=observe, inspect=inspect)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Each method at its rate, and at the control's share of it."""
    digits = mnist(512, pool=2).train
    data = sweep(
        partial(training, config=config),
        {"share": [SMALL, 1.0], "seed": seeds(config)},
        static={"optimizer": [*METHODS]},
        steps=config.steps,
        every=config.every,
        inspect_every=config.every,
        shared={"x": digits.x, "y": digits.y},
        attrs={"seed": {"vary": "initial weights"}},
        store=store,
    )
    edge = xr.DataArray([method.edge / method.lr for method in METHODS.values()], dims="optimizer")
    rising = np.minimum(data.step_rare / config.warmup, 1.0)
    return {"methods": data.assign(ratio=rising * data.share * data.sharpness / edge)}


def expected(config: Config) -> dict[str, Expected]:
    """Each method settles at its edge, and far below it at a small share of its rate."""
    return {
        name: Expected(
            f"{name}, lr {method.lr:g}: sharpness settles at its edge",
            about(1.0, within=0.03, why="oscillation lifts it; the edges are 1.4 times apart"),
            Control(
                f"at {SMALL:g} of that rate it stays far below",
                below(0.7, why="far from the 0.97 that counts as the edge"),
            ),
            kind="closed form",
            source=method.source,
            estimator="sharpness over the edge, mean over the second half of the run",
            vary="initial weights",
            scale="log",
        )
        for name, method in METHODS.items()
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Of each method: at its rate, and at the control's share of it."""
    ratio = late(data["methods"].ratio)
    return {
        name: (at.sel(share=1.0), at.sel(share=SMALL))
        for name in METHODS
        for at in [ratio.sel(optimizer=name)]
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Sharpness over the edge against step."""
    with panels(ratio=0.5) as (result, (axes,)):
        for name, style in zip(METHODS, STYLES, strict=False):
            at = data["methods"].ratio.sel(optimizer=name)
            curve(axes, at.sel(share=1.0), label=name, **style)
            curve(axes, at.sel(share=SMALL), **{**style, "linewidth": 0.5})
        theory_line(axes, 1.0)
        axes.annotate(f"thin: {SMALL:g} of the rate", (0.5, 0.62), xycoords="axes fraction")
        axes.set(xlabel="step", ylabel="sharpness / the method's edge", ylim=(0, 1.3))
        key(axes, columns=4)
    return result


if __name__ == "__main__":
    main(__name__)
