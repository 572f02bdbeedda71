"""Two layers of attention learn to count transitions in context (Edelman et al. 2024).

Each sequence is of a Markov chain of its own, its rows of transitions uniform on the simplex. The
best predictor is known: the posterior mean, counts of transitions plus one. Two layers first learn
to count tokens (unigram), and some tens of steps later pass to counting transitions (bigram), by a
second-layer head that attends to what followed the present token: a statistical induction head.
One layer stays at the unigram's loss. Attention only, one head a layer, no norms, learned relative
bias, three states, 64 tokens.

    python -m experiments markov_chains          # quick: half a minute on two cores
    python -m experiments markov_chains paper    # one minute; writes figures/

Expect two layers to close 70% of the gap between the unigram's loss and Bayes' (3.8% above it), one
layer none; on the way two layers come six times nearer (KL) to the unigram's than to the bigram's.

Source: Edelman et al. 2024, arXiv 2402.11004. Losses are cross entropies with the chain's own
transitions, without labels' noise, on sequences held out, as are those of the exact predictors
(`lab.theory.sequences`). Rates, steps and bands were set on seeds 100 and above."""

import math
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
from lab.data import Chains, markov_chains
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures.attention import prefix_matching_score, previous_token_score
from lab.models import transformer
from lab.objectives import cross_entropy, kl_divergence
from lab.plotting import STYLES, curve, key, panels, theory_line
from lab.sweep import sweep
from lab.theory.sequences import bigram_prediction, unigram_prediction
from lab.types import BadInput, Dynamics, Params

PREDICTORS = {"unigram": unigram_prediction, "bigram": bigram_prediction}
EDELMAN = "Edelman et al. 2024, arXiv 2402.11004: "


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    states: int = 3  # How many states a chain has: the vocabulary.
    length: int = 64  # Tokens of a sequence.
    width: int = 16  # Width of the residual stream.
    scale: float = 0.25  # Deviation of the embedding's first entries, 1 / sqrt(width).
    seeds: int = 8  # How many starts (and batches) for each number of layers.
    first_seed: int = 0  # The first of them.
    lr: float = 0.02  # Adam's rate, which falls to 0 as a cosine.
    steps: int = 500  # Steps of each run.
    every: int = 10  # Steps between two records.
    batch: int = 32  # Sequences in a batch.
    held_out: int = 128  # Sequences on which losses are measured, the same for all runs.

    def __post_init__(self) -> None:
        """Refuses fewer than two states."""
        if self.states < 2:
            raise BadInput(
                f"states: {self.states}; give 2 or more, or there is nothing to foretell"
            )


PRESETS = {"quick": Config(seeds=6, steps=400), "paper": Config()}


def held_out(config: Config) -> Chains:
    """The sequences on which everything is measured."""
    sizes = {"sequences": config.held_out, "length": config.length, "states": config.states}
    return markov_chains(jax.random.key(2**30), **sizes)


def training(seed: Array, *, layers: int, config: Config) -> Dynamics:
    """A transformer on chains drawn anew at each step."""
    small: Any = {"heads": 1, "hidden": 0, "norm": None, "positions": "relative"}
    sizes: Any = {"width": config.width, "scale": config.scale, "layers": layers}
    model = transformer(config.states, config.length, **sizes, **small)
    init_key, batch_key = jax.random.split(jax.random.key(seed))
    draw = partial(markov_chains, length=config.length, states=config.states)

    def loss(params: Params, tokens: Array) -> Array:
        return cross_entropy(model.apply(params, tokens)[:, :-1], tokens[:, 1:])

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        chains = held_out(config)
        unigram, bigram = (q(chains.tokens, config.states) for q in PREDICTORS.values())
        logits, seen = model.apply(state.params, chains.tokens, record=True)
        ahead, last = (seen[f"attention_{i}/weights"][:, 0] for i in (1, layers))
        return {
            "loss": cross_entropy(logits[:, :-1], chains.following[:, :-1]),
            "from_unigram": kl_divergence(unigram, logits),
            "from_bigram": kl_divergence(bigram, logits),
            "from_other": kl_divergence(jnp.roll(unigram, 1, 0), logits),
            "previous": previous_token_score(ahead).mean(),
            "prefix": prefix_matching_score(last, chains.tokens).mean(),
        }

    return descent(
        loss,
        optax.adam(optax.cosine_decay_schedule(config.lr, config.steps)),
        init=lambda: model.init(init_key),
        observe=observe,
        batch=lambda t: draw(jax.random.fold_in(batch_key, t), sequences=config.batch).tokens,
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """One layer and two, and the levels of the exact predictors on the same sequences."""
    how: Any = {"steps": config.steps, "every": config.every, "store": store}
    axes, static = {"seed": seeds(config)}, {"layers": [1, 2]}
    data = sweep(partial(training, config=config), axes, static=static, **how)
    chains = held_out(config)
    truth = chains.following[:, :-1]
    levels = {
        name: float(cross_entropy(jnp.log(q(chains.tokens, config.states))[:, :-1], truth))
        for name, q in PREDICTORS.items()
    }
    return {"chains": data.assign({"uniform": math.log(config.states), **levels})}


def expected(config: Config) -> dict[str, Expected]:
    """Where two layers end, and the stage between."""
    by = partial(Expected, kind="direction", vary="initial weights and batches")
    return {
        "gap": by(
            "two layers close more than half of the gap from counting tokens to Bayes",
            above(0.5, why="half; all of it takes sharper attention than so few steps give"),
            Control(
                "one layer closes none", below(0.15, why="it may use how long ago others came")
            ),
            source=EDELMAN + "two layers learn the bigram, one layer does not",
            estimator="(unigram's loss - loss at the end) / (unigram's loss - Bayes loss)",
        ),
        "stage": by(
            "on the way two layers count tokens: a stage near the unigram's predictions",
            below(0.3, why="three times nearer to the one than to the other"),
            Control(
                "they come not so near to the unigram's of another sequence",
                above(0.4, why="what a guess of such frequencies reaches"),
            ),
            source=EDELMAN + "the unigram phase of training",
            estimator="least KL divergence from those predictions, over the bigram's then",
            scale="log",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Shares of the gap at the end; divergences where they are least."""
    chains = data["chains"]
    share = (chains.unigram - chains.loss.isel(step=-1)) / (chains.unigram - chains.bigram)
    two = chains.sel(layers=2)

    def nearest(to: xr.DataArray) -> xr.DataArray:
        return to.min("step") / two.from_bigram.isel(step=to.argmin("step"))

    return {
        "gap": (share.sel(layers=2), share.sel(layers=1)),
        "stage": (nearest(two.from_unigram), nearest(two.from_other)),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Losses against the exact predictors' (dashed), distance from each, and the two heads."""
    chains = data["chains"]
    two = chains.sel(layers=2)
    shown = (
        {"one layer": chains.loss.sel(layers=1), "two layers": chains.loss.sel(layers=2)},
        {"from unigram": two.from_unigram, "from bigram (Bayes)": two.from_bigram},
        {"previous token, layer 1": two.previous, "prefix matching, layer 2": two.prefix},
    )
    with panels(3, ratio=1.0) as (result, grid):
        for axes, curves, first in zip(grid, shown, (0, 2, 4), strict=True):
            for (name, values), style in zip(curves.items(), STYLES[first:], strict=False):
                curve(axes, values, label=name, log=axes is grid[1], **style)
            axes.set(xlabel="step")
            key(axes, columns=1)
        for name in ("uniform", "unigram", "bigram"):
            theory_line(grid[0], level := float(chains[name]))
            grid[0].text(chains.step[-1], level, name, ha="right", va="top", fontsize="small")
        grid[0].set(ylabel="loss (nats)", ylim=(0.86, 1.16))
        grid[1].set(ylabel="KL divergence (nats)", yscale="log", ylim=(0.01, 1))
        grid[2].set(ylabel="attention", ylim=(0, 1))
    return result


if __name__ == "__main__":
    main(__name__)
