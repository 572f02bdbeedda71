"""Sums modulo 23: known by heart at once, understood much later, and only under weight decay.

One hidden layer of squares on one-hot numbers, f = W ((U_m + V_n) / sqrt 2)² / 128, trained on half
of all pairs. Training pairs are soon right, others long after, when neurons have become waves of
one frequency each: the only way in which so many weights of that size fit (an exact network of 99
such neurons is in `lab.theory.modular`). Without decay, or from too few pairs, they never are.

    python -m experiments grokking_modular          # quick: half a minute on two cores
    python -m experiments grokking_modular paper    # a minute; writes figures/

AdamW (rate 0.005, b2 0.98) on all shown pairs. Expect 150 to 200 steps to 95% of those shown, six
times as many to 95% of the others; concentration of the neurons' spectra (inverse participation,
1 of a wave, 0.17 of noise) at 0.7, without decay at 0.19. Taking each neuron's own frequency out of
it leaves chance; another frequency nothing.

Sources: Power et al. 2022, arXiv 2201.02177 (grokking); Gromov 2023, arXiv 2301.02679 (squares);
Nanda et al. 2023, arXiv 2301.05217 (frequencies taken out). Tolerances are of seeds 100 to 103.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, above, below
from lab.data import modular_addition, shown_pairs
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures import fourier_concentration, power_spectrum, reached, without_frequency
from lab.plotting import STYLES, curve, key, panels
from lab.sweep import sweep
from lab.types import BadInput, Dynamics, Params

SOURCE = "Gromov 2023, arXiv 2301.02679; Nanda et al. 2023, arXiv 2301.05217"
RIGHT = 0.95
"""The share of pairs that are to be right."""
CASES = {  # share of the pairs shown, weight decay
    "weight decay": (0.5, 1.0),
    "no decay": (0.5, 0.0),
    "few pairs": (0.3, 1.0),
    "most pairs": (0.9, 1.0),
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    modulus: int = 23  # p, of which p^2 pairs; odd.
    width: int = 128  # Neurons.
    lr: float = 0.005  # AdamW's rate.
    steps: int = 2_500  # Full batch.
    every: int = 10  # Steps between two records.
    seeds: int = 16  # How many draws of weights and pairs.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses an even modulus, which has a frequency of its own kind, and small ones."""
        if self.modulus % 2 == 0 or self.modulus < 5:
            raise BadInput(f"modulus: {self.modulus}; give an odd one, at least 5")


PRESETS = {"quick": Config(seeds=8), "paper": Config()}


def training(share: Array, decay: Array, seed: Array, *, config: Config) -> Dynamics:
    """AdamW on the pairs shown; how many of either are right, and what the neurons are."""
    p, k = config.modulus, config.width
    sums, wanted = modular_addition(p), jnp.eye(p)[modular_addition(p).total]
    *weights, pairs, other = jax.random.split(jax.random.key(seed), 5)
    shown = shown_pairs(pairs, p, share)

    def init() -> Params:
        drawn = [jax.random.normal(key, (k, p)) for key in weights]
        return dict(zip("UVW", drawn, strict=True))

    def outputs(params: Params) -> Array:
        hidden = (params["U"][:, sums.m] + params["V"][:, sums.n]) ** 2 / 2
        return hidden.T @ params["W"] / k

    def loss(params: Params) -> Array:
        off = jnp.sum((outputs(params) - wanted) ** 2, 1)
        return jnp.sum(jnp.where(shown, off, 0.0)) / jnp.sum(shown)

    def right(params: Params, on: Array) -> Array:
        found = jnp.argmax(outputs(params), 1) == sums.total
        return jnp.sum(found & on) / jnp.sum(on)

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        params = state.params
        concentration = jnp.stack([fourier_concentration(params[name]) for name in "UVW"])
        own = jnp.argmax(sum(power_spectrum(params[name]) for name in "UV"), 1) + 1
        ahead = jax.random.randint(other, own.shape, 1, p // 2)  # another, of the p // 2
        cut = {
            name: right(jax.tree.map(partial(without_frequency, frequency=at), params), ~shown)
            for name, at in (("own", own), ("another", (own - 1 + ahead) % (p // 2) + 1))
        }
        accuracies = {"shown": right(params, shown), "others": right(params, ~shown)}
        return {**accuracies, **cut, "concentration": jnp.mean(concentration)}

    adam = optax.adamw(config.lr, b2=0.98, weight_decay=decay)
    return descent(loss, adam, init=init, observe=observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Each case."""
    axes: Any = {("share", "decay"): [*CASES.values()], "seed": seeds(config)}
    data = sweep(
        partial(training, config=config),
        axes,
        steps=config.steps,
        every=config.every,
        attrs={"seed": {"vary": "initial weights and pairs"}},
        store=store,
    )
    return {"trained": data.rename(share_decay="case").assign_coords(case=[*CASES])}


def expected(config: Config) -> dict[str, Expected]:
    """Late, under decay, from enough pairs, by waves."""
    by = partial(Expected, kind="direction", source=SOURCE, vary="initial weights and pairs")
    most, few = above(0.5, why="most draws, by the exact interval"), below(0.5, why="the same")
    end = partial(by, estimator="whether 90% of the pairs not shown are right in the end")
    without, fewer = Control("without decay not", few), Control("three tenths are not", few)
    return {
        "decay": end("half of all pairs, weight decay: the others are right", most, without),
        "pairs": end("half of all pairs are enough", most, fewer),
        "delay": by(
            f"{RIGHT:.0%} of the others are right at least three times as late as of those shown",
            above(3.0, why="5 on other seeds"),
            Control("from nine tenths of the pairs not", below(2.5, why="half of 5")),
            estimator=f"steps until {RIGHT:.0%} of the others are right, over those of the shown",
            scale="log",
        ),
        "waves": by(
            "neurons become waves of one frequency",
            above(0.5, why="noise has 0.17, a wave 1"),
            Control("without decay they do not", below(0.3, why="nearer to noise")),
            estimator="mean inverse participation ratio of the spectra of U, V and W in the end",
        ),
        "own": by(
            "each neuron's own frequency taken out, the others are wrong",
            most,
            Control("another frequency each taken out, they are not", few),
            estimator="whether fewer than 30% of the others are right then",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Shares right in the end; times; what is left without frequencies."""
    trained = data["trained"]
    end = trained.isel(step=-1).sel
    took = {
        name: reached(trained[name].rename(step="time"), RIGHT).sel for name in ("shown", "others")
    }
    delay = [took["others"](case=c) / took["shown"](case=c) for c in ("weight decay", "most pairs")]
    one = end(case="weight decay")
    return {
        "decay": (one.others > 0.9, end(case="no decay").others > 0.9),
        "pairs": (one.others > 0.9, end(case="few pairs").others > 0.9),
        "delay": (delay[0], delay[1]),
        "waves": (one.concentration, end(case="no decay").concentration),
        "own": (one.own < 0.3, one.another < 0.3),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Shares of pairs that are right, and concentration, by step."""
    trained = data["trained"].isel(step=slice(1, None))
    cut = {"own": "others, own frequency out", "another": "others, another one out"}
    names = {"shown": "shown", "others": "others", **cut}
    with panels(3, ratio=1.15) as (result, (left, middle, right)):
        for (name, label), style in zip(names.items(), STYLES, strict=False):
            curve(left, trained[name].sel(case="weight decay"), label=label, **style)
        for name, style in zip(("shown", "others"), STYLES, strict=False):
            curve(middle, trained[name].sel(case="no decay"), label=f"no decay: {name}", **style)
        curve(middle, trained.others.sel(case="few pairs"), label="few pairs: others", **STYLES[4])
        for case, style in zip(CASES, STYLES, strict=False):
            curve(right, trained.concentration.sel(case=case), label=case, **style)
        for axes, says in (
            (left, "pairs right"),
            (middle, "pairs right"),
            (right, "concentration"),
        ):
            axes.set(xscale="log", xlabel="step", ylabel=says, ylim=(0, 1.02))
            key(axes, columns=1)
    return result


if __name__ == "__main__":
    main(__name__)
