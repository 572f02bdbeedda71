"""Grokking without understanding: a linear student generalises long after it fits, as predicted.

A student learns a linear teacher without noise. The share of answers within a tolerance jumps on
the examples, and on fresh inputs long after, as if something had been understood; but both losses
fall smoothly from the first step, and theory gives the delay without a free parameter.

    python -m experiments grokking_linear          # quick: half a minute on two cores
    python -m experiments grokking_linear paper    # a minute; writes figures/

400 normal inputs, 400 / g examples, full-batch gradient descent at rate 0.25, squared error below
0.01 counts as right, 95% right as known. Expect delays of 7, 25 and
219 steps at g 0.3, 0.5 and 0.8. Above g = 1 fresh inputs are
never known: at 1.5, 14% are right. Tolerances are of seeds 100 to 123, which no preset uses.

Source: Levi et al. 2023, arXiv 2310.16441; in steps: `lab.theory.grokking`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below
from lab.experiment import main, seeds
from lab.measures import reached
from lab.plotting import STYLES, curve, key, panels
from lab.sweep import sweep
from lab.theory import share_within, teacher_fit
from lab.types import BadInput, Dynamics

SOURCE = "lab.theory.grokking; Levi et al. 2023, arXiv 2310.16441"
VARY = "inputs, student"
TOLERANCE, KNOWN = 0.01, 0.95
"""Of a squared error that counts as right; the share of right answers that counts as known."""
FINITE = "one student of 400 inputs a seed: its smallest eigenvalue scatters"
NOW = "that counts as known"
DELAYS = "7, 25 and 219 steps at 0.3, 0.5 and 0.8"


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    ratios: tuple[float, ...] = (0.3, 0.5, 0.8, 1.5)  # Inputs over examples, ascending.
    inputs: int = 400  # How many.
    tests: int = 1_000  # Fresh inputs.
    steps: int = 500  # Of gradient descent.
    lr: float = 0.25  # Learning rate; 0.40 is the largest that is stable at 1.5.
    seeds: int = 48  # How many students.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses ratios that do not ascend, the last alone above 1."""
        if len(self.ratios) < 3 or [0, *self.ratios] != sorted({0, *self.ratios}):
            raise BadInput(f"ratios: {self.ratios}; give three or more above 0, ascending")
        if not self.ratios[-2] < 1 < self.ratios[-1]:
            raise BadInput(f"ratios: {self.ratios}; give the last above 1, the others below")
        teacher_fit(np.zeros(1), ratio=self.ratios[-1], lr=self.lr)


PRESETS = {"quick": Config(seeds=24), "paper": Config()}


def training(seed: Array, x: Array, *, ratio: float, config: Config) -> Dynamics:
    """One student; losses, and shares of right answers."""
    n = round(config.inputs / ratio)
    # Given, not drawn here: they would be drawn at every step.
    x, z = (x[seed - config.first_seed, rows] for rows in (slice(n), slice(-config.tests, None)))
    apart = jax.random.normal(jax.random.split(jax.random.key(seed))[1], (config.inputs,))

    def step(apart: Array, t: Array) -> Array:
        return apart - config.lr / n * x.T @ (x @ apart)

    def observe(apart: Array, t: Array) -> dict[str, Array]:
        errors = {"train": (x @ apart) ** 2, "test": (z @ apart) ** 2}
        losses = {name: square.mean() for name, square in errors.items()}
        return losses | {
            f"{name}_right": jnp.mean(square < TOLERANCE) for name, square in errors.items()
        }

    return Dynamics(lambda: apart / jnp.linalg.norm(apart), step, observe)


def theory(config: Config) -> xr.Dataset:
    """Losses and shares of right answers."""
    steps, told = np.arange(config.steps + 1), []
    for ratio in config.ratios:
        fit = teacher_fit(steps, ratio=ratio, lr=config.lr)
        told.append([*fit, *(share_within(of, TOLERANCE) for of in fit)])
    names = ["train", "test", "train_right", "test_right"]
    coords = {"ratio": [*config.ratios], "of": names, "step": steps}
    return xr.DataArray(np.array(told), coords).to_dataset("of")


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Students at each ratio, and theory."""
    told = theory(config)
    shape = round(config.inputs / config.ratios[0]) + config.tests, config.inputs
    keys = [jax.random.split(jax.random.key(seed))[0] for seed in seeds(config)]
    x = jnp.stack([jax.random.normal(key, shape) for key in keys])
    data = sweep(
        partial(training, config=config),
        {"seed": seeds(config)},
        static={"ratio": [*config.ratios]},
        steps=config.steps,
        every=1,
        shared={"x": x},
        attrs={"seed": {"vary": VARY}},
        store=store,
    )
    return {"students": data, "theory": told}


def known(of: xr.Dataset, name: str) -> xr.DataArray:
    """The step at which so many answers are right, by straight lines between steps."""
    return reached(of[f"{name}_right"].rename(step="time"), KNOWN)


def expected(config: Config) -> dict[str, Expected]:
    """The delay at each ratio below 1; how smoothly the loss falls; never above 1."""
    by = partial(Expected, kind="closed form", source=SOURCE, vary=VARY, scale="log")
    told = theory(config)
    below_one, never = config.ratios[:-1], float(told.test_right[-1, -1])
    return {
        **{
            f"delay {ratio:g}": by(
                f"{ratio:g} inputs an example: fresh inputs are known when predicted",
                about(1.0, within=0.15 if ratio < 0.7 else 0.3, why=FINITE),
                Control(f"not as at {other:g}", far),
                estimator=f"steps from {KNOWN:.0%} of examples to {KNOWN:.0%} of fresh inputs "
                "right, over those predicted",
            )
            for ratio, other in zip(below_one, (*below_one[1:], below_one[0]), strict=True)
            for far in [below(0.6, why=DELAYS) if other > ratio else above(1.7, why=DELAYS)]
        },
        "never": by(
            f"{config.ratios[-1]:g} inputs an example: so many fresh inputs are right, and no more",
            about(never, within=0.03, why=FINITE),
            Control(f"at {below_one[0]:g} all are", above(KNOWN, why=NOW), 0.5 / config.tests),
            estimator="share of fresh inputs right at the last step",
        )._replace(scale="linear"),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Delays over those predicted, and what is right at last."""
    delay, told = (known(of, "test") - known(of, "train") for of in data.values())
    ratios, last = [float(ratio) for ratio in told.ratio], data["students"].test_right[{"step": -1}]
    pairs = zip(ratios[:-1], (*ratios[1:-1], ratios[0]), strict=True)
    out: dict[str, Measured] = {"never": (last[{"ratio": -1}], last[{"ratio": 0}])}
    for ratio, other in pairs:
        at = delay.sel(ratio=ratio)
        out[f"delay {ratio:g}"] = at / told.sel(ratio=ratio), at / told.sel(ratio=other)
    return out


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Shares of right answers, and losses, against step; lines: theory."""
    students, told = data["students"], data["theory"]
    steps = {"step": slice(1, None)}
    with panels(2, ratio=0.9) as (result, (left, right)):
        for ratio, style in zip(told.ratio.values[1:], STYLES, strict=False):
            at, by = (of.sel(ratio=ratio)[steps] for of in (students, told))
            name = f"{float(by.ratio):g} inputs an example"
            curve(left, at.test_right, label=name, **style)
            curve(left, at.train_right, color=style["color"], linestyle=style["linestyle"], lw=0.5)
            curve(right, at.test, label=name, **style)
            for panel, line in ((left, by.test_right), (left, by.train_right), (right, by.test)):
                panel.plot(line.step, line, "k:", lw=0.8)
        left.set(ylabel="share of answers right", ylim=(0, 1.02))
        right.set(ylabel="test loss", yscale="log", ylim=(1e-4, 1.5))
        titles = "fresh inputs; thin: the examples; dotted: predicted", "dotted: predicted"
        for panel, title in zip((left, right), titles, strict=True):
            panel.set(xscale="log", xlabel="step")
            key(panel, columns=1, title=title)
    return result


if __name__ == "__main__":
    main(__name__)
