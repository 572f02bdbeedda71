"""How deep a network can be trained: as far as what it is told reaches, unless layers have a skip.

In the ordered phase two inputs' correlation closes its gap to 1 by exp(-1 / xi) a layer, and their
gradients as much, so that some multiple of the depth scale xi can be trained, whatever the weights'
variance. A skip carries input and gradient past each layer.

    python -m experiments depth_scale          # quick: half a minute on two cores
    python -m experiments depth_scale paper    # two minutes; writes figures/

MNIST (14 x 14, 2,000 digits), tanh, 64 units a layer, biases' variance 0.05, 300 steps of SGD of
rate 0.003 and momentum 0.9 on batches of 64. xi is 1.2, 2.3, 3.6, 5.9 layers. Effective depth is
the least of those tried times exp of the area under the accuracy beyond chance, over log depth.
Expect nearly 6 xi. At a rate of 0.01 small xi go deeper, large ones do not: the exponent, 1 here,
is 0.75 there.

Source: Schoenholz et al. 2017, arXiv 1611.01232, where depths to about 6 xi can be trained. The
rate, the only one kept, and tolerances are of seeds 100 to 102.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above
from lab.data import Digits, minibatch, mnist
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.objectives import accuracy, cross_entropy
from lab.plotting import STYLES, curve, key, panels, points
from lab.sweep import sweep
from lab.theory.signal import mean_field
from lab.types import BadInput, Dynamics, Params

SOURCE = "Schoenholz et al. 2017, arXiv 1611.01232: trainable depth is a multiple of xi"
BIAS = 0.05
"""The biases' variance."""
CHANCE = 0.1


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    weights: tuple[float, ...] = (0.5, 0.8, 1.0, 1.2)  # Weights' variances, of the ordered phase.
    depths: tuple[int, ...] = (3, 4, 6, 8, 12, 16, 24, 32, 48)  # Hidden layers, ascending.
    width: int = 64  # Units of each.
    lr: float = 0.003  # Learning rate.
    steps: int = 300  # Of SGD.
    seeds: int = 5  # How many draws of weights and batches.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses fewer than two variances or depths, or that do not ascend; chaos."""
        for name, grid in (("weights", self.weights), ("depths", self.depths)):
            if len(grid) < 2 or [*grid] != sorted({*grid}) or grid[0] <= 0:
                raise BadInput(f"{name}: {grid}; give two or more above 0, ascending")
        if self.weights[-1] > 1.6:
            raise BadInput(f"weights: {self.weights}; give some of order, up to 1.6")


PRESETS = {
    "quick": Config(weights=(0.5, 1.0), depths=(3, 4, 6, 9, 14, 20, 28), seeds=4),
    "paper": Config(),
}


def training(
    weight: Array, depth: Array, skip: Array, seed: Array, train: Digits, *, config: Config
) -> Dynamics:
    """SGD on as many layers as `depth` says; those beyond it pass on what they are given."""
    first, hidden, biases, last, batches = jax.random.split(jax.random.key(seed), 5)
    n, most, d = config.width, config.depths[-1], train.x.shape[1]
    start = {
        "first": jax.random.normal(first, (d, n)) / d**0.5,
        "hidden": jnp.sqrt(weight / n) * jax.random.normal(hidden, (most, n, n)),
        "biases": BIAS**0.5 * jax.random.normal(biases, (most, n)),
        "last": jax.random.normal(last, (n, 10)) / n**0.5,
    }

    def outputs(params: Params, x: Array) -> Array:
        def layer(h: Array, given: tuple[Array, Array, Array]) -> tuple[Array, None]:
            i, w, b = given
            return jnp.where(i < depth, skip * h + jnp.tanh(h) @ w + b[None], h), None

        layers = jnp.arange(most), params["hidden"], params["biases"]
        return jnp.tanh(jax.lax.scan(layer, x @ params["first"], layers)[0]) @ params["last"]

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        return {"accuracy": accuracy(outputs(state.params, train.x[:500]), train.labels[:500])}

    return descent(
        lambda params, batch: cross_entropy(outputs(params, batch[0]), batch[1]),
        optax.sgd(config.lr, momentum=0.9),
        init=lambda: start,
        observe=observe,
        batch=lambda t: minibatch(batches, t, (train.x, train.labels), size=64),
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Every variance and depth, without a skip and with it."""
    data = sweep(
        partial(training, config=config),
        {
            "weight": config.weights,
            "depth": config.depths,
            "skip": [0.0, 1.0],
            "seed": seeds(config),
        },
        steps=config.steps,
        every=config.steps,
        shared={"train": mnist(2_000, pool=2).train},
        attrs={"seed": {"vary": "weights and batches"}},
        store=store,
    ).isel(step=-1, drop=True)
    scales = [-1 / np.log(mean_field(jnp.tanh, w, BIAS).slope) for w in config.weights]
    return {"trained": data.assign(scale=("weight", np.array(scales, float)))}


def effective_depth(data: xr.Dataset) -> xr.DataArray:
    """The least depth, times exp of the area under accuracy beyond chance over log depth."""
    beyond = (data.accuracy.assign_coords(depth=np.log(data.depth)) - CHANCE) / (1 - CHANCE)
    return float(data.depth[0]) * np.exp(beyond.integrate("depth"))


def expected(config: Config) -> dict[str, Expected]:
    """In proportion to the depth scale, some six times it; not so with a skip."""
    by = partial(Expected, kind="published value", source=SOURCE, vary="weights and batches")
    why = "accuracy falls over a factor of two in depth"
    return {
        "proportion": by(
            "trainable depth grows in proportion to the depth scale",
            about(1.0, within=0.3, why=why),
            Control("with a skip it does not", about(0.0, within=0.3, why=why)),
            estimator="slope of log effective depth against log xi, over the variances",
        ),
        "multiple": by(
            "networks can be trained to about 6 depth scales",
            about(6.0, within=2.0, why=why + "; it takes longer training to go deeper"),
            Control("with a skip much deeper", above(10.0, why="half as deep again and more")),
            estimator="effective depth over xi, geometric mean over the variances",
            scale="log",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Without a skip, and with it."""
    trained = data["trained"]
    depth, xi = effective_depth(trained), np.log(trained.scale)
    logs = xr.apply_ufunc(np.log, depth).assign_coords(weight=xi.values)
    slope = logs.polyfit("weight", 1).polyfit_coefficients.sel(degree=1, drop=True)
    ratio = np.exp((np.log(depth) - xi).mean("weight"))
    return {
        "proportion": (slope.sel(skip=0.0), slope.sel(skip=1.0)),
        "multiple": (ratio.sel(skip=0.0), ratio.sel(skip=1.0)),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Accuracy against depth, marked at 6 depth scales; effective depth against depth scale."""
    trained, grey = data["trained"], {"color": "0.5", "lw": 0.8, "zorder": 1}
    effective = effective_depth(trained).assign_coords(weight=trained.scale.values)
    with panels(2, ratio=0.85) as (result, (left, right)):
        for weight, style in zip(trained.weight.values, STYLES, strict=False):
            at = trained.sel(weight=weight)
            label = rf"$w = {weight:g}$, $\xi = {float(at.scale):.1f}$"
            curve(left, at.accuracy.sel(skip=0.0), label=label, **style)
            left.plot(6 * at.scale, CHANCE / 2, marker="^", color=style["color"], clip_on=False)
        for skip, name, style in ((0.0, "no skip", STYLES[0]), (1.0, "with a skip", STYLES[1])):
            points(right, effective.sel(skip=skip), label=name, **style)
        right.plot(trained.scale, 6 * trained.scale, **grey, label=r"$6 \xi$")
        ticks = trained.depth.values
        left.set(xlabel="hidden layers", ylabel="accuracy", xscale="log", ylim=(0, 1))
        left.set_xticks(ticks, labels=[f"{depth}" for depth in ticks])
        right.set(xlabel=r"depth scale $\xi$", ylabel="effective depth", xscale="log", yscale="log")
        right.set_xticks(trained.scale.values, labels=[f"{xi:.1f}" for xi in trained.scale.values])
        right.set_yticks([6, 12, 24, 48], labels=["6", "12", "24", "48"])
        for axes in (left, right):
            axes.minorticks_off()
        key(left, columns=2, title=r"no skip; triangles: $6 \xi$")
        key(right, columns=2)
    return result


if __name__ == "__main__":
    main(__name__)
