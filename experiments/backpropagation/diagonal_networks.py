"""A diagonal network finds the sparse or the short solution, by its start (Woodworth et al. 2020).

`w = u² - v²` from u = v = alpha fits y = X w by full-batch descent, half the squared error, 100
inputs, n = 40 normal examples, w of five coefficients of 1 or -1. Its flow ends at the solution of
the least potential Q(w; alpha), solved for here by Newton's method: near the least |w|_1 from a
small start, the least |w| from a large one. No parameter is free.

    python -m experiments diagonal_networks          # quick: 20 s on two cores
    python -m experiments diagonal_networks paper    # a minute; writes figures/

Expect a relative distance to the prediction of 4e-4 to 9e-4 for alpha up to 0.3 at the smallest
rate, 1e-4 / alpha^4 beyond, 40 times less than to the solution of least |w|. It is of first order
in the rate, and of second from the u v that the steps left of alpha^2. Rates are in units of one
over the sharpness at the solution. Half of w is recovered of 25 to 30 examples from alpha = 0.03,
of 75 from a large one: there the error is sqrt(1 - n / 100).

Source: Woodworth et al. 2020, arXiv 2002.09277; `lab.theory.diagonal`. Settings and tolerances are
of seeds 100 to 107, which no preset uses. More than 200 lines because ends are held to one
potential by scale, by rate and by number of examples.
"""

import functools
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
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures import crossing, exponent
from lab.plotting import STYLES, key, panels, points
from lab.sweep import sweep
from lab.theory import basis_pursuit, least_potential
from lab.types import BadInput, Dynamics, Params

x64 = True
SOURCE = "Woodworth et al. 2020, arXiv 2002.09277; lab.theory.diagonal"
INPUTS, SPARSE, EXAMPLES = 100, 5, 40
SCALES = (0.03, 0.1, 0.3, 1.0, 3.0)  # alpha
SMALL, MIDDLE, LARGE = 0.03, 0.3, 3.0
VARY = "examples and target"


@dataclass(frozen=True)
class Config:
    """Settings of the two sweeps."""

    rates: tuple[float, ...] = (0.1, 0.2, 0.4)  # Learning rates x sharpness, ascending.
    examples: tuple[int, ...] = (10, 20, 30, 40, 55, 70, 85)  # Numbers of them, ascending.
    steps: int = 200_000  # Of gradient descent.
    seeds: int = 16  # How many draws of examples and target.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses rates that show no order, and more examples than inputs."""
        if len(self.rates) < 2 or [0, *self.rates] != sorted({0, *self.rates}):
            raise BadInput(f"rates: {self.rates}; give two or more, ascending, above 0")
        n = self.examples
        if len(n) < 2 or [0, *n] != sorted({0, *n}) or n[-1] > INPUTS:
            raise BadInput(f"examples: {n}; give two or more, ascending from 1 to {INPUTS}")


PRESETS = {"quick": Config(rates=(0.2, 0.4), steps=50_000, seeds=12), "paper": Config()}


def problem(seed: Any, n: Any, rows: int) -> tuple[Array, Array]:
    """Examples, of which all rows after n are zero, and the target."""
    x_key, sign_key = jax.random.split(jax.random.key(seed))
    drawn = jax.random.normal(x_key, (INPUTS, INPUTS))[:rows] / jnp.sqrt(n)
    signs = jax.random.rademacher(sign_key, (SPARSE,), float)
    target = jnp.concatenate([signs, jnp.zeros(INPUTS - SPARSE)])
    return jnp.where(jnp.arange(rows)[:, None] < n, drawn, 0.0), target


def training(
    seed: Array, alpha: Array, rate: Array | float, n: Array | int, *, rows: int, config: Config
) -> Dynamics:
    """Descent from u = v = alpha; what it ends at, and u v."""
    X, target = problem(seed, n, rows)
    widest = (1 + jnp.sqrt(INPUTS / n)) ** 2  # eigenvalue of X Xᵀ, of large random ones
    lr = rate / (4 * widest * jnp.sqrt(1 + 4 * alpha**4))

    def solution(params: Params) -> Array:
        return params["u"] ** 2 - params["v"] ** 2

    def loss(params: Params) -> Array:
        return jnp.sum((X @ (solution(params) - target)) ** 2) / 2

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        return {"w": solution(state.params), "left": state.params["u"] * state.params["v"]}

    def init() -> Params:
        return {name: alpha * jnp.ones(INPUTS) for name in "uv"}

    return descent(loss, optax.sgd(lr), init=init, observe=observe)


@functools.cache
def equations(seed: int, n: int) -> tuple[np.ndarray, ...]:
    """X and y; the solutions of least |w|_1 and of least |w|, and the target."""
    X, target = (np.asarray(one) for one in problem(seed, n, INPUTS))
    X = X[:n]
    y = X @ target
    return X, y, basis_pursuit(X, y), np.linalg.pinv(X) @ y, target


def distances(data: xr.Dataset) -> xr.Dataset:
    """How far off the ends and the predictions are, as shares of the length of what they miss."""
    names = ["off", "off_left", "off_thrice", "l1", "l2", "error", "to_l1", "to_l2", "to_target"]

    def found(seed: int, n: int, alpha: float, w: np.ndarray, left: np.ndarray) -> np.ndarray:
        X, y, *solutions = equations(int(seed), int(n))
        scales = (alpha, np.sqrt(np.abs(left)), 3 * alpha)
        by, *others = (least_potential(X, y, scale) for scale in scales)
        pairs = [(w, one) for one in (by, *others, *solutions)] + [(by, one) for one in solutions]
        return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])

    given = (data.seed, data.n, data.alpha, data.w, data.left)
    how: Any = {"input_core_dims": [[], [], [], ["i"], ["i"]], "output_core_dims": [["of"]]}
    off = xr.apply_ufunc(found, *given, **how, vectorize=True)
    return off.isel(step=0, drop=True).assign_coords(of=names).to_dataset("of")


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Scales and rates at 40 examples; numbers of examples at the smallest rate."""
    own = {"seed": seeds(config)}
    how: Any = {"steps": config.steps, "every": [config.steps]}
    how |= {"dims": {"w": ("i",), "left": ("i",)}, "attrs": {"seed": {"vary": VARY}}}
    starts = sweep(
        partial(training, n=EXAMPLES, rows=EXAMPLES, config=config),
        {"alpha": SCALES, "rate": config.rates, **own},
        store=store / "starts",
        **how,
    ).assign_coords(n=EXAMPLES)
    examples = sweep(
        partial(training, rate=config.rates[0], rows=config.examples[-1], config=config),
        {"alpha": [SMALL, MIDDLE, LARGE], "n": config.examples, **own},
        store=store / "examples",
        **how,
    )
    found = {"starts": distances(starts), "examples": distances(examples)}
    line = np.geomspace(0.01, 5, 28)
    at = starts.isel(rate=0).sel(alpha=line, method="nearest").assign_coords(alpha=line)
    return {**found, "between": distances(at)[["to_l1", "to_l2"]]}


def allowed(alpha: float) -> float:
    """Distance from the prediction; from large starts it falls, as that from least |w| does."""
    return 0.003 if alpha <= MIDDLE else 5e-4 / alpha**4


def expected(config: Config) -> dict[str, Expected]:
    """Where descent ends, by which order in the rate, and what it takes to recover the target."""
    by = partial(Expected, source=SOURCE, vary=VARY, scale="log")
    nearer = partial(
        by, kind="direction", estimator="|w - least| at the latter over that at the former"
    )
    return {
        **{
            f"alpha {alpha:g}": by(
                f"alpha = {alpha:g}: descent ends at the solution of least potential",
                below(allowed(alpha), why="twice what the rate and what is not yet fitted leave"),
                Control("not at that of three times the alpha", above(0.03, why="ten times that"))
                if alpha <= MIDDLE
                else Control(
                    "not at that of least |w|", above(2 * allowed(alpha), why="twice that")
                ),
                kind="closed form",
                estimator="|w - prediction| / |prediction| at the smallest rate",
            )
            for alpha in SCALES
        },
        "order": by(
            f"alpha = {MIDDLE:g}: by the u v that is left it is right to second order in the rate",
            about(2.0, within=0.1, why="the next order"),
            Control("by alpha itself to first", about(1.0, within=0.1, why="the same")),
            kind="closed form",
            estimator="slope of the log of the distance from the prediction in log rate",
        )._replace(scale="linear"),
        "l1": nearer(
            f"from alpha = {LARGE:g} to {SMALL:g} w comes nearer the solution of least |w|_1",
            below(0.5, why="theory has near 0.1"),
            Control("to 1 not yet", above(0.9, why="both near the least |w|")),
        ),
        "l2": nearer(
            f"from alpha = {SMALL:g} to {LARGE:g} w comes nearer the solution of least |w|",
            below(0.01, why="theory has 1e-4"),
            Control("to 0.1 not yet", above(0.5, why="both far from it")),
        ),
        "recovery": by(
            f"alpha = {SMALL:g}: at any number of examples w is as near the target as predicted",
            below(0.01, why="what is not yet fitted from few or many examples, and twice that"),
            Control(f"not as predicted of alpha = {LARGE:g}", above(0.1, why="ten times that")),
            kind="closed form",
            estimator="largest | |w - target| - |prediction - target| | / |target| over examples",
        ),
        "half": by(
            f"alpha = {LARGE:g}: w errs by half of 75 examples, as by sqrt(1 - n / {INPUTS})",
            about(75.0, within=20.0, why="a draw scatters by 6; eight by 2, their interval by 9"),
            Control(f"of alpha = {SMALL:g} from fewer", below(50.0, why="the band begins at 55")),
            kind="closed form",
            estimator="n at which |w - target| / |target| falls below 1/2",
        )._replace(scale="linear"),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Of each seed, at the smallest rate but for orders in it."""
    starts, examples = data["starts"], data["examples"]
    at = starts.isel(rate=0)
    by_rate = starts.sel(alpha=MIDDLE).transpose("rate", "seed")
    small = examples.sel(alpha=SMALL)
    other = examples.to_target.sel(alpha=LARGE)
    missed = [abs(small.error - one).max("n") for one in (small.to_target, other)]
    falls = -examples.error.transpose("alpha", "seed", "n")
    half = falls.isel(n=0, drop=True).copy(data=crossing(falls.n.values * 1.0, falls.values, -0.5))

    def order(off: xr.DataArray) -> np.ndarray:
        return exponent(off.rate.values, np.log(off.values), first=off.rate.values[0])

    def share(values: xr.DataArray, alpha: float, other: float) -> xr.DataArray:
        return values.sel(alpha=alpha) / values.sel(alpha=other)

    return {
        **{
            f"alpha {alpha:g}": (one.off, one.off_thrice if alpha <= MIDDLE else one.l2)
            for alpha in SCALES
            for one in [at.sel(alpha=alpha)]
        },
        "order": (order(by_rate.off_left), order(by_rate.off)),
        "l1": (share(at.l1, SMALL, LARGE), share(at.l1, 1.0, LARGE)),
        "l2": (share(at.l2, LARGE, SMALL), share(at.l2, 0.1, SMALL)),
        "recovery": (missed[0], missed[1]),
        "half": (half.sel(alpha=LARGE), half.sel(alpha=SMALL)),
    }


def typical(values: Any) -> Any:
    """The geometric mean over seeds."""
    return np.exp(np.log(values).mean("seed"))


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Distances against alpha; from the prediction, against the rate; recovery, by examples."""
    starts, examples, line = data["starts"], data["examples"], data["between"]
    dashed = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 0.8, "zorder": 3}
    with panels(3, ratio=1.4) as (result, (left, middle, right)):
        for name, label, style in zip(("l1", "l2"), ("$|w|_1$", "$|w|_2$"), STYLES, strict=False):
            dots = {**style, "linestyle": "none", "label": f"of least {label}"}
            points(left, starts[name].isel(rate=0), log=True, **dots)
            left.plot(line.alpha, typical(line[f"to_{name}"]), **dashed)
        left.plot([], [], **dashed, label="predicted")
        at = starts.sel(alpha=MIDDLE)
        names = {"off": r"from $\alpha$", "off_left": "from $uv$ left"}
        for (name, label), style in zip(names.items(), STYLES, strict=False):
            points(middle, at[name], log=True, **{**style, "linestyle": "none"}, label=label)
        for name, order in zip(names, (1, 2), strict=True):
            last = typical(at[name].isel(rate=-1))
            middle.plot(at.rate, last * (at.rate / at.rate[-1]) ** order, **dashed)
        middle.plot([], [], **dashed, label="slopes 1, 2")
        for alpha, style in zip(examples.alpha.values, STYLES, strict=False):
            one = examples.sel(alpha=alpha)
            dots = {**style, "linestyle": "none", "label": f"{alpha:g}"}
            points(right, one.error, **dots)
            right.plot(one.n, one.to_target.mean("seed"), **dashed)
        right.plot([], [], **dashed, label="predicted")
        many = np.linspace(0, INPUTS)
        grey = {"color": "0.6", "linewidth": 0.8, "zorder": 1}
        right.plot(many, np.sqrt(1 - many / INPUTS), **grey, label=r"$(1 - n/100)^{1/2}$")
        left.set(xscale="log", yscale="log", xlabel=r"scale $\alpha$ of the start")
        left.set(ylabel="distance from the solution")
        middle.set(xscale="log", yscale="log", xlabel="rate × sharpness")
        middle.set(ylabel="distance from the prediction")
        middle.set_xticks(at.rate, labels=[f"{rate:g}" for rate in at.rate.values])
        middle.minorticks_off()
        right.set(xlabel="examples $n$", ylabel="distance from the target", ylim=(0, 1.02))
        key(left, columns=1)
        key(middle, columns=1, title=rf"$\alpha = {MIDDLE:g}$")
        key(right, columns=2, title=r"points: $\alpha$")
    return result


if __name__ == "__main__":
    main(__name__)
