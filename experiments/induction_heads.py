"""Two layers of attention learn, abruptly, to copy from context; one layer cannot.

Sequences of 32 tokens repeat themselves with a random period of 8 to 16. A second-layer head comes
to attend to what followed the present token before (prefix matching), by way of first-layer
attention to the previous token. Attention only, one head a layer, no norms, learned relative bias.
The loss is of tokens that follow a repeat: there the period is known and the Bayes predictor pays
nothing (`lab.theory.sequences`); a uniform guess pays ln 32 = 3.47.

    python -m experiments.induction_heads          # quick: 1 minute
    python -m experiments.induction_heads paper    # 3 minutes, shared; writes figures/

Expect 0.12 nats with two layers and 2.9 with one, three quarters of the fall within 80 steps, and
prefix matching at 0.93. The previous-token head does not form first: it is half up some 40 steps
after prefix matching is (half of what each reaches by the last step). Yet the one waits for the
other: with the first layer clamped to the previous token the fall comes in half the steps, and with
that token masked, in training or after, the loss stays near 3. With 16 tokens, no more than the
greatest period, sequences are learned with no prefix matching: what has not come yet is next.

Sources: Olsson et al. 2022, arXiv 2209.11895; Elhage et al. 2021 (induction heads by composition).
Rates, steps and tolerances were set on seeds 100 and above, which no preset uses.
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
from lab.data import periodic_repeats
from lab.dynamics import Descent, descent
from lab.experiment import main
from lab.measures.attention import prefix_matching_score, previous_token_score
from lab.measures.curves import crossing
from lab.models import transformer
from lab.models.attention import Edits
from lab.objectives import cross_entropy
from lab.plotting import OKABE_ITO, band_plot, paper_style, theory_line
from lab.sweep import sweep
from lab.types import BadInput, Claim, Dynamics, Params

LENGTH, PERIODS = 32, (8, 16)
NONE = -1
FIRST_LAYER = {  # distance clamped to, distance masked
    "free": (NONE, NONE),
    "previous masked": (NONE, 1),
    "second masked": (NONE, 2),
    "clamped to previous": (1, NONE),
}
"""What is done to the first layer's attention, at every step of training."""


OLSSON = "Olsson et al. 2022, arXiv 2209.11895, "
LEARNED = 0.35
LOST: dict[str, Any] = {"tolerance": (2.0, math.inf), "why": "most of the 3.47 of a uniform guess"}


@dataclass(frozen=True)
class Config:
    """Settings of the three sweeps."""

    seeds: int = 4
    """Starts (and batches) of each."""
    first_seed: int = 0
    """The first of them."""
    lr: float = 0.005
    """Adam's rate."""
    steps: int = 500
    """Steps of each run."""
    every: int = 10
    """Steps between two records."""
    batch: int = 32
    """Sequences in a batch."""
    held_out: int = 64
    """Sequences on which loss and attention are measured, the same for all runs."""
    vocabulary: int = 32
    """Tokens; twice the greatest period, or elimination can do what copying does."""
    scale: float = 0.2
    """Standard deviation of the embedding's starting entries; 1 / sqrt(D) is 0.18."""


PRESETS = {"quick": Config(seeds=3, steps=400, every=20, held_out=32), "paper": Config()}


def training(
    first: Array, seed: Array, *, layers: int, vocabulary: int, config: Config
) -> Dynamics:
    """Attention on repeats drawn anew at each step, its first layer free, clamped or masked."""
    model = transformer(
        vocabulary,
        LENGTH,
        heads=1,
        layers=layers,
        hidden=0,
        norm=None,
        positions="relative",
        scale=config.scale,
    )
    init_key, batch_key = jax.random.split(jax.random.key(seed))
    draw = partial(periodic_repeats, length=LENGTH, vocabulary=vocabulary, periods=PERIODS)
    done = first_layer(*first)

    def loss(params: Params, tokens: Array) -> Array:
        return cross_entropy(model.apply(params, tokens, edit=done)[:, :-1], tokens[:, 1:])

    def lesion(distance: int) -> Edits:
        return first_layer(jnp.int32(NONE), jnp.int32(distance))

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        held = draw(jax.random.key(2**30), sequences=config.held_out)

        def of_repeats(edit: Edits) -> tuple[Array, dict[str, Array]]:
            logits, seen = model.apply(state.params, held.tokens, edit=edit, record=True)
            q = jax.nn.log_softmax(logits[:, :-1])
            paid = -jnp.take_along_axis(q, held.tokens[:, 1:, None], -1)[..., 0]
            return jnp.mean(paid, where=held.repeated[:, :-1]), seen

        value, seen = of_repeats(done)
        ahead, last = (seen[f"attention_{i}/weights"][:, 0] for i in (1, layers))
        return {
            "loss": value,
            "previous_lost": of_repeats(lesion(1))[0],
            "second_lost": of_repeats(lesion(2))[0],
            "previous": previous_token_score(ahead).mean(),
            "prefix": prefix_matching_score(last, held.tokens).mean(),
        }

    return descent(
        loss,
        optax.adam(config.lr),
        init=lambda: model.init(init_key),
        observe=observe,
        batch=lambda t: draw(jax.random.fold_in(batch_key, t), sequences=config.batch).tokens,
    )


def first_layer(clamp: Array, mask: Array) -> Edits:
    """The first layer attends `clamp` tokens back alone, or to all but `mask` tokens back."""
    i = jnp.arange(LENGTH)
    distance = i[:, None] - i[None]
    target = i[None] == jnp.maximum(i[:, None] - clamp, 0)

    def clamped(weights: Array) -> Array:
        return jnp.where(clamp == NONE, weights, jnp.broadcast_to(target, weights.shape))

    def masked(scores: Array) -> Array:
        return jnp.where(jnp.broadcast_to(distance == mask, scores.shape), -jnp.inf, scores)

    return {"attention_1/scores": masked, "attention_1/weights": clamped}


def run(config: Config, store: Path) -> xr.Dataset:
    """Two layers with each first layer, one layer, and a vocabulary no larger than the period."""
    if config.vocabulary < 2 * PERIODS[1]:
        raise BadInput(
            f"vocabulary: {config.vocabulary} tokens; give {2 * PERIODS[1]} or more, twice the "
            "greatest period"
        )
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    free = {"free": FIRST_LAYER["free"]}
    parts = {
        name: sweep(
            partial(training, config=config),
            {"first": {k: np.array(v, np.int32) for k, v in done.items()}, "seed": seeds},
            static={"layers": [layers], "vocabulary": [vocabulary]},
            steps=config.steps,
            every=config.every,
            store=store / name,
        ).isel(layers=0, vocabulary=0, drop=True)
        for name, done, layers, vocabulary in (
            ("two layers", FIRST_LAYER, 2, config.vocabulary),
            ("one layer", free, 1, config.vocabulary),
            ("few tokens", free, 2, PERIODS[1]),
        )
    }
    labelled = [
        part if name == "two layers" else part.assign_coords(first=[name])
        for name, part in parts.items()
    ]
    whole = xr.concat(labelled, "first", combine_attrs="override").rename(first="run")
    return whole.assign_attrs(labelled[0].attrs)


def passed(curves: xr.DataArray, level: np.ndarray | float, *, falling: bool) -> np.ndarray:
    """The step at which each seed's curve first passes a level, between records; NaN for never."""
    values = curves.transpose("seed", "step").values
    beyond = (values - np.broadcast_to(level, len(values))[:, None]) * (-1 if falling else 1)
    steps = curves.step.values.astype(float)
    return np.where(beyond[:, 0] >= 0, steps[0], crossing(steps, beyond, 0.0))


def half_time(curves: xr.DataArray) -> np.ndarray:
    """The step at which each seed's curve first passes halfway between its start and its end."""
    ends = (curves.isel(step=0) + curves.isel(step=-1)).values / 2
    return passed(curves, ends, falling=bool(curves[..., -1].mean() < curves[..., 0].mean()))


def fall_time(data: xr.Dataset, share: float = 0.5) -> np.ndarray:
    """The step at which each seed's loss falls to a share of its first; NaN for never."""
    return passed(data.loss, share * data.loss.isel(step=0).values, falling=True)


def steepest(data: xr.Dataset, window: int = 80) -> np.ndarray:
    """The largest share of each seed's fall of the loss, first to last, in so many steps."""
    loss = data.loss.transpose("seed", "step").values
    records = min(max(1, window // int(data.step[1] - data.step[0])), len(data.step) - 1)
    return (loss[:, :-records] - loss[:, records:]).max(1) / (loss[:, 0] - loss[:, -1])


def claims(data: xr.Dataset) -> list[Claim]:
    """What is learned, how abruptly, by which heads, and which of them is first."""
    runs = {str(name): data.sel(run=name, drop=True) for name in data.run.values}
    free = runs["free"]

    def end(name: str, what: str = "loss") -> np.ndarray:
        return runs[name][what].isel(step=-1).values

    by = partial(claim, seeds="initial weights and batches", predicted=None)
    paid = partial(
        by,
        source=OLSSON + "arguments 2 and 3 (what heads need, ablations); Elhage et al. 2021",
        estimator="loss of tokens after a repeat, held out, at the end, nats (Bayes: 0)",
    )
    mass = partial(
        by,
        source=OLSSON + "prefix matching",
        estimator="last layer's attention to what followed the present token before, at the end",
    )
    abrupt = partial(
        by,
        source=OLSSON + "argument 1 (an abrupt change)",
        estimator="largest share of the loss's whole fall that comes within 80 steps",
    )
    lag = partial(
        by,
        source=OLSSON + "mechanism: a previous-token head is what prefix matching builds on",
        estimator="steps from when prefix matching is half up to when the previous-token head is",
    )
    time = partial(
        by,
        source=OLSSON + "argument 2 (an architecture that makes the head easy shifts the change)",
        estimator="step at which the loss has halved, over that with a free first layer, same seed",
    )
    return [
        paid(
            "two layers foretell repeats",
            end("free"),
            tolerance=(0.0, LEARNED),
            why="a tenth of the 3.47 of a uniform guess",
            control=paid("one layer does not", end("one layer"), **LOST),
        ),
        mass(
            "a second-layer head then matches prefixes",
            end("free", "prefix"),
            tolerance=(0.8, 1.0),
            why="nearly all of its attention",
            control=mass(
                "one layer: there is none",
                end("one layer", "prefix"),
                tolerance=(0.0, 0.3),
                why="attention to all alike has 0.1",
            ),
        ),
        abrupt(
            "two layers learn it abruptly",
            steepest(free),
            tolerance=(0.6, 1.0),
            why="most of the fall in less than a sixth of the steps",
            control=abrupt(
                "one layer gains what it gains gradually",
                steepest(runs["one layer"]),
                tolerance=(0.0, 0.6),
                why="as for the claim",
            ),
        ),
        paid(
            "trained with attention to the previous token masked, they do not learn it",
            end("previous masked"),
            **LOST,
            control=paid(
                "with that to the second token back masked they do",
                end("second masked"),
                tolerance=(0.0, LEARNED),
                why="as for the first claim",
            ),
        ),
        paid(
            "masked in the trained network, what was learned is lost",
            end("free", "previous_lost"),
            **LOST,
            control=paid(
                "with that to the second token back masked there it is not",
                end("free", "second_lost"),
                tolerance=(0.0, 1.0),
                why="less than half of what is lost else",
            ),
        ),
        lag(
            "the previous-token head is not the first to form: prefix matching is",
            half_time(free.previous) - half_time(free.prefix),
            tolerance=(0.0, math.inf),
            why="a direction",
            control=lag(
                "clamped to the previous token from the start, it is",
                half_time(runs["clamped to previous"].previous)
                - half_time(runs["clamped to previous"].prefix),
                tolerance=(-math.inf, 0.0),
                why="a direction",
            ),
        ),
        time(
            "yet it is what they wait for: clamped to the previous token, they learn earlier",
            fall_time(runs["clamped to previous"]) / fall_time(free),
            tolerance=(0.0, 0.8),
            why="by a fifth or more",
            control=time(
                "with the second token back masked they do not",
                fall_time(runs["second masked"]) / fall_time(free),
                tolerance=(0.8, math.inf),
                why="as for the claim",
            ),
        ),
        mass(
            "a vocabulary no larger than the greatest period: prefixes are hardly matched",
            end("few tokens", "prefix"),
            tolerance=(0.0, 0.3),
            why="attention to all alike has 0.1",
            control=mass(
                "of twice the period: they are",
                end("free", "prefix"),
                tolerance=(0.8, 1.0),
                why="nearly all of its attention",
            ),
        ),
    ]


def figure(data: xr.Dataset) -> Figure:
    """Loss of each run against Bayes (dashed), the two heads, and which is first (dashed: both)."""
    shown = {
        "free": ("two layers", 0),
        "one layer": ("one layer", 1),
        "previous masked": ("previous masked", 3),
        "clamped to previous": ("clamped to previous", 2),
    }
    with paper_style("neurips", columns=3, ratio=1.0):
        result, (left, middle, right) = plt.subplots(1, 3)
        for run_name, (label, colour) in shown.items():
            loss = data.loss.sel(run=run_name).transpose("seed", "step").values
            band_plot(left, data.step, loss, colour=OKABE_ITO[colour], label=label)
        theory_line(left, 0.0)
        left.set(xlabel="step", ylabel="loss after a repeat (nats)", ylim=(-0.1, 5.8))
        left.legend(loc="upper left", fontsize="small", labelspacing=0.2, borderaxespad=0)
        free = data.sel(run="free")
        for name, label, colour in (
            ("previous", "previous token, layer 1", 4),
            ("prefix", "prefix matching, layer 2", 5),
        ):
            values = free[name].transpose("seed", "step").values
            band_plot(middle, data.step, values, colour=OKABE_ITO[colour], label=label)
        middle.set(xlabel="step", ylabel="attention", ylim=(0, 1.25))
        middle.legend(loc="upper left", fontsize="small", labelspacing=0.2, borderaxespad=0)
        prefix, previous = half_time(free.prefix), half_time(free.previous)
        right.plot(prefix, previous, "o", ms=3, color=OKABE_ITO[0])
        both = np.concatenate([prefix, previous])
        ends = (0.9 * both.min(), 1.1 * both.max())
        right.plot(ends, ends, color="0.3", linestyle=(0, (4, 2)), linewidth=0.8)
        right.set(xlabel="prefix half up (step)", ylabel="previous half up (step)")
    return result


if __name__ == "__main__":
    main(__name__)
