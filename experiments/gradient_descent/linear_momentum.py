"""Momentum shortens the plateaus of a linear network by the larger root of heavy ball's recursion.

Two balanced layers that share the target's singular vectors, 1/2 |W_1 W_2 - M|^2, singular values
4, 3, 2, 1, from scale 1e-4. On the plateau p + q of a mode (the two layers' parts along it) grows
by the larger root of z^2 - (1 + b + lr s) z + b = 0 a step (`lab.theory.linear_networks.growth`).
Momentum b shortens it by 1 - b, as friction alone would have it, only while (1 - b)^2 is above
lr s; far beyond it is inertia, sqrt(lr s), and more momentum helps no more. Which start is drawn
does not matter: sixteen gave the same four digits, and one is run.

    python -m experiments linear_momentum          # quick: 10 s on two cores
    python -m experiments linear_momentum paper    # half a minute; writes figures/

Expect growth within 1% of the root at every momentum and mode, and the rescaled flow off by tens of
percent from a momentum on that (1 - b)^2 = lr s sets.

Source: derived in `lab.theory.linear_networks`; the setting is of Saxe, McClelland and Ganguli
2014, arXiv 1312.6120. Momenta and rate were chosen on seeds 100 to 107, which no preset uses.
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

from lab.claims import NOTHING, Control, Expected, Measured, above, below
from lab.dynamics import Descent, descent
from lab.experiment import main
from lab.measures.curves import crossing
from lab.models import deep_linear, end_to_end
from lab.plotting import STYLES, key, panels
from lab.sweep import sweep
from lab.theory.linear_networks import growth
from lab.types import BadInput, Dynamics

x64 = True  # a strength of 1e-8 is read beside one of 4
STRENGTHS = (4.0, 3.0, 2.0, 1.0)  # singular values of the target
SIZES = (8, 8, 6)
SCALE = 1e-4  # of a balanced layer


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    momenta: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
    """Heavy-ball momenta, ascending from 0."""
    lr: float = 5e-4
    """Learning rate."""
    steps: int = 20_000
    """Gradient steps."""
    every: int = 10
    """Steps between two records."""
    seeds: int = 1
    """How many starts; they differ by a rotation, which changes nothing, so that one will do."""
    first_seed: int = 0
    """The start."""

    def __post_init__(self) -> None:
        """Refuses momenta that do not ascend from 0 below 1, or more than one start."""
        if [0.0, *self.momenta[1:]] != sorted({*self.momenta}) or self.momenta[-1] >= 1:
            raise BadInput(f"momenta: {self.momenta}; give them ascending from 0, below 1")
        if self.seeds != 1:
            raise BadInput(f"seeds: {self.seeds}; give 1, they all make the same")


PRESETS = {"quick": Config(lr=1e-3, steps=10_000, every=5), "paper": Config()}


def training(seed: Array, momentum: Array, *, config: Config) -> Dynamics:
    """Heavy ball from a balanced start that shares its singular vectors with the target."""
    start = deep_linear(SIZES, scale=SCALE, init="balanced").init(jax.random.key(seed))
    left, _, right = jnp.linalg.svd(end_to_end(start), full_matrices=False)
    U, V = left[:, : len(STRENGTHS)], right[: len(STRENGTHS)].T
    target = U * jnp.array(STRENGTHS)[None] @ V.T

    def loss(params: tuple[Array, ...]) -> Array:
        return jnp.sum((end_to_end(params) - target) ** 2) / 2

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        return {"strength": jnp.einsum("dm,dc,cm->m", U, end_to_end(state.params), V)}

    optimizer = optax.sgd(config.lr, momentum)
    return descent(loss, optimizer, init=lambda: start, observe=observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Growth on the plateau at every momentum: measured, by the root, and by friction alone."""
    data = sweep(
        partial(training, config=config),
        {"momentum": config.momenta, "seed": [config.first_seed]},
        steps=config.steps,
        every=config.every,
        dims={"strength": ("mode",)},
        store=store,
    )
    data = data.isel(seed=0).assign_coords(mode=list(STRENGTHS))
    share = np.log((data.strength / data.mode).clip(1e-300)).transpose("momentum", "mode", "step")
    step = data.step.values.astype(float)
    low, high = (crossing(step, share.values, np.log(level)) for level in (1e-4, 1e-3))
    unit = config.lr * data.mode  # the growth a step without momentum, to first order
    many = 1 - np.geomspace(1, 1 - config.momenta[-1], 200)

    def root(momentum: xr.DataArray) -> xr.DataArray:
        at = [np.log(growth(config.lr, momentum.values, s=s)) for s in STRENGTHS]
        return xr.DataArray(np.stack(at, -1), dims=(*momentum.dims, "mode")) / unit

    line = xr.DataArray(many, dims="many")
    return {
        "heavy": data.assign(
            growth=xr.DataArray(np.log(10) / 2 / (high - low), dims=("momentum", "mode")) / unit,
            root=root(data.momentum),
            friction=1 / (1 - data.momentum) + 0 * data.mode,
            many=line,
            line=root(line),
        )
    }


def expected(config: Config) -> dict[str, Expected]:
    """The larger root, not the flow with its time rescaled."""
    return {
        "growth": Expected(
            "the plateau's growth is the larger root of heavy ball's recursion",
            below(0.01, why="the strength's own saturation, 0.1%, and the root that dies out"),
            Control(
                "not the flow with its time rescaled by 1 / (1 - momentum)",
                above(0.1, why="ten times the tolerance"),
            ),
            kind="closed form",
            source="lab.theory.linear_networks.growth",
            estimator="largest |growth rate / predicted - 1| over modes and momenta, from 1e-4 to "
            "1e-3 of the singular value",
            vary=NOTHING,
        )
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """By the root, and by friction alone."""
    heavy = data["heavy"]
    off = [abs(heavy.growth / heavy[name] - 1) for name in ("root", "friction")]
    root, friction = ([float(one.max(skipna=False))] for one in off)
    return {"growth": (root, friction)}


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Growth on the plateau, relative to none, against momentum."""
    heavy = data["heavy"]
    with panels(ratio=0.5) as (result, (axes,)):
        for s, style in zip(STRENGTHS, STYLES, strict=False):
            at, colour = heavy.sel(mode=s), style["color"]
            dots = {**style, "linestyle": "none", "markersize": 4}
            axes.plot(1 / (1 - at.momentum), at.growth, label=f"$s = {s:g}$", **dots)
            axes.plot(1 / (1 - at.many), at.line, color=colour, linewidth=0.8)
        axes.plot([], [], color="0.3", linewidth=0.8, label="larger root")
        line = 1 / (1 - heavy.many)
        axes.plot(line, line, color="black", linestyle=(0, (4, 2)), label="time rescaled")
        axes.set(xscale="log", yscale="log", xlabel="1 / (1 − momentum)")
        axes.set(ylabel="growth / that without momentum", ylim=(0.8, 200))
        key(axes, columns=6)
    return result


if __name__ == "__main__":
    main(__name__)
