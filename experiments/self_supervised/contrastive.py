"""Below temperature 0.2 uniformity and the distance of views turn back, against Wang and Liu.

NT-Xent on two fresh views of MNIST digits (14 x 14): encoder 196-256-64, projector 64-64-32, Adam.
Wang and Liu: the lower the temperature the more uniform, and the farther apart the views. So it is
above 0.2, though distance falls only to 0.42 at 1 and is 0.46 at 10 (found, not claimed). Below 0.2
both turn: at 0.05 uniformity is worse by 1.05, after four times the steps still by 0.7 (seeds 100
to 102).

Far above what cosines differ by, the loss is log(2n - 1) less a mean of cosines over temperature, a
scale that Adam removes: from 10 to 20 little should change, which is the control. It is 0.09 of
uniformity [0.03, 0.15], in two seeds of twelve more than the 0.1 that count: inconclusive there.

    python -m experiments contrastive          # quick: half a minute on two cores
    python -m experiments contrastive paper    # six busy minutes; writes figures/

Sources: Wang and Liu 2021, arXiv 2012.09740; Wang and Isola 2020, arXiv 2005.10242 (alignment,
uniformity). Settings and bands were set on seeds 100 and up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, above, below
from lab.data import Augmentation, mnist, two_views
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.models import mlp
from lab.objectives import alignment, uniformity
from lab.plotting import STYLES, curve, key, panels, points, shades
from lab.sweep import sweep
from lab.tasks import contrast
from lab.types import BadInput, Dynamics

VIEWS = Augmentation(shift=2.0, rotation=0.3, stretch=0.15, elastic=0.5, noise=0.2)
ENCODER = mlp((196, 256, 64), activation="relu", gain=2.0)
HEAD = mlp((64, 64, 32), activation="relu", gain=2.0)
LOW, MIDDLE, HIGH = 0.05, 0.2, 2.0  # Temperatures that claims are about.
FLAT = (10.0, 20.0)  # Far above what cosines differ by: controls.
WANG = "Wang and Liu 2021, arXiv 2012.09740"


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    temperatures: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # Of the loss, ascending.
    batch: int = 64  # Digits in a batch, each in two views.
    lr: float = 1e-3  # Adam's rate.
    examples: int = 3_000  # Digits to train on.
    held: int = 512  # Digits on which views are compared, trained on by none.
    steps: int = 600  # Minibatch steps.
    every: int = 50  # Steps between two records.
    seeds: int = 12  # How many weights, orders of batches, and views.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses temperatures that do not ascend, or without those that are claimed."""
        given, needed = self.temperatures, {LOW, MIDDLE, HIGH}
        if [*given] != sorted({*given} | needed) or given[0] < LOW or given[-1] > HIGH:
            raise BadInput(f"temperatures: {given}; give them ascending, with {sorted(needed)}")


PRESETS = {
    "quick": Config(temperatures=(0.05, 0.2, 0.5, 2.0), seeds=6, steps=400),
    "paper": Config(),
}


def learning(temperature: Array, seed: Array, x: Array, held: Array, *, config: Config) -> Dynamics:
    """Contrastive learning at one temperature."""
    own_key, held_key = jax.random.split(jax.random.key(seed))
    task = contrast(
        ENCODER,
        HEAD,
        own_key,
        x,
        how=VIEWS,
        fill=x.min(0),
        size=config.batch,
        temperature=temperature,
    )

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        pair = two_views(held_key, held, VIEWS, fill=x.min(0))
        first, second = jnp.split(task.embedded(state.params, jnp.concatenate(pair)), 2)
        return {"distance": alignment(first, second), "uniformity": uniformity(first)}

    adam = optax.adam(config.lr)
    return descent(task.loss, adam, init=task.init, observe=observe, batch=task.batch)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Every temperature, and two far above."""
    train, test = mnist(config.examples, pool=2, test=config.held)
    data = sweep(
        partial(learning, config=config),
        {"temperature": [*config.temperatures, *FLAT], "seed": seeds(config)},
        shared={"x": train.x, "held": test.x},
        steps=config.steps,
        every=config.every,
        store=store,
    )
    return {"temperatures": data}


def expected(config: Config) -> dict[str, Expected]:
    """Temperature, by what it should not change."""
    by = partial(Expected, kind="direction", vary="initial weights, batches and views")
    still = "from {:g} to {:g}, far above what cosines differ by, it does not".format(*FLAT)
    same = "as for the claim"
    return {
        "uniform": by(
            f"from {MIDDLE:g} up to {HIGH:g}, the lower the temperature the more uniform",
            above(0.1, why="a tenth a step: a factor 1.1 in the potential of pairs"),
            Control(still, below(0.1, why=same)),
            source=WANG,
            estimator="least rise of uniformity from one temperature to the next",
        ),
        "turn": by(
            f"not so below: at {LOW:g} embeddings are less uniform than at {MIDDLE:g}",
            above(0.3, why="three times what counts above"),
            Control(still, below(0.3, why=same)),
            source=f"against {WANG}, where uniformity rises as temperature falls",
            estimator="uniformity at the lower temperature less that at the higher",
        ),
        "distance": by(
            f"views are farther apart at {MIDDLE:g} than at any higher temperature, to {HIGH:g}",
            above(1.02, why="by a fiftieth"),
            Control(still, below(1.02, why=same)),
            source=WANG,
            estimator="squared distance of views at the lowest over the largest above",
            scale="log",
        ),
        "near": by(
            f"not so below: at {LOW:g} views are nearer to each other than at {MIDDLE:g}",
            below(0.9, why="by a tenth"),
            Control(still, above(0.9, why=same)),
            source=f"against {WANG}, where alignment worsens as temperature falls",
            estimator="squared distance of views at the lower temperature over that at the higher",
            scale="log",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """From one temperature to the next, at the end."""
    end = data["temperatures"].isel(step=-1)
    low, high, flat = (
        end.sel(temperature=slice(*ends)).transpose("temperature", "seed")
        for ends in ((LOW, MIDDLE), (MIDDLE, HIGH), FLAT)
    )

    def rise(at: xr.Dataset) -> xr.DataArray:
        return at.uniformity.diff("temperature").min("temperature")

    def fall(at: xr.Dataset) -> xr.DataArray:
        return at.uniformity[0] - at.uniformity[-1]

    def farther(at: xr.Dataset) -> xr.DataArray:
        return at.distance[0] / at.distance[1:].max("temperature")

    def nearer(at: xr.Dataset) -> xr.DataArray:
        return at.distance[0] / at.distance[-1]

    measures = {"uniform": (rise, high), "turn": (fall, low)}
    measures |= {"distance": (farther, high), "near": (nearer, low)}
    return {name: (of(at), of(flat)) for name, (of, at) in measures.items()}


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Uniformity and distance of views against temperature; uniformity against step."""
    every = data["temperatures"]
    with panels(3, ratio=1.0) as (result, grid):
        for axes, name in zip(grid, ("uniformity", "distance"), strict=False):
            points(axes, every[name].isel(step=-1), label="at the end", **STYLES[0])
            axes.axvline(MIDDLE, color="0.7", lw=0.8, zorder=0, label=f"temperature {MIDDLE:g}")
            axes.set(xscale="log", xlabel="temperature")
            key(axes, columns=1)
        grid[0].set(ylabel="uniformity (0: all alike)")
        grid[1].set(ylabel="squared distance of views", ylim=(0, None))
        for t, style, colour in zip((LOW, MIDDLE, HIGH, FLAT[0]), STYLES, shades(4), strict=False):
            at = every.uniformity.sel(temperature=t)
            curve(grid[2], at, label=f"{t:g}", **{**style, "color": colour})
        grid[2].set(xlabel="step", ylabel="uniformity")
        key(grid[2], columns=2, title="temperature")
    return result


if __name__ == "__main__":
    main(__name__)
