"""Batch norm makes gradients explode with depth: by pi / (pi - 1) a layer for ReLU.

A batch goes through random layers h <- phi(BN(h W)), and the gradient of a random readout comes
back. By theory its squared norm grows by E phi'^2 / Var phi a layer, whatever the weights' scale:
1.4669 for ReLU, 1.178 for tanh, 1 for none; without norm, at He's scale, it stays. Without an
activation a batch of B examples makes it (B - 2) / (B - 3). With a skip around each layer it grows
as a power of depth: both are derived in `lab.theory.signal`. Nothing is trained: a run is one draw.

    python -m experiments norm_explosion          # quick: half a minute on two cores
    python -m experiments norm_explosion paper    # a minute; writes figures/

Expect growth to a percent (tanh one above), of few examples noisier. It is read off layers 8 to the
last but 4: before, inputs are those of the data; after, the gradient is the readout's.

Sources: Yang et al. 2019, arXiv 1902.08129 (ReLU). Tolerances were set on seeds 100 to 103, which
no preset uses; theory's first layer, whose input is data of variance 1, was put right after them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about
from lab.experiment import main, seeds
from lab.plotting import STYLES, curve, key, panels, theory_line
from lab.sweep import sweep
from lab.theory.signal import linear_norm_growth, norm_growth, skip_growth
from lab.types import BadInput, Dynamics

SOURCE = "lab.theory.signal; for ReLU Yang et al. 2019, arXiv 1902.08129"
FIRST, LAST = 8, 4
"""Layers left out at the input and at the output."""


def identity(z: Array) -> Array:
    """No activation."""
    return z


CASES: dict[str, Any] = {  # activation, batch norm, skip, examples (None: the config's)
    "ReLU": (jax.nn.relu, True, False, None),
    "tanh": (jnp.tanh, True, False, None),
    "none": (identity, True, False, None),
    "none, few": (identity, True, False, "few"),
    "ReLU, no norm": (jax.nn.relu, False, False, None),
    "ReLU, skip": (jax.nn.relu, True, True, None),
}


@dataclass(frozen=True)
class Config:
    """Settings of the draws."""

    depth: int = 40  # Layers.
    width: int = 512  # Units of each.
    batch: int = 128  # Examples.
    few: int = 8  # Examples where they are few.
    seeds: int = 16  # How many draws of data, weights and readout.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses too few layers to fit a slope; fewer than 4 examples."""
        if self.depth < FIRST + LAST + 4:
            raise BadInput(f"depth: {self.depth}; give {FIRST + LAST + 4} layers or more")
        if min(self.few, self.batch) < 4:
            raise BadInput(f"few, batch: {self.few}, {self.batch}; give 4 examples or more")


PRESETS = {"quick": Config(seeds=6), "paper": Config()}


def drawn(seed: Array, *, case: Any, config: Config) -> Dynamics:
    """One draw: the log squared gradient by each layer's input."""
    phi, norm, skip, few = case
    n, examples = config.width, config.few if few else config.batch
    data_key, weight_key, read_key = jax.random.split(jax.random.key(seed), 3)
    scale = 1.0 if norm else math.sqrt(2.0)

    def read(moved: Array) -> Array:
        """A readout of the last layer, `moved` being added to the input of each."""

        def layer(h: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
            t, delta = given
            h = h + delta
            w = scale * jax.random.normal(jax.random.fold_in(weight_key, t), (n, n)) / math.sqrt(n)
            z = jax.nn.standardize(h @ w, axis=0, epsilon=0.0) if norm else h @ w
            return phi(z) + (h if skip else 0.0), None

        start = jax.random.normal(data_key, (examples, n))
        h, _ = jax.lax.scan(layer, start, (jnp.arange(config.depth), moved))
        return jnp.sum(jax.random.normal(read_key, h.shape) * h)

    def init() -> Array:
        gradient = jax.grad(read)(jnp.zeros((config.depth, examples, n)))
        return jnp.log(jnp.sum(gradient**2, (1, 2)))

    return Dynamics(init, lambda state, t: state, lambda state, t: {"gradient": state})


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Each case's draws; nothing moves, so that one record is enough."""
    how: Any = {"static": {"case": CASES}, "steps": 1, "every": [0], "store": store}
    process = partial(drawn, config=config)
    data = sweep(process, {"seed": seeds(config)}, dims={"gradient": ("layer",)}, **how)
    return {"draws": data.isel(step=0, drop=True).assign_coords(layer=np.arange(config.depth))}


def growth(logs: xr.DataArray) -> xr.DataArray:
    """Of the squared gradient a layer, towards the input: a fit over the layers between."""
    inner = logs.isel(layer=slice(FIRST, -LAST))
    return np.exp(-inner.polyfit("layer", 1).polyfit_coefficients.sel(degree=1, drop=True))


def expected(config: Config) -> dict[str, Expected]:
    """Closed forms, each with a case in which there is another growth or none."""
    by = partial(Expected, kind="closed form", source=SOURCE, vary="data, weights and readout")
    fitted = partial(by, estimator="growth of the squared gradient a layer: slope of its logarithm")
    why = "1 / batch and 1 / width: 1 and 0.2%"
    few = linear_norm_growth(config.few)
    relu = norm_growth(jax.nn.relu)  # but 1/2 at the first layer, where the data's variance is 1
    skip = float(np.log(skip_growth(jax.nn.relu, config.depth - 1)).sum())
    return {
        "ReLU": fitted(
            "ReLU: gradients grow by pi / (pi - 1) a layer",
            about(relu, within=0.022, why=why),
            Control("without norm, at He's scale, not at all", about(1.0, within=0.05, why=why)),
        ),
        "tanh": fitted(
            "tanh: gradients grow by E phi'^2 / Var phi a layer",
            about(norm_growth(jnp.tanh), within=0.024, why=why),
            Control("no activation: not at all", about(1.0, within=0.024, why=why)),
        ),
        "few": fitted(
            f"no activation, {config.few} examples: by (B - 2) / (B - 3)",
            about(few, within=0.05, why="a quarter of it: so few examples scatter"),
            Control(f"{config.batch} examples: not so", about(1.0, within=0.024, why=why)),
        ),
        "skip": by(
            "ReLU with a skip: all layers together multiply as predicted, a power of depth",
            about(skip, within=0.3, why="2 / batch in each of the first layers, which count most"),
            Control(
                "without a skip: an exponential, nearly four times as much in logarithm",
                about(math.log(0.5) + (config.depth - 2) * math.log(relu), within=0.3, why=why),
            ),
            estimator="logarithm of the squared gradient at the first layer over that at the last",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Growth by case."""
    logs = data["draws"].gradient
    fit, whole = growth(logs), logs.isel(layer=0) - logs.isel(layer=-1)
    return {
        "ReLU": (fit.sel(case="ReLU"), fit.sel(case="ReLU, no norm")),
        "tanh": (fit.sel(case="tanh"), fit.sel(case="none")),
        "few": (fit.sel(case="none, few"), fit.sel(case="none")),
        "skip": (whole.sel(case="ReLU, skip"), whole.sel(case="ReLU")),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Squared gradients by layer, and their growth a layer; grey: theory."""
    logs = data["draws"].gradient
    depth = logs.sizes["layer"]
    relative = (logs - logs.isel(layer=-1)) / np.log(10)
    slopes = {"ReLU": norm_growth(jax.nn.relu), "tanh": norm_growth(jnp.tanh)}
    with panels(2, ratio=1.1) as (result, (left, right)):
        for case, style in zip(CASES, STYLES, strict=False):
            curve(left, relative.sel(case=case), label=case, **style)
            step = np.exp(-logs.sel(case=case).diff("layer"))
            curve(right, step, log=True, label=case, **style)
        back = np.arange(depth)[::-1]
        for case in ("ReLU", "tanh"):
            fits = back[1:] * np.log10(slopes[case])
            left.plot(logs.layer[1:], fits, color="0.5", lw=0.6, zorder=1)
            theory_line(right, slopes[case])
        skip = np.log10(skip_growth(jax.nn.relu, depth - 1))
        left.plot(logs.layer[:-1], skip[::-1].cumsum()[::-1], color="0.5", lw=0.6, zorder=1)
        right.plot(logs.layer[1:], 10**skip, color="0.5", lw=0.6, zorder=1)
        left.set(xlabel="layer, from the input", ylabel=r"$\log_{10}$ squared gradient / last")
        right.set(xlabel="layer", ylabel="growth towards the input", ylim=(0.9, 1.7))
        for axes in (left, right):
            key(axes, columns=2, title="grey: theory")
    return result


if __name__ == "__main__":
    main(__name__)
