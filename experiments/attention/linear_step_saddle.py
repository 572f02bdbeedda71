"""From random weights linear attention waits at a saddle, which descent leaves at its curvature.

Zhang, Frei and Bartlett 2023 prove that linear attention reaches its best step from a start of
their own (`linear_step`). Here it starts from random weights, on the exact loss of tasks with
anisotropic inputs (eigenvalues 2, 1.5, 1, 0.5, 0.25; 20 examples). A third of the runs comes upon a
strict saddle of loss 2.84, in which the first axis goes through the rank-one path κ πᵀ instead of
u K (`lab.theory.in_context.saddle`): curvatures of -0.006 and -0.004 lead down, beside 150.

HOW LONG they wait. Of a run's distance along the way down, a, descent makes a (1 + lr κ)^t. Late
enough those left are the ones that came so close that a is spread evenly about 0; then a share
exp(-lr κ t) of them has not yet reached any given distance, whatever the start: those left at
a step wait for 1 / (lr κ) more in the mean. κ depends on how the scale is shared by the two
matrices, |K, κ|² - |π, u|², which gradient flow keeps: it is that of the saddle which shares it as
the run does.

    python -m experiments linear_step_saddle          # quick: a minute on two cores
    python -m experiments linear_step_saddle paper    # ten busy minutes; writes figures/

Expect a third of the runs at the saddle at step 5,000, and 8% at step 50,000, which wait 1.08
times 1 / (lr κ) more (quick has too few of them to tell). Heavy ball waits 0.14 of that, which is
1.36 [1.26, 1.45] times what its own rate, 1 / (1 - b) as fast, would make it: that is open. One of
its 4,096 runs diverged.

In float64: in float32 steps of 1e-7 are lost to rounding, and a run may wait for ever. Adam never
waits. Rates, steps and bands were set on seeds 5000 to 10047, which no preset uses. What holds
early is not foretold: nearby the way down steepens as a² (κ doubles at a loss 3e-4 below the
saddle's), and runs leave earlier than by their own curvature and distance, 0.6 times as late.
Last of all both ways down should count, and the wait be 1 / (lr (κ + κ')): too few are left to see.

Source: the law is that of any strict saddle; Zhang et al. 2023, arXiv 2306.09927 (the start). More
than 200 lines because the saddle's family and the law's estimator have no other user.
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

from lab.claims import Control, Expected, Measured, about, above, below
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.models import merged_attention
from lab.plotting import STYLES, key, panels, theory_line
from lab.sweep import sweep
from lab.theory import in_context
from lab.types import BadInput, Dynamics, Params

x64 = True
INPUTS, N = (2.0, 1.5, 1.0, 0.5, 0.25), 20
NEAR = (-0.1, 0.66, 0.81, 1.04, 1.21, 0.19, 1.7, 0.52)  # the saddle, for Newton's method
LOSS = 2.8416  # of the saddle; tests/test_in_context.py finds it
B = 0.9


@dataclass(frozen=True)
class Config:
    """Settings of the starts."""

    seeds: int = 4096
    """How many random starts."""
    first_seed: int = 0
    """The first of them."""
    lr: float = 0.006
    """Learning rate of gradient descent; of heavy ball too, whose momentum is 0.9."""
    steps: int = 200_000
    """Steps of gradient descent; heavy ball takes a tenth, recorded as often."""
    every: int = 1_000
    """Steps between two records."""
    early: int = 5_000
    """The step at which those at the saddle are counted, and to which Adam is run."""
    late: int = 50_000
    """The step from which on the wait is measured."""
    adam_lr: float = 0.01
    """Adam's rate."""

    def __post_init__(self) -> None:
        """Refuses every that is no multiple of 10; steps, early or late that are none of every."""
        if self.every < 10 or self.every % 10:
            raise BadInput(f"every: {self.every}; give a multiple of 10")
        for name in ("steps", "early", "late"):
            if not 0 < (value := getattr(self, name)) <= self.steps or value % self.every:
                raise BadInput(
                    f"{name}: {value}; give a multiple of {self.every}, {self.steps} at most"
                )


PRESETS = {"quick": Config(seeds=384), "paper": Config()}


def loss(params: Params) -> Array:
    """The exact population loss."""
    return in_context.layer_loss(params["kq"][0], params["pv"][0], jnp.asarray(INPUTS), N)


def training(seed: Array, *, method: str, config: Config) -> Dynamics:
    """From random weights; "Zhang's start" is from random weights of that form, by descent."""
    d = len(INPUTS)

    def init() -> Params:
        drawn = merged_attention(d + 1, kernel="linear").init(jax.random.key(seed))
        if method != "Zhang's start":
            return jax.tree.map(lambda w: w.astype(float), drawn)
        K, u = drawn["kq"][0, :d, :d].astype(float), jnp.abs(drawn["pv"][0, d, d])
        K = u * K @ K.T / jnp.linalg.norm(K @ K.T)
        return {
            "kq": jnp.pad(K, (0, 1))[None],
            "pv": jnp.zeros((1, d + 1, d + 1)).at[0, d, d].set(u),
        }

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        kq, pv = state.params["kq"][0], state.params["pv"][0]
        imbalance = jnp.sum(kq[:-1] ** 2) - jnp.sum(pv[-1] ** 2)
        return {"loss": loss(state.params), "imbalance": imbalance}

    optimizer = {
        "heavy ball": optax.sgd(config.lr, momentum=B),
        "Adam": optax.adam(config.adam_lr),
    }.get(method, optax.sgd(config.lr))
    return descent(loss, optimizer, init=init, observe=observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Each method from every start; heavy ball for a tenth of the steps, Adam for the early."""

    def trained(method: str, steps: int, every: int, late: int = 0) -> xr.Dataset:
        data = sweep(
            partial(training, method=method, config=config),
            {"seed": seeds(config)},
            steps=steps,
            every=every,
            store=store / method.replace(" ", "_").replace("'", ""),
        )
        kept = {"lr": config.lr, "late": late}
        return data.assign(curvature=way_down(data.imbalance)).assign_attrs(kept)

    steps, every, late = config.steps, config.every, config.late
    return {
        "descent": trained("gradient descent", steps, every, late),
        "momentum": trained("heavy ball", steps // 10, every // 10, late // 10),
        "adam": trained("Adam", config.early, config.early),
        "zhang": trained("Zhang's start", config.early, config.early),
    }


def way_down(imbalance: xr.DataArray) -> xr.DataArray:
    """Curvature of the steepest way down from the saddle of so much |K, κ|² - |π, u|²."""
    λ = jnp.asarray(INPUTS)

    saddle = in_context.saddle(jnp.asarray(NEAR), λ, N)

    def of_all(flat: Array) -> Array:
        kq, pv = flat.reshape(2, len(INPUTS) + 1, -1)
        return in_context.layer_loss(kq, pv, λ, N)

    curved = jax.jit(jax.hessian(of_all))
    scales = np.linspace(0.5, 1.6, 23)
    layers = [in_context.swapped_layer(in_context.rescaled(saddle, scale)) for scale in scales]
    shares = [float(jnp.sum(kq**2) - jnp.sum(pv**2)) for kq, pv in layers]
    downs = [-np.linalg.eigvalsh(curved(jnp.stack(both).ravel()))[0] for both in layers]
    return xr.apply_ufunc(np.interp, imbalance, shares, downs)


def expected(config: Config) -> dict[str, Expected]:
    """Some wait; those left late wait by the curvature; Adam does not wait."""
    starts = partial(Expected, vary="initial weights")
    return {
        "some": starts(
            f"random weights: at step {config.early:,} some runs are at the saddle",
            above(0.1, why="a tenth"),
            Control("from Zhang's start fewer are", below(0.1, why="as for the claim")),
            kind="direction",
            source="lab.theory.in_context.saddle; Zhang et al. 2023 exclude it by their start",
            estimator=f"is the loss within 2% of {LOSS:.3f} (1 or 0)",
        ),
        "wait": starts(
            f"those still there at step {config.late:,} wait for 1 / (lr κ) more",
            about(1.0, within=0.25, why="by the second way down alone 1.37, by both 0.58"),
            Control("heavy ball, a tenth as late, does not", below(0.5, why="it is faster")),
            kind="closed form",
            source="linear law of a strict saddle; curvature of lab.theory.in_context.saddle",
            estimator="steps from then until the loss is 1.5% below the saddle's, times lr κ",
        ),
        "adam": starts(
            f"random weights: at step {config.early:,} Adam has reached the optimum",
            above(0.95, why="all, but for the interval's width"),
            Control("gradient descent has not", below(0.95, why="as for the claim")),
            kind="direction",
            source="lab.theory.in_context.optimal_loss",
            estimator="is the loss within 2% of the optimum's (1 or 0)",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """At the early step, and the wait from the late one."""
    descent, momentum = data["descent"], data["momentum"]
    early = data["adam"].step[-1]
    best = float(in_context.optimal_loss(jnp.asarray(INPUTS), N))
    ends = {name: one.loss.sel(step=early) for name, one in data.items() if name != "momentum"}
    return {
        "some": (near(ends["descent"], LOSS), near(ends["zhang"], LOSS)),
        "wait": (waited(descent), waited(momentum)),
        "adam": (near(ends["adam"], best), near(ends["descent"], best)),
    }


def near(loss: xr.DataArray, level: float) -> xr.DataArray:
    """Within 2% of a level."""
    return (loss > 0.98 * level) & (loss < 1.02 * level)


def departures(data: xr.Dataset) -> xr.DataArray:
    """The step at which each run has left the saddle, or the last if it never does."""
    gone = data.loss < 0.985 * LOSS
    return xr.where(gone.any("step"), data.step[gone.argmax("step")], data.step[-1])


def waited(data: xr.Dataset) -> np.ndarray:
    """Steps that runs at the saddle late still wait, times lr κ: those runs' alone."""
    left, then = departures(data), data.sel(step=data.late)
    there = (left > data.late) & near(then.loss, LOSS)
    wait = (left - data.late) * data.lr * then.curvature
    return wait.values[there.values]


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Losses from random weights; the share still at the saddle, and its law from late on."""
    descent, momentum = data["descent"], data["momentum"]
    best = float(in_context.optimal_loss(jnp.asarray(INPUTS), N))
    with panels(2, ratio=0.9) as (result, (left, right)):
        some = descent.loss.isel(seed=slice(48)).transpose("step", "seed")
        left.plot(descent.step, some, color=STYLES[0]["color"], lw=0.4, alpha=0.6)
        for level, name, va in ((LOSS, "saddle", "bottom"), (best, "optimum", "top")):
            theory_line(left, level)
            left.text(float(descent.step[-1]), level, name, ha="right", va=va, fontsize="small")
        left.set(xlabel="gradient descent step", ylabel="loss, 48 runs", ylim=(0.8, 3.6))
        for name, one, style in (
            ("gradient descent", descent, STYLES[0]),
            ("heavy ball", momentum, STYLES[1]),
        ):
            at = departures(one)
            share = (at > one.step).mean("seed").isel(step=slice(0, -1))
            right.plot(one.step[:-1], share, label=name, markevery=0.2, ms=3, **style)
        start = descent.sel(step=descent.late)
        there = departures(descent) > descent.late
        rate = float(descent.lr * start.curvature.where(there).mean())
        later = descent.step[descent.step >= descent.late]
        law = float(there.mean()) * np.exp(-rate * (later - descent.late))
        right.plot(later, law, color="0.2", lw=1.2, zorder=3, label="exp(-lr κ t)")
        right.set(yscale="log", ylim=(1 / descent.sizes["seed"], 1.2), xlabel="step")
        right.set(ylabel="share of runs still at the saddle")
        key(right, columns=1)
    return result


if __name__ == "__main__":
    main(__name__)
