"""Where several eigenvalues come to the edge, the central flow still predicts (Cohen et al. 2024).

Digits (7 x 7), 200 examples, tanh network 49-24-2 from small weights, two outputs: 3 or 8 against 4
or 9, and 3 or 4 against 8 or 9; loss 1/2 squared error, in float64. At this rate up to three
eigenvalues come to 2 / lr together, and a central flow that may hold three of them
(`lab.dynamics.central_flow`) predicts how far gradient descent swings along them, tr X, and its
mean loss, L + tr X / lr. All start where gradient flow comes to 0.97 of 2 / lr, and go on side by
side; the control is the same network at a tenth of the rate, whose 2 / lr is not reached.

    python -m experiments central_flow_several          # quick: a minute on two cores
    python -m experiments central_flow_several paper    # a minute; writes figures/

Expect variance within a tenth, on average over seeds, loss within 3% (a fifth more than L alone),
and two eigenvalues at the edge for a quarter of the race in three seeds of four: inconclusive with
sixteen, though seven of eight did so in trials. (A flow of one direction follows whichever
eigenvalue is on top, and predicts the same sums here.)

Source: Cohen, Damian, Talwalkar, Kolter and Lee 2024, arXiv 2410.24206. Settings and
tolerances were chosen on seeds 100 to 103, which no preset uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below
from lab.data import mnist
from lab.edge_race import edge_race
from lab.experiment import main, seeds
from lab.models import mlp
from lab.plotting import STYLES, curve, key, panels
from lab.tasks import Task, regression
from lab.types import BadInput

x64 = True
COHEN = "Cohen et al. 2024, arXiv 2410.24206"
GAIN = 0.1  # variance of the initial weights times their fan-in


@dataclass(frozen=True)
class Config:
    """Settings of the race; refuses other than two rates, ascending."""

    lrs: tuple[float, ...] = (0.05, 0.5)
    """Two learning rates; the smaller is the control, whose 2 / lr is not reached."""
    directions: int = 3
    """How many eigenvalues the central flow may hold at the edge."""
    seeds: int = 16
    """How many initialisations."""
    first_seed: int = 0
    """The first of them."""
    steps: int = 200
    """Steps of gradient descent after the common start."""
    warm_steps: int = 2_400
    """Steps of gradient flow, each a quarter of the rate, in which to come to the start."""
    parts: int = 4
    """Euler steps of the central flow for a step of gradient descent."""
    hidden: int = 24
    """Width of the hidden layer."""
    examples: int = 200
    """Digits in the training set."""

    def __post_init__(self) -> None:
        if len(self.lrs) != 2 or self.lrs[0] >= self.lrs[1]:
            raise BadInput(f"lrs: {self.lrs}; give two, ascending")


PRESETS = {"quick": Config(seeds=8, steps=100), "paper": Config()}


def task(seed: Array, x: Array, y: Array, *, config: Config) -> Task:
    """The network of one seed."""
    return regression(mlp((x.shape[1], config.hidden, y.shape[1]), gain=GAIN), seed, x, y)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """The way to the common start, and the race at both rates."""
    digits = mnist(config.examples, pool=4, classes=(3, 8, 4, 9)).train
    labels = np.asarray(digits.labels)
    y = 2.0 * np.stack([labels // 2, labels % 2], axis=1) - 1.0
    data = edge_race(
        partial(task, config=config),
        jnp.asarray(digits.x, float),
        jnp.asarray(y),
        lrs=config.lrs,
        seeds=seeds(config),
        warm_steps=config.warm_steps,
        steps=config.steps,
        directions=config.directions,
        parts=config.parts,
        store=store,
    )
    return {"race": data}


def expected(config: Config) -> dict[str, Expected]:
    """More than one at the edge, their variance and the mean loss; at a small rate, none."""
    small, large = config.lrs
    claim = partial(Expected, source=COHEN, vary="initial weights")
    return {
        "held": claim(
            "two eigenvalues or more are at the edge together",
            above(0.5, why="in more seeds than not; the interval decides"),
            Control(f"lr {small:g}: they are not", below(0.5, why="in fewer seeds than not")),
            kind="direction",
            estimator="share of seeds in which it holds two at 2 / lr for a quarter of the race",
        ),
        "variance": claim(
            "a flow of several directions predicts the variance along them",
            about(1.0, within=0.12, why="twice that of one: directions disturb each other"),
            Control(
                f"lr {small:g}: it hardly oscillates",
                below(0.05, why="a twentieth of what is predicted at the edge"),
            ),
            kind="closed form",
            estimator=f"mean squared swing along the directions / mean of tr X at lr {large:g}",
        ),
        "loss": claim(
            "the mean loss is L + tr X / lr",
            about(1.0, within=0.06, why="half as wide as the variance's"),
            Control("it is not L alone", above(1.1, why="well outside of the band")),
            kind="closed form",
            estimator="mean loss of gradient descent / mean of the prediction",
            scale="log",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """At the large rate and the small, and by what is predicted without tr X."""
    race = data["race"].transpose("lr", "seed", "step")
    mean = race[["variance", "predicted_variance", "loss", "central_loss", "predicted_loss"]]
    mean = mean.mean("step")
    at, spread = mean.isel(lr=1), mean.predicted_variance.isel(lr=1)
    spread = spread.where(spread > 0)  # a seed that never came to the edge cannot be judged
    together = (race.held >= 2).mean("step") >= 0.25
    return {
        "held": (together.isel(lr=1), together.isel(lr=0)),
        "variance": (at.variance / spread, mean.variance.isel(lr=0) / spread),
        "loss": (at.loss / at.predicted_loss, at.loss / at.central_loss),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """How many eigenvalues are at the edge; the swing of every seed; distances."""
    at = data["race"].isel(lr=1)
    dashed = {"color": "black", "linewidth": 0.6, "linestyle": (0, (4, 2))}
    with panels(3, ratio=1.0) as (result, (left, middle, right)):
        curve(left, at.held, label="central flow", **STYLES[0])
        for seed in at.seed.values:
            one, first = at.sel(seed=seed), seed == at.seed.values[0]
            names = ("descent", "central flow") if first else (None, None)
            style = {"color": STYLES[0]["color"], "linewidth": 0.7}
            middle.plot(at.step, one.swung, label=names[0], **style)
            middle.plot(at.step, one.said, label=names[1], **dashed)
        later = at.isel(step=slice(1, None))  # they start together
        for name, label, style in (
            ("from_flow", "gradient flow", STYLES[1]),
            ("from_central", "central flow", STYLES[0]),
        ):
            curve(right, later[name], log=True, label=label, **style)
        left.set(ylabel="eigenvalues at 2 / lr", ylim=(0, 3))
        middle.set(ylabel="squared swing, summed")
        right.set(yscale="log", ylabel="distance from descent")
        for axes in (left, middle, right):
            axes.set(xlabel="step")
            key(axes, columns=1)
    return result


if __name__ == "__main__":
    main(__name__)
