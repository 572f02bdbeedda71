"""Deep linear networks learn one singular mode after another, at times a closed form gives.

Gradient descent at a small rate on `1/2 |W_1 ... W_L - M|^2` (whitened inputs), 8 inputs, 6
outputs, M of rank 4 with singular values 4, 3, 2, 1; time is rate times steps. Balanced layers that
share M's singular vectors (depth 1 to 4) follow `da/dt = L a^(2-2/L) (s - a)`; small random layers
(depth 2, 8 hidden units) learn as balanced ones that start at u_0, the part of them that grows.

    python -m experiments.linear_networks          # quick: 30 s on two cores
    python -m experiments.linear_networks paper    # 70 s; writes figures/

Expect half-times within 0.2% of the formula at all depths, modes and scales (descent lags the flow
by about lr s / 2). u_0 is that of the weights at step 0; each mode taken alone, as if stronger ones
had not occupied hidden units, misses by some 5%, and the naive u_0 = scale^2 by 10%. Plateaus grow
as log(1/scale) at depth 2, as scale^(2-L) beyond. Momentum b shortens them by 1 - b only while
(1 - b)^2 is above lr s.

Source: Saxe, McClelland and Ganguli 2014, arXiv 1312.6120, equations 5 to 8 (two layers) and 18
(deep). The derivations are in `lab.theory.linear_networks`; scales, width and rate were chosen on
seeds 100 to 107, which no preset uses.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import claim
from lab.dynamics import Descent, descent
from lab.experiment import main
from lab.measures.curves import crossing
from lab.models import deep_linear, end_to_end
from lab.plotting import OKABE_ITO, band_plot, paper_style, shades
from lab.sweep import sweep
from lab.theory.linear_networks import growing_strength, growth, learning_time
from lab.types import Claim, Dynamics

x64 = True  # a strength of 1e-8 is read beside one of 4
SOURCE = "Saxe et al. 2014, arXiv 1312.6120, "
SEEDS = "initial weights and singular vectors"


@dataclass(frozen=True)
class Config:
    """Settings of the three sweeps."""

    strengths: tuple[float, ...] = (4.0, 3.0, 2.0, 1.0)
    """Singular values of the target, strongest first."""
    scales: tuple[float, ...] = (0.15, 0.2, 0.3, 0.4)
    """Scales of a balanced layer, ascending."""
    small: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Scales of a random layer, ascending."""
    momenta: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
    """Heavy-ball momenta, of two balanced layers of scale 1e-4."""
    lr: float = 5e-4
    """Learning rate."""
    steps: int = 80_000
    """Gradient steps of a balanced network; a quarter of them of a random one."""
    every: int = 40
    """Steps between two records."""
    seeds: int = 16
    """Starts at each setting."""
    first_seed: int = 0
    """The first of them."""
    hidden: int = 8
    """Hidden units of a random network."""
    ends: tuple[int, int] = (8, 6)
    """Inputs and outputs."""


PRESETS = {"quick": Config(lr=1e-3, steps=40_000, every=20, seeds=6), "paper": Config()}


def training(
    seed: Array,
    scale: Array | float,
    momentum: Array | None = None,
    depth: int = 2,
    *,
    init: str = "balanced",
    config: Config,
) -> Dynamics:
    """Descent from one start; a balanced one shares its singular vectors with the target."""
    inputs, outputs = config.ends
    width = config.hidden if init == "normal" else max(config.ends)
    sizes = (inputs, *[width] * (depth - 1), outputs)
    init_key, left_key, right_key = jax.random.split(jax.random.key(seed), 3)
    start = deep_linear(sizes, scale=scale, init=init).init(init_key)
    modes = len(config.strengths)
    if init == "balanced":
        left, _, right = jnp.linalg.svd(end_to_end(start), full_matrices=False)
        U, V = left[:, :modes], right[:modes].T
    else:
        U = jax.random.orthogonal(left_key, inputs)[:, :modes]
        V = jax.random.orthogonal(right_key, outputs)[:, :modes]
    target = U * jnp.array(config.strengths)[None] @ V.T

    def loss(params: tuple[Array, ...]) -> Array:
        return jnp.sum((end_to_end(params) - target) ** 2) / 2

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        strength = jnp.einsum("dm,dc,cm->m", U, end_to_end(state.params), V)
        if init == "balanced":
            return {"strength": strength}
        growing = partial(growing_strength, start[0], start[1])
        alone = jax.vmap(lambda u, v: growing(u[:, None], v[:, None])[0], in_axes=1)
        return {"strength": strength, "u_0": growing(U, V), "alone": alone(U, V)}

    return descent(loss, optax.sgd(config.lr, momentum), init=lambda: start, observe=observe)


def run(config: Config, store: Path) -> xr.Dataset:
    """Balanced starts at every depth, random ones, and balanced ones with momentum."""
    process, modes = partial(training, config=config), ("mode",)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    brief = partial(sweep, steps=config.steps // 4, every=max(1, config.every // 4))
    balanced = sweep(
        process,
        {"scale": config.scales, "seed": seeds},
        static={"depth": [1, 2, 3, 4]},
        steps=config.steps,
        every=config.every,
        dims={"strength": modes},
        store=store / "balanced",
    )
    random = brief(
        partial(process, init="normal"),
        {"scale": config.small, "seed": seeds},
        dims={"strength": modes, "u_0": modes, "alone": modes},
        store=store / "random",
    ).rename(scale="small")
    heavy = brief(
        partial(process, scale=1e-4),
        {"momentum": config.momenta, "seed": seeds},
        dims={"strength": modes},
        store=store / "heavy",
    )
    others = {
        "random": random.strength.rename(step="short_step"),
        "u_0": random.u_0.isel(step=0, drop=True),
        "alone": random.alone.isel(step=0, drop=True),
        "heavy": heavy.strength.rename(step="short_step"),
    }
    return (
        balanced.assign(others)
        .assign_coords(mode=list(config.strengths))
        .assign_attrs(lr=config.lr)
    )


def reached(strength: xr.DataArray, fraction: float) -> xr.DataArray:
    """Step at which each mode first has that fraction of its singular value; NaN if it never has.

    Interpolated in the logarithm, where a plateau is a straight line.
    """
    step = next(str(dim) for dim in strength.dims if str(dim).endswith("step"))
    log = np.log((strength / strength.mode / fraction).clip(1e-300))
    log = log.transpose(..., step)
    found = crossing(log[step].values.astype(float), log.values, 0.0)
    return log.isel({step: 0}, drop=True).copy(data=found)


def formula(u_0: xr.DataArray, depth: int) -> xr.DataArray:
    """The time at which a mode that starts at u_0 has half its singular value."""
    s = u_0.mode
    return xr.apply_ufunc(partial(learning_time, depth=depth), u_0, s / 2, kwargs={"s": s.values})


def half_times(data: xr.Dataset) -> xr.Dataset:
    """Half-times of balanced and random starts: measured, by the formula, and by naive ones."""
    first, depths = data.strength.isel(step=0, drop=True), data.depth.values
    by_depth = [formula(first.sel(depth=depth), int(depth)) for depth in depths]
    naive = [formula(0 * first.sel(depth=d) + data.scale**d, int(d)) for d in depths]
    return xr.Dataset(
        {
            "balanced": data.lr * reached(data.strength, 0.5),
            "balanced_formula": xr.concat(by_depth, data.depth),
            "balanced_naive": xr.concat(naive, data.depth),
            "random": data.lr * reached(data.random, 0.5),
            "random_formula": formula(data.u_0, 2),
            "random_alone": formula(data.alone, 2),
            "random_naive": formula(0 * data.u_0 + data.small**2, 2),
        }
    )


def worst(measured: xr.DataArray, predicted: xr.DataArray) -> np.ndarray:
    """Largest |measured / predicted - 1| of each seed; NaN where a mode was never learned."""
    ratio = abs(measured / predicted - 1)
    return ratio.max([dim for dim in ratio.dims if dim != "seed"], skipna=False).values


def growth_rates(data: xr.Dataset) -> xr.DataArray:
    """Rate a step of log(p + q) on the plateau: from 1e-4 to 1e-3 of the singular value."""
    return np.log(10) / 2 / (reached(data.heavy, 1e-3) - reached(data.heavy, 1e-4))


def claims(data: xr.Dataset) -> list[Claim]:
    """Half-times, plateaus, momentum; tolerances were set before the paper preset was run."""
    return [*learning(data), *plateaus(data), *accelerating(data)]


def learning(data: xr.Dataset) -> list[Claim]:
    """Half-times are as the formula says."""
    times = half_times(data)
    off = partial(
        claim,
        estimator="largest |half-time / formula - 1| over the modes and scales, one a seed",
        seeds=SEEDS,
    )
    exact = partial(
        off,
        predicted=0.0,
        tolerance=(0.0, 0.005),
        why="descent lags the flow by lr s / 2, 0.1% at lr 5e-4 and s 4, records add as much",
    )
    missed = partial(
        off,
        source="u_0 = scale^depth, whatever was drawn",
        predicted=None,
        tolerance=(0.03, math.inf),
        why="six times the tolerance above",
    )
    balanced = [
        exact(
            f"depth {depth}, balanced: modes are learned when the formula says",
            worst(*(times[name].sel(depth=depth) for name in ("balanced", "balanced_formula"))),
            source=SOURCE + "equation 18, integrated",
            control=missed(
                f"depth {depth}: not so from the naive u_0",
                worst(*(times[name].sel(depth=depth) for name in ("balanced", "balanced_naive"))),
            ),
        )
        for depth in data.depth.values[1:]
    ]
    small = times.sel(small=data.small.min())
    random = partial(
        off,
        "small random start: modes are learned as from u_0, what orthogonality leaves to grow",
        worst(small.random, small.random_formula),
        source="lab.theory.linear_networks, with " + SOURCE + "equation 8",
        predicted=0.0,
        tolerance=(0.0, 0.01),
        why="as above, and as much again for what a start of this size neglects",
    )
    return [
        *balanced,
        random(
            control=missed(
                "small random start: not so from the naive u_0",
                worst(small.random, small.random_naive),
            )
        ),
        random(
            control=missed(
                "small random start: not so mode by mode, as if hidden units were not shared",
                worst(small.random, small.random_alone),
                source="u_0 = |p + q|^2 / 4 of each mode alone",
                tolerance=(0.015, math.inf),
                why="above the tolerance by half; the effect is 1 / width, an eighth of u_0 a mode",
            )
        ),
    ]


def plateaus(data: xr.Dataset) -> list[Claim]:
    """Deep networks learn in stages; beyond two layers plateaus are powers of the scale."""
    time = half_times(data).balanced
    strong, weak = time.sel(mode=data.mode.max()), time.sel(mode=data.mode.min())
    ratio = (weak / strong).sel(scale=data.scale.min())
    one, two = data.scale.values[:2]
    slope = np.log(time.sel(scale=one) / time.sel(scale=two)) / math.log(two / one)
    steepness = slope.mean("mode", skipna=False)
    staged = partial(
        claim,
        source=SOURCE + "section 1.2: modes are learned in times of order 1 / s",
        estimator="half-time of the weakest mode over that of the strongest, smallest scale",
        seeds=SEEDS,
    )
    powers = partial(
        claim,
        source="lab.theory.linear_networks: t = b^(2-L) / ((L-2) s) for small layers b",
        estimator="slope of -log half-time by log scale, two smallest scales, mean over modes",
        seeds=SEEDS,
    )
    return [
        staged(
            "depth 2: the weakest mode is learned long after the strongest",
            ratio.sel(depth=2).values,
            predicted=None,
            tolerance=(2.0, math.inf),
            why="the singular values differ fourfold; the logarithm of u_0 takes some of it",
            control=staged(
                "one layer: all modes are learned at once",
                ratio.sel(depth=1).values,
                predicted=1.0,
                tolerance=(0.8, 1.25),
                why="all have the half-time log 2, but for where they start",
            ),
        ),
        *(
            powers(
                f"depth {depth}: the plateau grows as scale^-{depth - 2}",
                steepness.sel(depth=depth).values,
                predicted=depth - 2.0,
                tolerance=(depth - 2.25, depth - 1.75),
                why="a quarter for what is beyond leading order; other depths are 1 away",
                control=powers(
                    "depth 2: only as its logarithm",
                    steepness.sel(depth=2).values,
                    predicted=None,
                    tolerance=(-math.inf, 0.7),
                    why="1 / log of the scale, below any power",
                ),
            )
            for depth in data.depth.values[2:]
        ),
    ]


def accelerating(data: xr.Dataset) -> list[Claim]:
    """Momentum: the larger root, not the rescaled flow."""
    rates, s = growth_rates(data), data.mode
    z = xr.apply_ufunc(lambda b, s: growth(data.lr, b, s=s), data.momentum, s)
    grows = partial(
        claim,
        estimator="largest |growth rate on the plateau / predicted - 1| over modes and momenta",
        seeds=SEEDS,
    )
    return [
        grows(
            "momentum: the plateau's growth is the larger root of heavy ball's recursion",
            worst(rates, np.log(z)),
            source="lab.theory.linear_networks.growth",
            predicted=0.0,
            tolerance=(0.0, 0.01),
            why="the strength's own saturation, 0.1%, and the root that has not died out",
            control=grows(
                "momentum: not the flow with its time rescaled by 1 / (1 - momentum)",
                worst(rates, data.lr * s / (1 - data.momentum)),
                source="gradient flow with friction alone",
                predicted=None,
                tolerance=(0.1, math.inf),
                why="ten times the tolerance above",
            ),
        )
    ]


def tables(data: xr.Dataset) -> dict[str, dict[str, float]]:
    """Mean over seeds of the worst error of random starts, by formula and scale."""
    times = half_times(data)

    def error(name: str, small: float) -> float:
        at = times.sel(small=small)
        return float(worst(at.random, at[f"random_{name}"]).mean())

    return {
        f"error of random starts, {name}": {f"{s:g}": error(name, s) for s in data.small.values}
        for name in ("formula", "alone", "naive")
    }


def figure(data: xr.Dataset) -> Figure:
    """Stages of a random start; half-times of every depth on one curve; what momentum does."""
    times, s = half_times(data), data.mode
    dashed: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 0.8}
    with paper_style("neurips", columns=3, ratio=0.95):
        result, (left, middle, right) = plt.subplots(1, 3)
        clock = data.lr * data.short_step.values
        for value, colour in zip(s.values, shades(s.size), strict=True):
            small = data.sel(small=data.small.min(), mode=value)
            band_plot(left, clock, small.random.transpose("seed", ...).values, colour=colour)
            levels = np.linspace(0.002, 0.998, 400) * value
            start = np.exp(np.log(small.u_0).mean("seed").values)
            left.plot(learning_time(start, levels, s=value, depth=2), levels, **dashed)
            left.text(clock[-1], value, f"$s = {value:g}$", ha="right", va="bottom")
            at = growth_rates(data).sel(mode=value) / (data.lr * value)
            right.plot(1 / (1 - data.momentum), at.mean("seed"), ".", color=colour)
            many = 1 - np.geomspace(1, 1 - data.momentum.values.max(), 200)
            root = np.log(growth(data.lr, many, s=value)) / (data.lr * value)
            right.plot(1 / (1 - many), root, color=colour, linewidth=0.8)
        right.plot(1 / (1 - many), 1 / (1 - many), **dashed)
        right.text(0.6, 0.8, "time rescaled", ha="right", transform=right.transAxes)
        for depth, hue in zip(data.depth.values, OKABE_ITO, strict=False):
            unit = s ** (2 - 2 / depth)
            b = (data.strength.isel(step=0).sel(depth=depth) / s) ** (1 / depth)
            time = (times.balanced.sel(depth=depth) * unit).transpose(*b.dims)
            middle.plot(b.values.ravel(), time.values.ravel(), ".", ms=2, color=hue)
            line = np.geomspace(float(b.min()), float(b.max()), 100)
            law = learning_time(line**depth, np.array(0.5), s=1.0, depth=int(depth))
            middle.plot(line, law, color=hue, linewidth=0.8)
            middle.text(line[0], law[0], f"$L = {depth}$", ha="right", color=hue)
        left.text(clock[-1], 1.5, "dashed: formula", ha="right", fontsize="small")
        left.set(
            xlim=(0, clock[-1]), xlabel="time (rate $\\times$ steps)", ylabel="strength of mode"
        )
        middle.set(xscale="log", yscale="log", xlabel="initial layer / final layer")
        middle.set(ylabel="half-time $\\times\\ s^{2 - 2/L}$")
        middle.set(xlim=(0.018, 0.6))
        middle.set_xticks([0.05, 0.1, 0.2, 0.5], labels=["0.05", "0.1", "0.2", "0.5"])
        middle.minorticks_off()
        right.set(xscale="log", yscale="log", xlabel="1 / (1 $-$ momentum)")
        right.set(ylabel="growth relative to none")
    return result


if __name__ == "__main__":
    main(__name__)
