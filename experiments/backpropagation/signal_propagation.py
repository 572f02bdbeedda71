"""Order, chaos and the edge between: how far signals and gradients reach in a random network.

Two inputs go through random tanh layers h <- W phi(h) + b, and the gradient of a random readout
comes back. Mean-field theory says, without a free parameter: squared gradients shrink or grow by
chi a layer, below 1 in order, above in chaos; in order inputs grow alike, their correlation's gap
to 1 shrinking by the same chi, so that depths beyond -1 / log chi tell nothing; in chaos they end
at a correlation of their own. Where chi is 1, in the plane of the weights' and biases' variances,
lies the edge. A skip makes the gradient's growth 1 + chi of a variance that grows.

    python -m experiments signal_propagation          # quick: half a minute on two cores
    python -m experiments signal_propagation paper    # a minute; writes figures/

Expect growth to a percent at width 256, read off layers 6 to the last but 3: after them the
gradient is the readout's. Inputs have the fixed variance. Nothing is trained: a run is one draw.

Sources: Poole et al. 2016, arXiv 1606.05340 (correlations); Schoenholz et al. 2017, arXiv
1611.01232 (gradients, depth scales); Yang and Schoenholz 2017, arXiv 1712.08969 (skips). Tolerances
were set on seeds 100 to 115, which no preset uses.
More than 200 lines because six laws are read off the same draws.
"""

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

from lab.claims import Control, Expected, Measured, about, above
from lab.experiment import main, seeds
from lab.measures import reached
from lab.plotting import STYLES, curve, key, panels, points, theory_line
from lab.sweep import sweep
from lab.theory.signal import edge_of_chaos, mean_field, mean_field_skip
from lab.types import BadInput, Dynamics

SOURCE = (
    "lab.theory.signal; Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, 1611.01232"
)
FIRST, LAST = 6, 3
"""Layers left out at the input and at the output."""


@dataclass(frozen=True)
class Config:
    """Settings of the draws."""

    weights: tuple[float, ...] = (0.8, 1.2, 1.76, 2.5, 4.0)  # Variances, from order to chaos.
    bias: float = 0.05  # The biases' variance.
    grid: tuple[float, ...] = (1.2, 1.5, 1.8, 2.2, 2.6, 3.2)  # Weights' variances of the plane.
    biases: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4)  # Biases' variances of the plane.
    depth: int = 24  # Layers.
    width: int = 256  # Units of each.
    pairs: int = 16  # Pairs of inputs in a draw.
    seeds: int = 24  # How many draws of inputs, weights and readout.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses variances that do not go from order through the edge to chaos; few layers."""
        chi = [mean_field(jnp.tanh, w, self.bias).growth for w in self.weights]
        if sorted(chi) != chi or not (chi[0] < 0.9 and chi[-1] > 1.1):
            raise BadInput(f"weights: {self.weights}; give 3 or more, from order to chaos")
        if min(abs(c - 1) for c in chi) > 0.02:
            raise BadInput(f"weights: {self.weights}; give the edge too: 1.76 for a bias of 0.05")
        for name, grid in (("grid", self.grid), ("biases", self.biases)):
            if len(grid) < 2 or [*grid] != sorted({*grid}) or grid[0] <= 0:
                raise BadInput(f"{name}: {grid}; give two or more above 0, ascending")
        if self.depth < FIRST + LAST + 4:
            raise BadInput(f"depth: {self.depth}; give {FIRST + LAST + 4} layers or more")

    @property
    def edge(self) -> float:
        """The variance nearest to the edge of chaos."""
        chi = [abs(mean_field(jnp.tanh, w, self.bias).growth - 1) for w in self.weights]
        return self.weights[int(np.argmin(chi))]


PRESETS = {
    "quick": Config(seeds=16, grid=(1.5, 1.9, 2.4), biases=(0.05, 0.2)),
    "paper": Config(),
}


def drawn(
    weight: Array, bias: Array, start: Array, seed: Array, *, skip: bool, config: Config
) -> Dynamics:
    """One draw: log squared gradients, and correlations, by layer; inputs of variance `start`."""
    n, m = config.width, config.pairs
    data_key, weight_key, read_key = jax.random.split(jax.random.key(seed), 3)
    one, other = jax.random.normal(data_key, (2, m, n))
    pair = jnp.stack([one, 0.5 * one + 0.75**0.5 * other])  # of correlation 1/2
    keys = jax.random.split(weight_key, (config.depth, 2))

    def read(moved: Array) -> tuple[Array, Array]:
        def layer(h: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
            (w_key, b_key), delta = given
            h = h + delta
            w = jnp.sqrt(weight / n) * jax.random.normal(w_key, (n, n))
            b = jnp.sqrt(bias) * jax.random.normal(b_key, (n,))
            alike = jnp.mean(jnp.sum(h[0] * h[1], 1) / jnp.sqrt(jnp.prod(jnp.sum(h**2, 2), 0)))
            return (h if skip else 0.0) + jnp.tanh(h) @ w + b[None, None], alike

        h, alike = jax.lax.scan(layer, jnp.sqrt(start) * pair, (keys, moved))
        return jnp.sum(jax.random.normal(read_key, h.shape) * h), alike

    def init() -> dict[str, Array]:
        gradient, alike = jax.grad(read, has_aux=True)(jnp.zeros((config.depth, 2, m, n)))
        return {"gradient": jnp.log(jnp.sum(gradient**2, (1, 2, 3))), "alike": alike}

    return Dynamics(init, lambda state, t: state, lambda state, t: state)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Draws from order to chaos, with a skip too; and over weights and biases."""

    def over(weights: tuple[float, ...], bias: float, skips: list[bool], name: str) -> xr.Dataset:
        points = [(w, bias, mean_field(jnp.tanh, w, bias).variance) for w in weights]
        axes: Any = {("weight", "bias", "start"): points, "seed": seeds(config)}
        how: Any = {"static": {"skip": skips}, "steps": 1, "every": [0]}
        dims = {name: ["layer"] for name in ("gradient", "alike")}
        data = sweep(partial(drawn, config=config), axes, **how, dims=dims, store=store / name)
        data = data.isel(step=0, drop=True).swap_dims(weight_bias_start="weight")
        return data.assign_coords(layer=np.arange(config.depth))

    plane = [1 / rate(over(config.grid, s, [False], f"bias_{s:g}").gradient) for s in config.biases]
    growth = xr.concat(plane, xr.Variable("bias", [*config.biases])).squeeze("skip", drop=True)
    return {
        "draws": over(config.weights, config.bias, [False, True], "draws"),
        "plane": growth.to_dataset(name="growth"),
    }


def line() -> tuple[np.ndarray, np.ndarray]:
    """The edge of chaos, predicted: variances of biases, and of weights."""
    weights, biases = edge_of_chaos(jnp.tanh, np.linspace(0.02, 2.0, 100))
    return biases, weights


def reached_one(growth: xr.DataArray) -> xr.DataArray:
    """The edge of chaos, measured: the weights' variance at which growth passes 1."""
    return reached(growth.rename(weight="time"), 1.0)


def rate(logs: xr.DataArray, stop: int = -LAST) -> xr.DataArray:
    """What a quantity is multiplied by a layer: of a fit to its logarithm."""
    inner = logs.isel(layer=slice(FIRST, stop))
    return np.exp(inner.polyfit("layer", 1).polyfit_coefficients.sel(degree=1, drop=True))


def expected(config: Config) -> dict[str, Expected]:
    """Growth, depth scale, fixed correlation, skips: closed forms."""
    low, high = config.weights[0], config.weights[-1]
    order, edge, chaos = (mean_field(jnp.tanh, w, config.bias) for w in (low, config.edge, high))
    by = partial(Expected, kind="closed form", source=SOURCE, vary="inputs, weights, readout")
    grown = partial(by, estimator="growth of the squared gradient a layer: slope of its logarithm")
    why = f"fluctuations of a network {config.width} wide"
    near = partial(about, within=0.02, why=why)
    level = Control("at the edge it stays", near(edge.growth))
    grows = partial(mean_field_skip, jnp.tanh, config.edge, config.bias, start=edge.variance)
    skip = float(np.log(grows(config.depth - 1)).sum())
    return {
        "order": grown("order: gradients shrink by chi", near(order.growth), level),
        "chaos": grown("chaos: gradients grow by chi", near(chaos.growth), level),
        "scale": by(
            "order: two inputs grow alike by the same chi a layer",
            about(order.slope, within=0.03, why=why),
            Control("at the edge hardly", about(edge.slope, within=0.08, why="not by a power law")),
            estimator="factor of 1 - correlation a layer: slope of its logarithm",
        ),
        "fixed": by(
            "chaos: two inputs end at the map's own correlation",
            about(chaos.correlation, within=0.08, why="that of one draw scatters by a tenth"),
            Control("order: they end alike", about(order.correlation, within=0.03, why=why)),
            estimator="correlation after the last layer",
        ),
        "edge": by(
            "in the plane of variances the edge of chaos is where predicted",
            about(1.0, within=0.05, why="growth to 1.5% of a draw, read off a grid"),
            Control(
                f"of a bias of {config.biases[0]:g} it is not",
                above(1.1, why="edges that far apart"),
            ),
            estimator="weights' variance where growth is 1, over that predicted; mean over biases",
        ),
        "skip": by(
            "at the edge, with a skip: gradients grow as predicted, all layers together",
            about(skip, within=0.2, why="some percent of each factor"),
            Control("without a skip they stay", about(0.0, within=0.4, why=why)),
            estimator="logarithm of the squared gradient at the first layer over that at the last",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """At the first weight, the edge and the last."""
    plain, skip = (data["draws"].sel(skip=s) for s in (False, True))
    growth = 1 / rate(plain.gradient)
    edge = int(np.argmin(abs(growth.mean("seed").values - 1)))
    apart = rate(np.log(1 - plain.alike), stop=2 * FIRST)
    end = plain.alike.isel(layer=-1)
    found = reached_one(data["plane"].growth)
    predicted = xr.DataArray(np.interp(found.bias, *line()), {"bias": found.bias})
    whole = [d.gradient.isel(layer=0) - d.gradient.isel(layer=-1) for d in (skip, plain)]
    return {
        "order": (growth[0], growth[edge]),
        "chaos": (growth[-1], growth[edge]),
        "scale": (apart[0], apart[edge]),
        "fixed": (end[-1], end[0]),
        "edge": ((found / predicted).mean("bias"), (found / predicted[0]).mean("bias")),
        "skip": (whole[0][edge], whole[1][edge]),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Gradients, correlations, and growth from order to chaos; grey: theory."""
    draws = data["draws"]
    plain, depth = draws.sel(skip=False), draws.sizes["layer"]
    grey: Any = {"color": "0.5", "linewidth": 0.6, "zorder": 1}
    with panels(2, rows=2, ratio=0.8) as (result, (left, middle, right, plane)):
        for weight, style in zip(plain.weight.values, STYLES, strict=False):
            at, label = plain.sel(weight=weight), f"{weight:g}"
            logs = (at.gradient - at.gradient.isel(layer=-1)) / np.log(10)
            curve(left, logs, label=label, **style)
            curve(middle, at.alike, label=label, **style)
        bias = float(plain.bias[0])
        for weight in plain.weight.values:
            field = mean_field(jnp.tanh, weight, bias)
            left.plot(plain.layer, np.log10(field.growth) * (depth - 1 - plain.layer), **grey)
            middle.plot([depth - 1], [field.correlation], "k_", ms=8)
        growth = 1 / rate(plain.gradient)
        points(right, growth, **STYLES[0] | {"linestyle": "none"})
        grid = np.linspace(float(plain.weight[0]), float(plain.weight[-1]), 30)
        chi = [mean_field(jnp.tanh, w, bias).growth for w in grid]
        right.plot(grid, chi, **grey)
        theory_line(right, 1.0)
        points(plane, reached_one(data["plane"].growth), **STYLES[0] | {"linestyle": "none"})
        plane.plot(*line(), **grey)
        plane.text(0.7, 0.2, "order", transform=plane.transAxes)
        plane.text(0.2, 0.8, "chaos", transform=plane.transAxes)
        left.set(xlabel="layer", ylabel=r"$\log_{10}$ squared gradient / last")
        middle.set(xlabel="layer", ylabel="correlation of two inputs")
        right.set(xlabel="weight variance", ylabel="growth of gradients a layer")
        plane.set(xlabel="bias variance", ylabel="weight variance", xscale="log")
        plane.set(xlim=(0.015, 0.6), ylim=(1.2, 3.2))
        biases = data["plane"].bias.values
        plane.set_xticks(biases, labels=[f"{bias:g}" for bias in biases])
        plane.minorticks_off()
        for axes in (left, middle):
            key(axes, columns=3, title="weight variance; grey: theory")
    return result


if __name__ == "__main__":
    main(__name__)
