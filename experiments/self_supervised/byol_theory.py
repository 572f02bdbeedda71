"""Linear BYOL lives where weight decay, noise and start let it (Tian, Chen and Ganguli 2021).

Encoder W, linear predictor P; the target is W (SimSiam) or its moving average (BYOL); views with
noise of variance s2; weight decay e. With the target held fixed (`lab.theory.collapse`)
F - P'P, F = W W', decays as exp(-2 e t) whatever the average, P and F come to commute, and both
rest at p+, the upper root of p (1 - (1 + s2) p) = e. Where F = P'P the lower root p- is the edge of
the basin. Beyond e = 1 / (4 + 4 s2) there is no root and all dies; so it does without predictor or
with the gradient through both sides. Descent at rate 0.1 of the exact expectation in 8 dimensions;
W in random directions, half of its sizes outside of the basin, P = I + noise.

    python -m experiments byol_theory          # quick: 10 s on two cores
    python -m experiments byol_theory paper    # half a minute; writes figures/

Expect p+ to 1e-4, for SimSiam and BYOL alike; F - P'P to decay at 1.014 times twice the weight
decay (steps of 0.1 add 1%; with the gradient through both sides 0.82, which fewer than some 16
seeds do not show); P and F apart by 1e-7, otherwise 0.09; both edges between the grid's neighbours.

Source: arXiv 2102.06810, rederived in `lab.theory.collapse` for equal rates. Tolerances were set
on seeds 100 and above, which no preset uses. More than 200 lines because six claims and four panels
of one theory share its two sweeps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below
from lab.dynamics import Bootstrap, bootstrap
from lab.experiment import main, seeds
from lab.measures.curves import border
from lab.numerics import length, scaled
from lab.plotting import STYLES, curve, key, panels, points
from lab.sweep import sweep
from lab.theory import collapse as theory
from lab.types import BadInput, Dynamics, Params

RATE = 0.1  # Of descent.
AT = 0.75  # Weight decay, in units of the critical one, at which paths are looked at.
SOON, EARLY = 300, 10  # Balance and alignment are looked at after these shares of all steps.


class Case(NamedTuple):
    """A process, in numbers: one compilation serves all."""

    held: float = 1.0  # 1 holds the target fixed, 0 lets the gradient through.
    predictor: float = 1.0  # 1 with one, 0 with the identity in its place.
    average: float = 0.0  # Of the target.


CASES = {
    "SimSiam": Case(),
    "BYOL": Case(average=0.99),
    "no stop-gradient": Case(held=0.0),
    "no predictor": Case(predictor=0.0),
    "BYOL, no predictor": Case(predictor=0.0, average=0.99),
}


@dataclass(frozen=True)
class Config:
    """Settings of the two sweeps."""

    noise: float = 0.25  # Variance of a view's noise; a control's views have four times that.
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 0.97, 1.03, 1.1, 1.25)
    """Weight decays in units of the critical one, ascending, 0.75 among them."""
    starts: tuple[float, ...] = (0.2, 0.35, 0.8, 0.9, 0.97, 1.03, 1.1, 1.25)
    """Starts p = w that are to find the basin's edge, in units of p-, ascending."""
    dimension: int = 8  # Inputs and outputs, an even number.
    steps: int = 6_000  # Steps of each run.
    every: int = 20  # Steps between two records.
    seeds: int = 32  # How many first weights.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses shares or starts that do not ascend, shares without 0.75, an odd dimension."""
        for name, values in (("shares", self.shares), ("starts", self.starts)):
            if list(values) != sorted(set(values)):
                raise BadInput(f"{name}: {values}; give them ascending")
        if AT not in self.shares:
            raise BadInput(f"shares: {self.shares}; {AT} should be among them")
        if self.dimension < 2 or self.dimension % 2:
            raise BadInput(f"dimension: {self.dimension}; give an even number, 2 or more")
        if self.noise < 0:
            raise BadInput(f"noise: {self.noise} is negative; give a variance")


PRESETS = {"quick": Config(seeds=16), "paper": Config()}


def training(
    decay: Array, noise: Array, case: Array, start: Array, seed: Array, *, mixed: float, d: int
) -> Dynamics:
    """Descent in expectation, from W of two sizes in random directions and P near `start`."""
    on, (turn_key, predictor_key) = Case(*case), jax.random.split(jax.random.key(seed))

    def init() -> Params:
        turn = jnp.linalg.qr(jax.random.normal(turn_key, (d, d)))[0]
        sizes = jnp.where(jnp.arange(d) < d // 2, 1.0, 0.1)
        other = mixed / math.sqrt(d) * jax.random.normal(predictor_key, (d, d))
        return {"W": start * turn * sizes[None], "P": start * (jnp.eye(d) + other)}

    def loss(params: Params, target: Params) -> Array:
        P = on.predictor * params["P"] + (1 - on.predictor) * jnp.eye(d)
        aim = on.held * target["W"] + (1 - on.held) * params["W"]
        squares = jnp.sum(params["W"] ** 2) + jnp.sum(params["P"] ** 2)
        return theory.loss(params["W"], P, aim, noise=noise) + decay / 2 * squares

    def observe(state: Bootstrap, t: Array) -> dict[str, Array]:
        W, P = state.params["W"], state.params["P"]
        p, f = scaled(P), scaled(W) @ scaled(W).T
        return {
            "encoder": jnp.linalg.svd(W, compute_uv=False)[0],
            "unbalanced": jnp.linalg.norm(W @ W.T - P.T @ P),
            "apart": length(p @ f - f @ p) / (length(p) * length(f)),
        }

    return bootstrap(loss, optax.sgd(RATE), init=init, average=on.average, observe=observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Every case by weight decay, then SimSiam by start."""
    critical, noise = theory.critical_decay(config.noise), jnp.float32(config.noise)
    grid = np.linspace(0.01, 0.9999, 200)
    low, high = map(float, theory.resting_points(AT * critical, config.noise))
    process, own = partial(training, d=config.dimension), {"seed": seeds(config)}
    decay = sweep(
        partial(process, start=jnp.float32(1), mixed=0.3),
        {
            "decay": [share * critical for share in config.shares],
            "noise": [config.noise, 4 * config.noise],
            "case": {name: np.array(case, np.float32) for name, case in CASES.items()},
            **own,
        },
        steps=config.steps,
        every=config.every,
        store=store / "decay",
    )
    start = sweep(
        partial(process, case=jnp.array(Case()), noise=noise, mixed=0.0),
        {
            "decay": [AT / 3 * critical, AT * critical],
            "start": [low * s for s in config.starts],
            **own,
        },
        steps=config.steps,
        every=config.steps,
        store=store / "start",
    )
    roots = np.array(theory.resting_points(jnp.array(grid * critical), config.noise))
    theirs = {"roots": (("root", "grid"), roots), "grid": grid, "low": low, "high": high}
    decay = decay.rename(decay="share").assign_coords(share=list(config.shares)).assign(theirs)
    start = start.rename(decay="share").assign_coords(start=list(config.starts), share=[AT / 3, AT])
    alive = start.encoder.isel(step=-1) > low / 2
    return {"decay": decay.assign(rate=2 * AT * critical), "start": start.assign(alive=alive)}


def expected(config: Config) -> dict[str, Expected]:
    """Where it rests, how it gets there, and up to where it lives."""
    by = partial(
        Expected,
        kind="closed form",
        source="Tian et al. 2021, arXiv 2102.06810; lab.theory.collapse",
        vary="first weights",
    )
    size = "largest singular value of the encoder, in units of p+, "
    rests = about(1.0, within=0.001, why="float32, at the end of a path that decays exponentially")
    dies = below(0.01, why="an exponential decay")
    near = about(1.0, within=0.04, why="the grid's neighbours of 1 are 0.97 and 1.03")
    at, through = f"at {AT} of the critical weight decay", "with the gradient through both sides"
    return {
        "SimSiam": by(
            f"SimSiam, {at}: the encoder rests at p+",
            rests,
            Control("without stop-gradient or predictor it dies (the larger of two)", dies),
            estimator=size + f"after 1/{EARLY} of all steps",
        ),
        "BYOL": by(
            f"BYOL, {at}: the encoder rests at the same p+",
            rests,
            Control("BYOL without predictor dies", dies),
            estimator=size + "at the end",
        ),
        "balance": by(
            "F - P'P decays at twice the weight decay",
            about(
                1.0, within=0.03, why="steps of 0.1 add 1%; without its cause it is 0.8 and less"
            ),
            Control(f"{through} at another rate", below(0.9, why="three times the tolerance off")),
            estimator=f"rate of |F - P'P| over 2 e, in the first 1/{SOON} of all steps",
            scale="log",
        ),
        "alignment": by(
            "the predictor comes to commute with the outputs' correlation F",
            below(1e-3, why="what is left decays exponentially"),
            Control(f"{through} it does not", above(0.03, why="30 times the claim's band")),
            estimator=f"|P F - F P| / (|P| |F|) after 1/{EARLY} of all steps",
            scale="log",
        ),
        "critical": by(
            "SimSiam lives up to a weight decay of 1 / (4 + 4 s2)",
            near,
            Control(
                "with four times the noise not so far", below(0.9, why="theory: 0.625"), grid=0.125
            ),
            estimator="midway between alive and dead at the end, in units of the critical decay",
            grid=0.03,
        ),
        "basin": by(
            f"{at} SimSiam lives from p- on",
            near,
            Control(
                "at a third of it from further down", below(0.7, why="theory: 0.27"), grid=0.075
            ),
            estimator="start midway between dead and alive at the end, in units of p-",
            grid=0.03,
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Of paths at one weight decay, and of where the living end."""
    decay, start = data["decay"], data["start"].transpose("share", "seed", "start", "step")
    at = decay.sel(share=AT).isel(noise=0)
    early, soon = (at.isel(step=at.sizes["step"] // share) for share in (EARLY, SOON))
    first, last = early.encoder / at.high, at.encoder.isel(step=-1) / at.high
    fallen = np.log(at.unbalanced.isel(step=0) / soon.unbalanced)
    rate = fallen / (RATE * soon.step) / decay.rate
    ends = decay.encoder.sel(case="SimSiam").isel(step=-1).transpose("noise", "seed", "share")
    critical = border(decay.share.values, (ends > at.low / 2).values)
    basin = border(start.start.values, ~start.alive.values)
    return {
        "SimSiam": (first.sel(case="SimSiam"), first.isel(case=slice(2, 4)).max("case")),
        "BYOL": (last.sel(case="BYOL"), last.sel(case="BYOL, no predictor")),
        "balance": (rate.sel(case="SimSiam"), rate.sel(case="no stop-gradient")),
        "alignment": (early.apart.sel(case="SimSiam"), early.apart.sel(case="no stop-gradient")),
        "critical": (critical[0], critical[1]),
        "basin": (basin[1], basin[0]),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Where encoders rest, by weight decay and by start; how balance and alignment are reached."""
    decay, start = data["decay"], data["start"].isel(step=-1)
    at = decay.sel(share=AT).isel(noise=0, step=slice(0, decay.sizes["step"] // EARLY + 1))
    at = at.assign_coords(step=RATE * at.step)
    line: dict[str, Any] = {"color": "0.3", "linewidth": 0.8, "zorder": 1}
    own = at.unbalanced / at.unbalanced.isel(step=0) * np.exp(decay.rate * at.step)
    with panels(2, rows=2, ratio=0.65) as (result, (rest, basin, balance, align)):
        roots = [*decay.roots[1].values, *decay.roots[0, ::-1].values]
        rest.plot([*decay.grid, *decay.grid[::-1]], roots, **line, label="theory: $p_+$, $p_-$")
        rest.plot([1.0, 1.3], [0, 0], **line)
        for size, (case, style) in zip(
            (6, 3, 4, 4, 3), zip(CASES, STYLES, strict=False), strict=True
        ):
            end = decay.encoder.sel(case=case).isel(noise=0, step=-1)
            dots = {**style, "linestyle": "none", "markersize": size, "markerfacecolor": "none"}
            points(rest, end, capsize=0, clip_on=False, label=case, **dots)
            if case != "BYOL, no predictor":
                curve(balance, own.sel(case=case, step=slice(0, 12)), label=case, **style)
                curve(align, at.apart.sel(case=case), log=True, label=case, **style)
        for share, style in zip(start.share.values, STYLES[5:], strict=False):
            curve(basin, start.encoder.sel(share=share), label=f"{share:g} of critical", **style)
            lower = np.interp(share, decay.grid, decay.roots[0]) / decay.low
            basin.axvline(float(lower), **line, label="theory" if share == AT else None)
        balance.axhline(1.0, **line, label="theory")
        rest.set(xlabel="weight decay $e$ / critical", ylabel="encoder at rest", ylim=(-0.03, 0.9))
        basin.set(xlabel=f"start / $p_-$ of {AT:g}", ylabel="encoder at rest", ylim=(-0.03, 0.9))
        balance.set(xlabel="time (rate × step)", ylabel="$|F - P'P|$ / $e^{-2et}$", ylim=(0.9, 1.5))
        align.set(yscale="log", xlabel="time (rate × step)", ylabel="$|PF - FP|$ / $|P||F|$")
        for axes in (rest, basin, balance, align):
            key(axes, columns=2)
    return result


if __name__ == "__main__":
    main(__name__)
