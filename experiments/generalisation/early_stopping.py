"""Stopping early is worth a ridge: descent's test error in time, predicted at every step.

Gradient descent on linear regression, from 0. The law of Marchenko and Pastur gives test and train
error after any number of steps, without a free parameter: which falls first and then, as noise is
fitted, rises, most where features are nearly as many as examples. Stopped at its best it errs 1 to
4% more than ridge regression does at its best.

    python -m experiments early_stopping          # quick: 10 s on two cores
    python -m experiments early_stopping paper    # 15 s; writes figures/

Features are 100 normals of variance 1, examples 100 over the ratio; target of |w| = 1, noise of
variance 0.25, learning rate 0.1. A seed is a mean over 60 draws. Descent is run step by step in the
coordinates of each draw's eigenvectors of XᵀX, which do not change its steps and take a hundredth
of the time. Expect errors within 2% of those predicted, and ratios to ridge within 0.005.

Sources: Advani and Saxe 2017, arXiv 1710.03667; Ali, Kolter and Tibshirani 2019, arXiv 1810.10082
(against ridge); forms in `lab.theory.least_squares`. Tolerances were set on seeds 100 to 115, which
no preset uses. More than 200 lines because test, train and ridge's errors are of one run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Band, Control, Expected, Measured, about, above, below
from lab.experiment import main, seeds
from lab.plotting import STYLES, key, panels, points
from lab.sweep import sweep
from lab.theory import best_penalty, descent_errors, ridge_risk
from lab.types import BadInput, Dynamics

x64 = True
SOURCE = "Advani and Saxe 2017, arXiv 1710.03667; lab.theory.least_squares"
RIDGE = "Ali, Kolter and Tibshirani 2019, arXiv 1810.10082; lab.theory.least_squares"
VARY = "examples and noise"
P, NOISE, LR = 100, 0.25, 0.1
"""Features, the labels' noise, and the rate."""


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    ratios: tuple[float, ...] = (0.5, 0.9, 1.1, 2.0)  # Features over examples, about.
    steps: int = 600  # Of gradient descent.
    draws: int = 60  # Of a seed.
    seeds: int = 24  # How many.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses fewer than two ratios, or that do not ascend; few steps."""
        if len(self.ratios) < 2 or [*self.ratios] != sorted({*self.ratios}):
            raise BadInput(f"ratios: {self.ratios}; give two or more, ascending")
        if not 0.2 <= self.ratios[0] <= self.ratios[-1] <= 5:
            raise BadInput(f"ratios: {self.ratios}; give them from 0.2 to 5")
        if self.steps < 100:
            raise BadInput(f"steps: {self.steps}; give 100 or more: it is best after up to 50")

    @property
    def examples(self) -> tuple[int, ...]:
        """How many for each ratio."""
        return tuple(round(P / ratio) for ratio in self.ratios)


PRESETS = {"quick": Config(seeds=16), "paper": Config()}


class Drawn(NamedTuple):
    """Regressions of a seed along the eigenvectors of XᵀX / n, where each entry is learned alone.

    Attributes:
        v: what descent has reached, (draws, P).
        s: eigenvalues of XᵀX / n.
        slope: Xᵀy / n.
        w: the target.
        square: |y|² / n, (draws).
    """

    v: Array
    s: Array
    slope: Array
    w: Array
    square: Array


def training(seed: Array, *, examples: int, config: Config) -> Dynamics:
    """Descent on all draws side by side; the mean of their errors, and ridge's at its best."""
    n = examples

    def drawn(key: Array) -> Drawn:
        x_key, e_key = jax.random.split(key)
        X, w = jax.random.normal(x_key, (n, P)), jnp.full(P, P**-0.5)
        y = X @ w + NOISE**0.5 * jax.random.normal(e_key, (n,))
        s, u = jnp.linalg.eigh(X.T @ X / n)
        return Drawn(jnp.zeros(P), s, (y @ X) @ u / n, w @ u, y @ y / n)

    def init() -> Drawn:
        return jax.lax.map(drawn, jax.random.split(jax.random.key(seed), config.draws))

    def step(state: Drawn, t: Array) -> Drawn:
        return state._replace(v=state.v - LR * (state.s * state.v - state.slope))

    def excess(v: Array, w: Array) -> Array:
        return jnp.mean(jnp.sum((v - w) ** 2, 1))

    def observe(state: Drawn, t: Array) -> dict[str, Array]:
        v, s, slope, w, square = state
        train = jnp.mean(jnp.sum(s * v**2 - 2 * slope * v, 1) + square)
        return {"excess": excess(v, w), "train": train}

    def inspect(state: Drawn, t: Array) -> dict[str, Array]:
        penalty = best_penalty(P / n, signal=1.0, noise=NOISE)
        return {"ridge": excess(state.slope / (state.s + penalty), state.w)}

    return Dynamics(init, step, observe, inspect)


def theory(config: Config) -> xr.Dataset:
    """Errors at every step; of ridge at its best."""
    times, how = np.arange(config.steps + 1), {"signal": 1.0, "noise": NOISE}
    paths, ridges = [], []
    for n in config.examples:
        paths.append(descent_errors(P / n, times, lr=LR, **how))
        ridges.append(ridge_risk(P / n, best_penalty(P / n, **how), **how))
    dims = ("examples", "step")
    return xr.Dataset(
        {
            "excess": (dims, np.array([path.excess for path in paths])),
            "train": (dims, np.array([path.train for path in paths])),
            "ridge": ("examples", np.array(ridges)),
        },
        {"examples": [*config.examples], "step": times},
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Every ratio; and what theory says of it."""
    data = sweep(
        partial(training, config=config),
        {"seed": seeds(config)},
        static={"examples": [*config.examples]},
        steps=config.steps,
        every=1,
        inspect_every=config.steps,
        attrs={"seed": {"vary": VARY}},
        store=store,
    )
    ridge = data.ridge.isel(step_rare=0, drop=True)
    data = data.assign_coords(ratio=("examples", [*config.ratios]))
    return {"descent": data[["excess", "train"]].assign(ridge=ridge), "theory": theory(config)}


def other(config: Config, n: int) -> int:
    """Examples of the ratio farthest from that of n: the control's."""
    return config.examples[0] if n == config.examples[-1] else config.examples[-1]


def expected(config: Config) -> dict[str, Expected]:
    """Errors at the best step and at the last, and against ridge."""
    by = partial(Expected, kind="closed form", source=SOURCE, vary=VARY, scale="log")
    told, out = theory(config), {}

    def off(one: float, another: float) -> Band:
        low = one < another
        return (below if low else above)(0.85 if low else 1.15, why="theory: farther off")

    for ratio, n in zip(config.ratios, config.examples, strict=True):
        at, wrong = told.sel(examples=n), told.sel(examples=other(config, n))
        best, last, stop = int(at.excess.argmin("step")), config.steps, f"p / n = {ratio:g}: "
        against = f"not as at p / n = {P / other(config, n):g}"
        for name, step, within in (("best", best, 0.05), ("last", last, 0.07)):
            out[f"{name} {ratio:g}"] = by(
                f"{stop}after {step} steps test error is as predicted",
                about(1.0, within=within, why="100 features; theory has many: 1% at the end"),
                Control(against, off(float(at.excess[step]), float(wrong.excess[step]))),
                estimator="excess of the test error over its noise, over the predicted one",
            )
        share = float(at.excess[best] / at.ridge)
        out[f"ridge {ratio:g}"] = by(
            f"{stop}stopped after {best} steps it errs {share:.3f} times as much as best ridge",
            about(share, within=0.01, why="a quarter of what stopping costs where it costs most"),
            Control("not if stopped at a third of that", above(share + 0.02, why="theory: more")),
            source=RIDGE,
            estimator="excess of the test error, over ridge's of the same draws",
        )
        near = told.isel(examples=int(n == config.examples[0]))
        if ratio < 1:  # beyond it the last of train error is of the least eigenvalues, few at 100
            out[f"train {ratio:g}"] = by(
                f"{stop}after {last} steps train error is as predicted",
                about(1.0, within=0.03 if ratio < 0.7 else 0.07, why="as for the test error"),
                Control(
                    f"not as at p / n = {config.ratios[n == config.examples[0]]:g}",
                    off(float(at.train[last]), float(near.train[last])),
                ),
                estimator="train error over the predicted one",
            )
    out["every step"] = by(
        "at every ratio and every step test error is near the predicted one",
        below(0.08, why="60 draws scatter by 5% where it is largest"),
        Control("not near that of another ratio", above(0.3, why="theory: farther off")),
        estimator="largest | log of the excess over the predicted one |, ratios and steps",
    )
    return out


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Errors over predicted ones, and over ridge's."""
    found, told = data["descent"], data["theory"]
    sizes = found.examples.values.tolist()
    out: dict[str, Measured] = {}
    for ratio, n in zip(found.ratio.values, sizes, strict=True):
        at, right = found.sel(examples=n), told.sel(examples=n)
        wrong = told.sel(examples=sizes[0] if n == sizes[-1] else sizes[-1])
        best, last = int(right.excess.argmin("step")), found.sizes["step"] - 1
        for name, step in (("best", best), ("last", last)):
            one = at.excess.isel(step=step)
            out[f"{name} {ratio:g}"] = tuple(one / of.excess[step] for of in (right, wrong))
        stopped = tuple(at.excess.isel(step=step) / at.ridge for step in (best, best // 3))
        out[f"ridge {ratio:g}"] = stopped
        if ratio < 1:
            one = at.train.isel(step=last)
            near = told.isel(examples=int(n == sizes[0]))
            out[f"train {ratio:g}"] = tuple(one / of.train[last] for of in (right, near))
    apart = (told.excess, told.excess.copy(data=told.excess.values[::-1]))
    far = (abs(np.log(found.excess / one)).max(["examples", "step"]) for one in apart)
    out["every step"] = tuple(far)
    return out


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Test and train error against step, and best ridge; lines: predicted."""
    found, told = data["descent"], data["theory"]
    steps = 2 ** np.arange(int(np.log2(found.step[-1])) + 1)
    with panels(2, ratio=0.9) as (result, axes):
        for panel, of in zip(axes, ("excess", "train"), strict=True):
            for n, style in zip(found.examples.values, STYLES, strict=False):
                at, line = found[of].sel(examples=n, step=steps), told[of].sel(examples=n)[1:]
                style = style | {"label": f"{float(at.ratio):g}"}
                points(panel, at.drop_vars("ratio"), log=True, **style | {"linestyle": "none"})
                panel.plot(line.step, line, **style | {"marker": "", "label": None}, lw=0.8)
                if of == "excess":
                    ridge = told.ridge.sel(examples=n)
                    panel.plot([0.8], ridge, ">", ms=4, color=style["color"], clip_on=False)
            panel.set(xscale="log", yscale="log", xlabel="step")
        axes[0].plot([], [], "k>", ms=4, label="best ridge, predicted")
        axes[0].set(ylabel="test error less its noise", xlim=0.8)
        axes[0].set_yticks([0.2, 0.5, 1.0], labels=["0.2", "0.5", "1"])
        axes[0].minorticks_off()
        axes[1].set(ylabel="train error", ylim=(1e-4, 1.5))
        for panel in axes:
            key(panel, columns=3, title="features over examples; lines: predicted")
    return result


if __name__ == "__main__":
    main(__name__)
