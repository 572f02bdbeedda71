"""The mean loss of SGD on linear regression obeys an exact recursion that averages can hide.

Online SGD with constant rate on 32 Gaussian inputs whose covariance has eigenvalues i^-1/2, loss
1/2 mean squared residual, a fresh batch of B each step. Gaussian fourth moments close the recursion
of the mean (`lab.theory.sgd`), which diverges above a critical rate: 0.185, 0.658, 1.603 for B = 1,
4, 16 against 2 for descent. A run is one draw of start and batches; runs are averaged in groups,
and a group's mean is one value.

    python -m experiments sgd_recursion          # quick: half a minute on two cores
    python -m experiments sgd_recursion paper    # 2 minutes; writes figures/

Expect, at half the critical rate, a mean loss within 1% of the recursion, which is 1.5 to 2.3 times
what it would be without the fourth moments. Above the critical rate the mean grows by the spectral
radius, as the first steps show. With 2 inputs it soon lives in runs too rare to be drawn, and the
average of thousands stays many orders below; with 32 inputs the loss hardly has tails, and averages
show the mean. More than 200 lines because losses with noise and without are two sweeps.

Source: the recursion is derived in `lab.theory.sgd`. Settings were chosen on groups from 100,000
on, which no preset uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below
from lab.dynamics import descent
from lab.experiment import main
from lab.plotting import STYLES, curve, key, panels
from lab.sweep import sweep
from lab.theory import sgd
from lab.types import BadInput, Dynamics

SOURCE = "lab.theory.sgd, by Isserlis' theorem"
DIVERGES = {"free": "growth"}
FRACTION, BEYOND = 0.5, (0.25, 1.5)  # of the critical rate: where the mean is followed, and beyond
EARLY = 2  # steps over which growth is read off
BATCHES = (1, 4, 16)


@dataclass(frozen=True)
class Config:
    """Settings of the two sweeps."""

    inputs: int = 32
    """Inputs of the regression."""
    few: int = 2
    """Inputs where averages hide the mean."""
    noise: float = 1.0
    """Standard deviation of the targets' noise."""
    seeds: int = 32
    """How many groups of runs."""
    runs: int = 128
    """Runs in a group."""
    first_seed: int = 0
    """The first group."""
    steps: int = 200
    """Steps of each run; a loss that grows is judged after a quarter of them."""
    every: int = 1
    """Steps between two records."""

    def __post_init__(self) -> None:
        """Refuses fewer steps between start and the quarter of them than growth is read off."""
        if self.steps < 4 * EARLY * self.every:
            raise BadInput(f"steps: {self.steps}; give {4 * EARLY * self.every} or more")


PRESETS = {"quick": Config(seeds=8), "paper": Config()}


def curvatures(inputs: int) -> np.ndarray:
    """Eigenvalues of the inputs' covariance: i^-1/2, whose sum is about ten times the largest."""
    return np.arange(1, inputs + 1) ** -0.5


def training(
    seed: Array, *, lr: float, start: np.ndarray, batch: int, noise: float = 0.0
) -> Dynamics:
    """SGD on the distance to the truth, in the eigenbasis; `start` is its variance at step 0."""
    scale = jnp.sqrt(jnp.array(curvatures(len(start)), jnp.float32))
    init, batches = jax.random.split(jax.random.key(seed))

    def drawn(t: Array) -> tuple[Array, Array]:
        z = jax.random.normal(jax.random.fold_in(batches, t), (batch, len(start) + 1))
        return z[:, :-1] * scale[None], noise * z[:, -1]

    def loss(distance: Array, examples: tuple[Array, Array]) -> Array:
        x, y = examples
        return jnp.mean((x @ distance - y) ** 2) / 2

    return descent(
        loss,
        optax.sgd(lr),
        init=lambda: jnp.sqrt(jnp.array(start, jnp.float32)) * jax.random.normal(init, start.shape),
        observe=lambda state, t: {"loss": jnp.sum((scale * state.params) ** 2) / 2},
        batch=drawn,
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """With noise at several batch sizes; without it around the critical rate."""
    runs, h = config.runs, curvatures(config.inputs)
    drawn = range(config.first_seed * runs, (config.first_seed + config.seeds) * runs)

    def noisy(seed: Array, batch: int) -> Dynamics:
        lr = FRACTION * sgd.critical_rate(h, batch=batch)
        return training(seed, lr=lr, start=np.ones(len(h)), batch=batch, noise=config.noise)

    def free(seed: Array, beyond: float, inputs: int) -> Dynamics:
        lr = beyond * sgd.critical_rate(curvatures(inputs), batch=1)
        start = sgd.spectral_radius(curvatures(inputs), lr=lr, batch=1)[1]
        return training(seed, lr=lr, start=start, batch=1)

    def swept(process: Any, name: str, **static: Any) -> xr.Dataset:
        data = sweep(
            process,
            {"seed": drawn},
            static=static,
            steps=config.steps,
            every=config.every,
            attrs={"seed": {"vary": "start and batches"}},
            store=store / name,
        )
        grouped = data.loss.drop_vars("seed").coarsen(seed=runs).construct(seed=("seed", "run"))
        loss, typical = grouped.mean("run"), grouped.median(("seed", "run"))
        return data.drop_vars("seed").rename(seed="draw").assign(loss=loss, typical=typical)

    data = {
        "noisy": swept(noisy, "noisy", batch=BATCHES),
        "free": swept(free, "free", beyond=BEYOND, inputs=[config.few, config.inputs]),
    }
    step = data["noisy"].step.values
    paths = [[recursion(config, b, fourth)[step] for fourth in (True, False)] for b in BATCHES]
    radii = [[radius(d, b) for d in (config.few, config.inputs)] for b in BEYOND]
    data["noisy"]["recursion"] = (("batch", "moments", "step"), np.array(paths))
    data["free"]["radius"] = (("beyond", "inputs", "moments"), np.array(radii))
    return data


def recursion(config: Config, batch: int, fourth: bool) -> np.ndarray:
    """The mean loss at every step, with or without fourth moments."""
    h = curvatures(config.inputs)
    lr = FRACTION * sgd.critical_rate(h, batch=batch)
    path = partial(sgd.excess_losses, np.ones(len(h)), h, lr=lr, batch=batch, noise=config.noise)
    return path(steps=config.steps, fourth_moments=fourth)


def radius(inputs: int, beyond: float) -> tuple[float, float]:
    """Factor by which the mean grows a step, with and without fourth moments."""
    h = curvatures(inputs)
    lr = beyond * sgd.critical_rate(h, batch=1)
    return sgd.spectral_radius(h, lr=lr, batch=1)[0], float(np.max((1 - lr * h) ** 2))


def expected(config: Config) -> dict[str, Expected]:
    """The mean follows the recursion; above the critical rate it grows, at first visibly."""
    low, high = BEYOND
    claim = partial(Expected, vary="start and batches; a value is the mean of one group's runs")
    without = above(1.05, why="beyond the tolerance of the claim")
    tails = about(1.0, within=0.03, why="for the tails of the loss; without them 5% are missing")
    return {
        **{
            f"batch {batch}": claim(
                f"batch {batch}, half the critical rate: the mean loss is the recursion's",
                tails,
                Control(f"batch {batch}: not that without fourth moments", without),
                kind="closed form",
                source=SOURCE,
                estimator="mean loss of a group over predicted, mean over steps",
                scale="log",
            )
            for batch in BATCHES
        },
        "growth": claim(
            f"{high:g} of the critical rate: the mean grows by the spectral radius",
            about(1.0, within=0.03, why="for the draw of a group; below 0.93 it would not grow"),
            Control("not by the radius without fourth moments", without),
            kind="closed form",
            source=SOURCE,
            estimator=f"growth factor a step of a group's mean over {EARLY} steps, over predicted",
            scale="log",
        ),
        "hidden": claim(
            f"{config.few} inputs, {high:g} of the critical rate: averages miss the mean tenfold",
            below(0.1, why="tenfold is no error of a mean with finite variance"),
            Control(
                f"{config.inputs} inputs, {low:g} of it: they show the mean",
                above(0.5, why="a factor of two"),
            ),
            kind="direction",
            source=SOURCE + "; the loss is a product of random factors: it has heavy tails",
            estimator="mean loss of a group after a quarter of the steps over the recursion's",
            scale="log",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """With the fourth moments and without; with few inputs and many."""
    noisy, free = data["noisy"], data["free"]
    ratio = (noisy.loss / noisy.recursion).isel(step=slice(1, None)).mean("step")
    (low, high), (few, many), time = free.beyond.values, free.inputs.values, free.step
    end = max(1, EARLY // int(time[1]))
    start = free.loss.isel(step=0)
    grown = (free.loss.isel(step=end) / start) ** (1 / float(time[end])) / free.radius
    grown = grown.sel(beyond=high, inputs=many)
    late = time.size // 4
    shown = free.loss.isel(step=late) / start / free.radius.isel(moments=0) ** float(time[late])
    return {
        **{
            f"batch {b}": (at.isel(moments=0), at.isel(moments=1))
            for b in BATCHES
            for at in [ratio.sel(batch=b)]
        },
        "growth": (grown.isel(moments=0), grown.isel(moments=1)),
        "hidden": (shown.sel(beyond=high, inputs=few), shown.sel(beyond=low, inputs=many)),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Mean losses beside the recursion; what averages hide."""
    noisy, free = data["noisy"], data["free"].isel(inputs=0)
    dashed: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 0.8}
    with panels(2, ratio=0.8) as (result, (left, right)):
        for batch, style in zip(BATCHES, STYLES, strict=False):
            at, line = noisy.sel(batch=batch), {**style, "linestyle": "-"}
            curve(left, at.loss, log=True, label=f"$B = {batch}$", **line)
            left.plot(at.step, at.recursion.isel(moments=0), **dashed)
            left.plot(at.step, at.recursion.isel(moments=1), color=style["color"], linestyle=":")
        short = free.isel(step=slice(0, free.sizes["step"] // 4 + 1))
        for value, style in zip(BEYOND, STYLES, strict=False):
            at, line = short.sel(beyond=value), {**style, "linestyle": "-"}
            start = at.loss.isel(step=0).mean()
            curve(right, at.loss / start, log=True, label=f"mean, {value:g} of critical", **line)
            right.plot(at.step, at.typical / start, color=style["color"], linestyle=":")
            right.plot(at.step, at.radius.isel(moments=0) ** at.step, **dashed)
        for axes, what in ((left, "without fourth moments"), (right, "median")):
            axes.plot([], [], **dashed, label="recursion")
            axes.plot([], [], color="0.3", linestyle=":", label=what)
            axes.set(yscale="log", xlabel="step")
            key(axes)
        left.set(ylabel="mean excess loss")
        left.set_yticks([0.2, 0.5, 1, 2, 5], labels=["0.2", "0.5", "1", "2", "5"])
        left.minorticks_off()
        right.set(ylabel="excess loss / first")
    return result


if __name__ == "__main__":
    main(__name__)
