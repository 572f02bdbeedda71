"""Doubling the batch of SGD halves its steps, up to a size that curvatures set (Ma et al. 2018).

Online SGD on 32 Gaussian inputs whose covariance has eigenvalues l = i^-1/2, no noise, loss 1/2
mean squared residual, a fresh batch of B each step, and for each B the constant rate that reaches a
hundredth of the first loss soonest by the exact recursion of the mean (`lab.theory.sgd`). A run is
one draw of start and batches; runs are averaged in groups, and a group's mean is one value.

    python -m experiments batch_doubling          # quick: a minute on two cores
    python -m experiments batch_doubling paper    # 3 minutes; writes figures/

Expect doubling nearly to halve the steps up to B of about sum(l) / max(l) = 10, and hardly to help
beyond; everywhere steps as the recursion says, which without fourth moments would be far fewer on
small batches.

Source: the recursion is derived in `lab.theory.sgd`; that batches saturate is of Ma, Bassily and
Belkin 2018, arXiv 1712.06559. Settings were chosen on groups from 100,000 on, which no preset uses.
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

from lab.claims import Control, Expected, Measured, about, above, between
from lab.dynamics import descent
from lab.experiment import main
from lab.plotting import OKABE_ITO, key, panels, points
from lab.sweep import sweep
from lab.theory import sgd
from lab.types import BadInput, Dynamics

SOURCE = "lab.theory.sgd, by Isserlis' theorem"
H = np.arange(1, 33) ** -0.5  # eigenvalues of the inputs' covariance


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Batch sizes, each twice the last and each at its best constant rate."""
    target: float = 0.01
    """Share of the first loss that is to be reached."""
    seeds: int = 32
    """How many groups of runs."""
    runs: int = 128
    """Runs in a group."""
    first_seed: int = 0
    """The first group."""
    steps: int = 200
    """Steps of each run."""

    def __post_init__(self) -> None:
        """Refuses fewer than two sizes, or one that is not twice the last."""
        sizes = np.array(self.sizes)
        if len(sizes) < 2 or (sizes[1:] != 2 * sizes[:-1]).any():
            raise BadInput(f"sizes: {self.sizes}; give two or more, each twice the last")


PRESETS = {"quick": Config(seeds=8), "paper": Config()}


def best(size: int, target: float) -> tuple[float, float]:
    """The rate that reaches the target soonest, and the steps it takes, by the recursion."""
    return sgd.best_rate(H, np.ones(len(H)), batch=size, fraction=target, most=1_000)


def training(seed: Array, size: int, *, target: float) -> Dynamics:
    """SGD at the best rate, on the distance to the truth in the eigenbasis."""
    scale = jnp.sqrt(jnp.array(H, jnp.float32))
    init, batches = jax.random.split(jax.random.key(seed))

    def drawn(t: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(batches, t), (size, len(H))) * scale[None]

    return descent(
        lambda distance, x: jnp.mean((x @ distance) ** 2) / 2,
        optax.sgd(best(size, target)[0]),
        init=lambda: jax.random.normal(init, (len(H),)),
        observe=lambda state, t: {"loss": jnp.sum((scale * state.params) ** 2) / 2},
        batch=drawn,
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Every batch size at its best rate; steps to the target, by group and by the recursion."""
    runs = config.runs
    data = sweep(
        partial(training, target=config.target),
        {"seed": range(config.first_seed * runs, (config.first_seed + config.seeds) * runs)},
        static={"size": config.sizes},
        steps=config.steps,
        every=1,
        attrs={"seed": {"vary": "start and batches"}},
        store=store,
    )
    groups = data.loss.drop_vars("seed").coarsen(seed=runs).construct(seed=("seed", "run"))
    losses = groups.mean("run").transpose("size", "seed", "step")
    steps = [[sgd.steps_to(group, config.target) for group in at] for at in losses.values]
    found = data.drop_vars("seed").rename(seed="draw").assign(steps=(("size", "seed"), steps))
    for name, fourth in (("predicted", True), ("without", False)):
        found[name] = ("size", [predicted(size, config, fourth) for size in config.sizes])
    return {"sizes": found.assign_attrs(knee=float(H.sum() / H.max()))}


def predicted(size: int, config: Config, fourth: bool = True) -> float:
    """Steps to the target at the best rate, by the recursion with or without fourth moments."""
    lr = best(size, config.target)[0]
    path = partial(sgd.excess_losses, np.ones(len(H)), H, lr=lr, batch=size, steps=1_000)
    return sgd.steps_to(path(fourth_moments=fourth), config.target)


def expected(config: Config) -> dict[str, Expected]:
    """Doubling halves until it does not; the steps are the recursion's."""
    first, before_last = config.sizes[0], config.sizes[-2]
    claim = partial(
        Expected,
        vary="start and batches; a value is the mean of one group's runs",
        scale="log",
    )
    return {
        "halving": claim(
            f"doubling a batch of {first} nearly halves the steps",
            between(1.8, 2.1, why="a tenth below two", predicted=2.0),
            Control(
                f"doubling one of {before_last} does not",
                between(0.9, 1.3, why="nearer one than two"),
            ),
            kind="published value",
            source="Ma et al. 2018, arXiv 1712.06559: linear scaling, then saturation",
            estimator="steps to the target at the best rate over those with twice the batch",
        ),
        "steps": claim(
            "at every batch size the steps are the recursion's",
            about(1.0, within=0.03, why="for the tails of the loss"),
            Control(
                "not those of the recursion without fourth moments",
                above(1.1, why="three times the tolerance; small batches alone make more"),
            ),
            kind="closed form",
            source=SOURCE,
            estimator="steps to the target over predicted, mean over batch sizes",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """At the smallest sizes and the largest; over the recursion with fourth moments and without."""
    sizes = data["sizes"]
    steps = sizes.steps

    def ratio(name: str) -> Any:
        return np.exp(np.log(steps / sizes[name]).mean("size", skipna=False))

    return {
        "halving": (
            steps.isel(size=0) / steps.isel(size=1),
            steps.isel(size=-2) / steps.isel(size=-1),
        ),
        "steps": (ratio("predicted"), ratio("without")),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Steps to the target against the batch size."""
    sizes = data["sizes"]
    with panels(ratio=0.5) as (result, (axes,)):
        points(axes, sizes.steps, log=True, color=OKABE_ITO[0], label="measured")
        for name, dash, words in (
            ("predicted", "-", "recursion"),
            ("without", ":", "without fourth moments"),
        ):
            axes.plot(sizes["size"], sizes[name], color="black", linestyle=dash, label=words)
        halved = sizes.predicted[0] * sizes["size"][0] / sizes["size"]
        axes.plot(sizes["size"], halved, color="0.6", linestyle=(0, (4, 2)), label="halved each")
        axes.axvline(sizes.knee, color="0.6", linewidth=0.8)
        where = axes.get_xaxis_transform()
        axes.text(sizes.knee * 1.05, 0.9, r"$\sum l\,/\,\max l$", transform=where)
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="steps to 1% of the loss")
        axes.set(ylim=(0.5 * float(sizes.without.min()), None))
        axes.set_xticks(sizes["size"], labels=sizes["size"].astype(str).values)
        axes.minorticks_off()
        key(axes, columns=4)
    return result


if __name__ == "__main__":
    main(__name__)
