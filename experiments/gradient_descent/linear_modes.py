"""Deep linear networks learn one singular mode after another, at set times (Saxe et al. 2014).

Gradient descent at a small rate on `1/2 |W_1 ... W_L - M|^2` (whitened inputs), 8 inputs, 6
outputs, M of rank 4 with singular values 4, 3, 2, 1; time is rate times steps. Balanced layers that
share M's singular vectors (depth 1 to 4) follow `da/dt = L a^(2-2/L) (s - a)` from the strengths
that were drawn. Small random layers (depth 2, 8 hidden units) learn as balanced ones that start at
u_0, the part of them that grows.

    python -m experiments linear_modes          # quick: 20 s on two cores
    python -m experiments linear_modes paper    # half a minute; writes figures/

Expect half-times within 0.2% of the formula at all depths, modes and scales (descent lags the flow
by about lr s / 2). u_0 is that of the weights at step 0; each mode taken alone, as if stronger ones
had not occupied hidden units, misses by some 3%. (Of 1.4 to 5.2%, which keeps this control, set at
1.5%, from being shown to be negative: inconclusive, though the formula itself is right to 0.1%.)
Plateaus grow as log(1/scale) at depth 2, as scale^(2-L) beyond, and strong modes come first: that
follows from the half-times and is drawn, not claimed again. More than 200 lines because two kinds
of start are held to one formula.

Source: Saxe, McClelland and Ganguli 2014, arXiv 1312.6120 (two layers, and deep). The derivations
are in `lab.theory.linear_networks`; scales, width and rate were chosen on seeds 100 to 107, which
no preset uses.
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

from lab.claims import Control, Expected, Measured, above, below
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures.curves import crossing
from lab.models import deep_linear, end_to_end
from lab.plotting import STYLES, curve, key, panels, points
from lab.sweep import sweep
from lab.theory.linear_networks import growing_strength, learning_time
from lab.types import BadInput, Dynamics

x64 = True  # a strength of 1e-8 is read beside one of 4
SOURCE = "Saxe et al. 2014, arXiv 1312.6120; lab.theory.linear_networks"
STRENGTHS = (4.0, 3.0, 2.0, 1.0)  # singular values of the target, strongest first
INPUTS, OUTPUTS, HIDDEN = 8, 6, 8


@dataclass(frozen=True)
class Config:
    """Settings of the two sweeps."""

    depths: tuple[int, ...] = (1, 2, 3, 4)
    """Layers of a balanced network, ascending."""
    scales: tuple[float, ...] = (0.15, 0.2, 0.3, 0.4)
    """Scales of a balanced layer, ascending."""
    small: float = 0.001
    """Scale of a random layer."""
    lr: float = 5e-4
    """Learning rate."""
    steps: int = 80_000
    """Gradient steps of a balanced network; a quarter of them of a random one."""
    every: int = 40
    """Steps between two records; a quarter of them of a random one."""
    seeds: int = 16
    """How many random starts."""
    first_seed: int = 0
    """The first of them."""

    def __post_init__(self) -> None:
        """Refuses depths that do not ascend from 1."""
        if [1, *self.depths[1:]] != sorted({*self.depths}) or len(self.depths) < 2:
            raise BadInput(f"depths: {self.depths}; give two or more, ascending from 1")


PRESETS = {"quick": Config(lr=1e-3, steps=40_000, every=20, seeds=6), "paper": Config()}


def training(seed: Array, scale: Array, depth: int, *, init: str, config: Config) -> Dynamics:
    """Descent from one start; a balanced one shares its singular vectors with the target."""
    width = HIDDEN if init == "normal" else max(INPUTS, OUTPUTS)
    sizes = (INPUTS, *[width] * (depth - 1), OUTPUTS)
    init_key, left_key, right_key = jax.random.split(jax.random.key(seed), 3)
    start, modes = deep_linear(sizes, scale=scale, init=init).init(init_key), len(STRENGTHS)
    if init == "balanced":
        left, _, right = jnp.linalg.svd(end_to_end(start), full_matrices=False)
        U, V = left[:, :modes], right[:modes].T
    else:
        U = jax.random.orthogonal(left_key, INPUTS)[:, :modes]
        V = jax.random.orthogonal(right_key, OUTPUTS)[:, :modes]
    target = U * jnp.array(STRENGTHS)[None] @ V.T

    def loss(params: tuple[Array, ...]) -> Array:
        return jnp.sum((end_to_end(params) - target) ** 2) / 2

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        strength = jnp.einsum("dm,dc,cm->m", U, end_to_end(state.params), V)
        if init == "balanced":
            return {"strength": strength}
        growing = partial(growing_strength, start[0], start[1])
        alone = jax.vmap(lambda u, v: growing(u[:, None], v[:, None])[0], in_axes=1)
        return {"strength": strength, "u_0": growing(U, V), "alone": alone(U, V)}

    return descent(loss, optax.sgd(config.lr), init=lambda: start, observe=observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Balanced starts at every depth, and random ones; half-times, measured and predicted."""
    process, modes = partial(training, config=config), ("mode",)
    balanced = sweep(
        partial(process, init="balanced"),
        {"scale": config.scales, "seed": seeds(config)},
        static={"depth": config.depths},
        steps=config.steps,
        every=config.every,
        dims={"strength": modes},
        attrs={"seed": {"vary": "initial weights and singular vectors"}},
        store=store / "balanced",
    )
    random = sweep(
        partial(process, init="normal", depth=2, scale=config.small),
        {"seed": seeds(config)},
        steps=config.steps // 4,
        every=max(1, config.every // 4),
        dims={"strength": modes, "u_0": modes, "alone": modes},
        attrs={"seed": {"vary": "initial weights and singular vectors"}},
        store=store / "random",
    )
    found = {}
    for name, one in {"balanced": balanced, "random": random}.items():
        one = one.assign_coords(mode=list(STRENGTHS), time=config.lr * one.step)
        found[name] = one.assign(half=config.lr * half(one.strength))
    balanced, random = found["balanced"], found["random"]
    first = balanced.strength.isel(step=0, drop=True)
    exact = [formula(first.sel(depth=d), d) for d in config.depths]
    naive = [formula(0 * first.sel(depth=d) + balanced.scale**d, d) for d in config.depths]
    start = random[["u_0", "alone"]].isel(step=0, drop=True)
    levels = xr.DataArray(np.linspace(0.002, 0.998, 400), dims="level")
    mean = np.exp(np.log(start.u_0).mean("seed"))
    random["curve_time"] = formula(mean, 2, levels)
    return {
        "balanced": balanced.assign(
            formula=xr.concat(exact, balanced.depth), naive=xr.concat(naive, balanced.depth)
        ),
        "random": random.assign(
            formula=formula(start.u_0, 2),
            alone_formula=formula(start.alone, 2),
            naive=formula(0 * start.u_0 + config.small**2, 2),
            level=levels,
        ),
    }


def half(strength: xr.DataArray) -> xr.DataArray:
    """Step at which each mode has half its singular value; NaN if it never has.

    Interpolated in the logarithm, where a plateau is a straight line.
    """
    log = np.log((strength / strength.mode / 0.5).clip(1e-300)).transpose(..., "step")
    found = crossing(log.step.values.astype(float), log.values, 0.0)
    return log.isel(step=0, drop=True).copy(data=found)


def formula(u_0: xr.DataArray, depth: int, share: xr.DataArray | float = 0.5) -> xr.DataArray:
    """The time at which a mode that starts at u_0 has a share of its singular value."""
    time = partial(learning_time, depth=depth)
    return xr.apply_ufunc(lambda u, a, s: time(u, a, s=s), u_0, share * u_0.mode, u_0.mode)


def expected(config: Config) -> dict[str, Expected]:
    """Half-times as the formula says, of balanced starts and of small random ones."""
    what = "largest |half-time / predicted - 1| over the modes"
    shared = Control(
        "not so mode by mode, as if hidden units were not shared",
        above(0.015, why="above the tolerance by half; the effect is 1 / width, 1/8 of u_0 a mode"),
    )
    return {
        **{
            f"depth {depth}": Expected(
                f"depth {depth}, balanced: modes are learned when the formula says",
                below(0.005, why="descent lags the flow by lr s / 2, 0.1%; records add as much"),
                Control(
                    f"depth {depth}: not as from u_0 = scale^depth",
                    above(0.03, why="six times the tolerance"),
                ),
                kind="closed form",
                source=SOURCE,
                estimator=what + " and scales",
                vary="initial weights and singular vectors",
                scale="log",
            )
            for depth in config.depths[1:]
        },
        "random": Expected(
            "small random start: modes are learned as from what orthogonality leaves to grow",
            below(0.01, why="as above, and as much again for what a start of this size neglects"),
            shared,
            kind="closed form",
            source=SOURCE,
            estimator=what,
            vary="initial weights and singular vectors",
            scale="log",
        ),
    }


def worst(measured: xr.DataArray, predicted: xr.DataArray) -> xr.DataArray:
    """Largest |measured / predicted - 1|; NaN where a mode was never learned."""
    ratio = abs(measured / predicted - 1)
    return ratio.max([dim for dim in ratio.dims if dim not in ("depth", "seed")], skipna=False)


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """By the formula from what grows, and from what a reader might take in its place."""
    balanced, random = data["balanced"], data["random"]
    off = {name: worst(balanced.half, balanced[name]) for name in ("formula", "naive")}
    return {
        **{
            f"depth {depth}": (off["formula"].sel(depth=depth), off["naive"].sel(depth=depth))
            for depth in balanced.depth.values[1:]
        },
        "random": (
            worst(random.half, random.formula),
            worst(random.half, random.alone_formula),
        ),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Stages of a random start; half-times of every depth against the start."""
    balanced, random = data["balanced"], data["random"]
    dashed = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 0.8}
    with panels(2, ratio=0.8) as (result, (left, right)):
        for s, style in zip(STRENGTHS, STYLES, strict=False):
            at = random.sel(mode=s)
            shown = at.strength.swap_dims(step="time")
            curve(left, shown, label=f"$s = {s:g}$", **{**style, "linestyle": "-"})
            left.plot(at.curve_time, s * at.level, **dashed)
        left.plot([], [], **dashed, label="formula, mean $u_0$")
        for depth, style in zip(balanced.depth.values, STYLES, strict=False):
            at = balanced.sel(depth=depth, mode=STRENGTHS[0])
            dots = {**style, "linestyle": "none"}
            points(right, at.half, log=True, label=f"$L = {depth}$", **dots)
            line = np.exp(np.log(at.formula).mean("seed"))
            right.plot(at.scale, line, color=style["color"], linewidth=0.8)
        right.plot([], [], color="0.3", linewidth=0.8, label="formula")
        left.set(xlabel="time (rate × steps)", ylabel="strength of mode")
        right.set(xscale="log", yscale="log", xlabel="scale of a layer")
        right.set(ylabel=f"half-time of $s = {STRENGTHS[0]:g}$")
        right.set_xticks(balanced.scale, labels=[f"{x:g}" for x in balanced.scale.values])
        right.set_yticks([0.5, 1, 2, 4], labels=["0.5", "1", "2", "4"])
        right.minorticks_off()
        key(left, columns=3)
        key(right, columns=3)
    return result


if __name__ == "__main__":
    main(__name__)
