"""A network gives wrong labels their true class before it memorises them.

Digits of which 40% are labelled wrongly. By the time that a network fits four fifths of the right
labels it fits no more of the wrong ones than by chance, and calls most of them what they are; later
it memorises every one, and forgets part of what it knew of fresh digits. Where all labels are drawn
at random there is no signal, and no part of them comes first.

    python -m experiments memorised_last          # quick: 20 seconds on two cores
    python -m experiments memorised_last paper    # a minute; writes figures/

MNIST, 14 x 14, ReLU network 196-64-64-10, last layer from zero, cross entropy, Adam at 0.003 on the
full batch of 500. Expect, when 80% of the right labels are fitted, 9% of the wrong ones, and 66%
given their true class; fresh digits known fall from 74% to 54%. In closed form, of linear
regression: `signal_first`.

Sources: Arpit et al. 2017, arXiv 1706.05394 (networks learn simple patterns first); Zhang et al.
2017, arXiv 1611.03530 (they fit random labels). Tolerances are of seeds 100 to 107, used by no
preset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, above, below
from lab.data import Digits, mnist, wrong_labels
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures import value_at_crossing
from lab.models import mlp
from lab.objectives import cross_entropy
from lab.plotting import STYLES, curve, key, panels, theory_line
from lab.sweep import sweep
from lab.types import BadInput, Dynamics, Params

SOURCE = "Arpit et al. 2017, arXiv 1706.05394"
VARY = "digits, which labels are wrong and how, weights"
CURVES = {
    "right": "right labels fitted",
    "wrong": "wrong labels fitted",
    "truth": "wrong ones given their true class",
    "test": "fresh digits known",
}
RANDOM = 0.9
"""The share of wrong labels, each of the nine other classes as likely, that leaves no signal."""


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    share: float = 0.4  # Of labels that are wrong; the control's is 0.9.
    fitted: float = 0.8  # Share of right labels that counts as fitted.
    examples: int = 500  # Of each seed, of 4,000.
    width: int = 64  # Of both hidden layers.
    lr: float = 3e-3  # Learning rate of Adam.
    steps: int = 300  # Of gradient descent.
    seeds: int = 16  # How many draws of digits, labels and weights.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses a share without signal or without wrong labels; too many examples."""
        if not 0 < self.share < RANDOM:
            raise BadInput(f"share: {self.share}; give one within (0, {RANDOM})")
        if not 10 <= self.examples <= 4_000:
            raise BadInput(f"examples: {self.examples}; give 10 to 4000")


PRESETS = {"quick": Config(seeds=8), "paper": Config()}


def training(share: Array, seed: Array, train: Digits, test: Digits, *, config: Config) -> Dynamics:
    """Adam on labels of which some are wrong; what of right and wrong ones is fitted."""
    draw, spoil, mark, init = jax.random.split(jax.random.key(seed), 4)
    rows = jax.random.permutation(draw, len(train.x))[: config.examples]
    x, true = train.x[rows], train.labels[rows]
    labels, wrong = wrong_labels(spoil, true, share=share)
    # Where all labels are of one kind, chance says which are called wrong.
    some = jnp.isclose(share, config.share)
    part = jnp.where(some, wrong, jax.random.bernoulli(mark, config.share, wrong.shape))
    model = mlp((x.shape[1], config.width, config.width, 10), activation="relu", gain=2.0)

    def start() -> Params:
        params = model.init(init)
        return params | {"layer_3": jax.tree.map(jnp.zeros_like, params["layer_3"])}

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        said = model.apply(state.params, x).argmax(-1)
        return {
            "right": jnp.mean(said == labels, where=~part),
            "wrong": jnp.mean(said == labels, where=part),
            "truth": jnp.mean(said == true, where=part),
            "test": jnp.mean(model.apply(state.params, test.x).argmax(-1) == test.labels),
        }

    loss = lambda params: cross_entropy(model.apply(params, x), labels)  # noqa: E731
    return descent(loss, optax.adam(config.lr), init=start, observe=observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Labels in part wrong, and random ones."""
    train, test = mnist(4_000, pool=2, test=1_000)
    axes = {"share": [0.0, config.share, RANDOM], "seed": seeds(config)}
    data = sweep(
        partial(training, config=config),
        axes,
        steps=config.steps,
        every=1,
        shared={"train": train, "test": test},
        attrs={"seed": {"vary": VARY}},
        store=store,
    )
    return {"trained": data.assign_attrs(fitted=config.fitted)}


def when_fitted(data: xr.Dataset, name: str) -> xr.DataArray:
    """What else is so when right labels are fitted, by straight lines between steps."""
    right, other = (data[of].transpose("seed", "step").values for of in ("right", name))
    steps, level = data.step.values.astype(float), data.attrs["fitted"]
    return xr.DataArray(value_at_crossing(steps, other, right, level), dims="seed")


def expected(config: Config) -> dict[str, Expected]:
    """Wrong labels come last, are corrected first, and cost what was learned."""
    by = partial(Expected, kind="direction", source=SOURCE, vary=VARY)
    when = f"{config.fitted:.0%} of right labels fitted"
    return {
        "last": by(
            f"{when}: of the wrong ones no more than by chance",
            below(0.15, why="a tenth by chance; 0.09 on other seeds"),
            Control("all random: no half comes last", above(0.6, why="near the 0.8 of the other")),
            estimator="share of wrong labels that outputs agree with by then",
        ),
        "corrected": by(
            f"{when}: most of the wrong ones are given their true class",
            above(0.5, why="most; 0.66 on other seeds"),
            Control("all random: nothing to correct by", below(0.2, why="a tenth by chance")),
            estimator="share of examples of wrong labels that are given their true class by then",
        ),
        "forgotten": by(
            "memorising what is wrong costs accuracy on fresh digits",
            above(0.1, why="an effect to speak of; 0.2 on other seeds"),
            Control("no wrong labels: none is lost", below(0.05, why="best of many steps")),
            estimator="best test accuracy less the last",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Where right labels are fitted, and at the end."""
    trained = data["trained"]
    none, some, random = (trained.isel(share=i) for i in range(3))
    lost = [of.test.max("step") - of.test.isel(step=-1) for of in (some, none)]
    return {
        "last": (when_fitted(some, "wrong"), when_fitted(random, "wrong")),
        "corrected": (when_fitted(some, "truth"), when_fitted(random, "truth")),
        "forgotten": (lost[0], lost[1]),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """What is fitted against step, with some labels wrong and with all random."""
    trained = data["trained"]
    with panels(2, ratio=0.9) as (result, axes):
        for panel, i, title in zip(axes, (1, 2), ("some wrong", "all random"), strict=True):
            for (name, says), style in zip(CURVES.items(), STYLES, strict=False):
                at = trained[name].isel(share=i, step=slice(1, None))
                curve(panel, at, label=says, **style)
            theory_line(panel, 0.1)
            panel.set(xscale="log", xlabel="step", ylabel="share", ylim=(0, 1.02))
            key(panel, columns=1, title=f"labels: {title}; dashed: chance")
    return result


if __name__ == "__main__":
    main(__name__)
