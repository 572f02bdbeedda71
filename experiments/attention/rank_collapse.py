"""Stacked softmax attention makes its tokens alike, doubly exponentially (Dong et al. 2021).

Ten tokens go through layers of attention with random weights, without skips. Each layer cubes what
they have of their own, the residual X - 1 x̄ᵀ: differences between scores are of second order, and
weigh the first-order differences between values. So the decrements of its logarithm triple with
depth, and five layers leave 1e-100 to 1e-140. Attention that does not look at its input, or a skip,
has the exponent 1; a skip of the tokens' mean alone leaves it at 3. So the gradient of keys and
queries vanishes too, as the residual's square.

    python -m experiments rank_collapse          # quick: 20 seconds on two cores
    python -m experiments rank_collapse paper    # half a minute; writes figures/

Expect exponents to 1e-3 and the last decrement 2.99 times the one before. Mean and residual are
followed apart, without cancellation, or float64 would end at 1e-16: `lab.theory.rank_collapse`.
Sources: Dong, Cordonnier and Loukas 2021, arXiv 2103.03404 (a bound on the residual); Noci et al.
2022, arXiv 2206.03126 (gradients of queries). Tolerances were set on seeds 100 and above."""

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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, below
from lab.experiment import main, seeds
from lab.measures.attention import token_residual
from lab.models import merged_attention
from lab.plotting import STYLES, curve, key, panels, points
from lab.sweep import sweep
from lab.theory.rank_collapse import collapsing_layer
from lab.types import BadInput, Dynamics

x64 = True
THEORY = "lab.theory.rank_collapse.leading_residual; a bound: Dong et al. 2021, arXiv 2103.03404"
NOCI = "lab.theory.rank_collapse; Noci et al. 2022, arXiv 2206.03126: queries' gradients vanish"
SLOPES = {"softmax": 3.0, "input-independent": 1.0, "skip": 1.0, "skip of the mean": 3.0}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    sizes: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 0.5)  # Residuals over the common part.
    tokens: int = 10  # How many in a sequence.
    width: int = 32  # Entries of each token.
    depth: int = 5  # How many layers, one a step: float64 ends after the sixth.
    seeds: int = 16  # How many draws of tokens and weights.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses sizes that are fewer than three, or do not grow; fewer than two layers."""
        if len(self.sizes) < 3 or [0, *self.sizes] != sorted({0, *self.sizes}):
            raise BadInput(f"sizes: {self.sizes}; give three or more, ascending")
        if self.depth < 2:
            raise BadInput(f"depth: {self.depth}; give two layers or more")


PRESETS = {"quick": Config(seeds=8), "paper": Config()}


def falling(size: Array, seed: Array, *, layer: str, config: Config) -> Dynamics:
    """Tokens going through random layers, one a step: their mean, and their own part."""
    n, d = config.tokens, config.width
    model = merged_attention(d)
    mean_key, own_key, layer_key, read_key = jax.random.split(jax.random.key(seed), 4)
    read = jax.random.normal(read_key, (n, d), float)

    def init() -> tuple[Array, Array]:
        mean = jax.random.normal(mean_key, (d,), float)
        own = token_residual(jax.random.normal(own_key, (n, d), float))
        return mean, size * jnp.sqrt(n) * jnp.linalg.norm(mean) / jnp.linalg.norm(own) * own

    def step(tokens: tuple[Array, Array], t: Array) -> tuple[Array, Array]:
        weights_key, frozen_key = jax.random.split(jax.random.fold_in(layer_key, t))
        params = model.init(weights_key)
        kq, pv = params["kq"][0], params["pv"][0]
        if layer == "input-independent":  # the scores of other tokens, of order one
            own = jax.nn.softmax(jax.random.normal(frozen_key, (n, n), float)) @ tokens[1]
            return (tokens[0] + own.mean(0)) @ pv, token_residual(own @ pv)
        mean, own = collapsing_layer(*tokens, kq, pv)
        skips = {"skip": (1, 1), "skip of the mean": (1, 0)}.get(layer, (0, 0))
        return skips[0] * tokens[0] + mean, skips[1] * tokens[1] + own

    def observe(tokens: tuple[Array, Array], t: Array) -> dict[str, Array]:
        mean, own = tokens
        params = model.init(jax.random.fold_in(layer_key, t))
        gradient = jax.grad(lambda p: jnp.sum(read * model.apply(p, mean[None] + own)))(params)
        return {
            "own": jnp.log(jnp.linalg.norm(own)),
            "common": jnp.log(jnp.sqrt(n) * jnp.linalg.norm(mean)),
            "kq_gradient": jnp.log(jnp.linalg.norm(gradient["kq"])),
            "pv_gradient": jnp.log(jnp.linalg.norm(gradient["pv"])),
        }

    return Dynamics(init, step, observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Tokens through random layers of each kind, from each size."""
    axes, process = {"size": config.sizes, "seed": seeds(config)}, partial(falling, config=config)
    how: Any = {"static": {"layer": [*SLOPES]}, "steps": config.depth, "every": 1}
    return {"tokens": sweep(process, axes, **how, store=store)}


def expected(config: Config) -> dict[str, Expected]:
    """Cubing, tripling, skips, gradients."""
    by: Any = partial(Expected, kind="closed form", vary="tokens and weights")
    exponent = partial(by, source=THEORY, estimator="slope of log residual after on before a layer")
    close = partial(about, within=0.01, why="corrections are of the order of the larger residual")
    tripled = about(
        3.0, within=0.1, why="prefactors differ by e or so a layer, in decrements of 150"
    )
    return {
        "cubes": exponent(
            "a layer cubes what tokens have of their own",
            close(3.0),
            Control("attention that does not look at its input: 1", close(1.0)),
        ),
        "triples": by(
            "with depth the decrements of the logarithm triple",
            tripled,
            Control("input-independent: not so", below(2.0, why="they stay of order one")),
            source=THEORY,
            estimator="the last layer's decrement of log residual over that of the one before",
            scale="log",
        ),
        "skip": exponent(
            "with a skip the exponent is 1",
            close(1.0),
            Control("a skip of the tokens' mean alone: 3", close(3.0)),
        ),
        "gradient": by(
            "the gradient of keys and queries vanishes as the residual's square",
            close(2.0),
            Control("that of values does not", close(0.0)),
            source=NOCI,
            estimator="slope of the log norm of a random readout's gradient in log residual",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Slopes between the two smallest residuals; decrements from the largest."""
    tokens = data["tokens"]
    decade = float(np.log(tokens["size"][1] / tokens["size"][0]))
    slope = tokens.isel(size=[0, 1]).diff("size").isel(size=0) / decade
    exponent = slope.own.isel(step=1)
    gradient = slope.sel(layer="softmax").isel(step=0)
    fallen = -tokens.own.isel(size=-1).diff("step")
    ratio = fallen.isel(step=-1) / fallen.isel(step=-2)
    return {
        "cubes": (exponent.sel(layer="softmax"), exponent.sel(layer="input-independent")),
        "triples": (ratio.sel(layer="softmax"), ratio.sel(layer="input-independent")),
        "skip": (exponent.sel(layer="skip"), exponent.sel(layer="skip of the mean")),
        "gradient": (gradient.kq_gradient, gradient.pv_gradient),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Residual against depth, a layer's residual, and gradients; grey: the predicted slopes."""
    tokens = data["tokens"]
    share = tokens.own - tokens.common
    grey: Any = {"color": "0.5", "linewidth": 0.6, "zorder": 1}

    def powers(axes: Axes, at: Any, slope: float, **style: Any) -> None:
        at = np.exp(at.isel(size=slice(0, -1)))
        points(axes, at, log=True, **{**style, "linestyle": "none"})
        x = at["size"].values
        axes.plot(x, float(at[0].mean()) * (x / x[0]) ** slope, **grey)
        axes.set(xscale="log", yscale="log", xlabel="relative residual before")

    with panels(3, ratio=1.45) as (result, (left, middle, right)):
        for layer, style in zip(SLOPES, STYLES, strict=False):
            at = share.sel(layer=layer)
            curve(left, at.isel(size=-1) / -np.log(10), log=True, label=layer, **style)
            powers(middle, at.isel(step=1), SLOPES[layer], label=layer, **style)
        deepest = -share.isel(size=-1, step=-1).sel(layer="softmax").mean("seed") / np.log(10)
        left.plot(tokens.step[1:], deepest / 3.0 ** (tokens.step[-1] - tokens.step[1:]), **grey)
        left.set(yscale="log", xlabel="layers", ylabel=r"$-\log_{10}$ relative residual")
        middle.set(ylabel="relative residual after")
        first = tokens.sel(layer="softmax").isel(step=0)
        powers(right, first.pv_gradient, 0.0, label="values", **STYLES[4])
        powers(right, first.kq_gradient, 2.0, label="keys and queries", **STYLES[5])
        right.set(ylabel="gradient norm")
        for axes in (left, middle, right):
            key(axes, columns=1, title="grey: theory")
    return result


if __name__ == "__main__":
    main(__name__)
