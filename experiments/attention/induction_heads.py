"""Two layers of attention learn, abruptly, to copy from context (Olsson et al. 2022).

Sequences of 32 tokens repeat themselves with a random period of 8 to 16. A second-layer head comes
to attend to what followed the present token before (prefix matching), by way of first-layer
attention to the previous token. Attention only, one head a layer, no norms, learned relative bias.
The loss is of tokens that follow a repeat: there the period is known and the Bayes predictor pays
nothing (`lab.theory.sequences`); a uniform guess pays ln 32 = 3.47. (More than 200 lines because
six conditions of one process, and what is done to its first layer, belong to one account.)

    python -m experiments induction_heads          # quick: half a minute on two cores
    python -m experiments induction_heads paper    # two minutes; writes figures/

Expect 0.12 nats with two layers and 2.9 with one, three quarters of the fall within 80 steps, and
prefix matching at 0.93. The previous-token head does not form first: it gets to a quarter of the
attention some 50 steps after prefix matching does (inconclusive all the same: with few tokens it
does form first, but in some seeds not within the 500 steps that the control has). Yet the one waits
for the other: with the first layer clamped to the previous token the fall comes in half the steps,
and with that token masked, in training or after, the loss stays near 3. With 16 tokens, no more
than the greatest period, sequences are learned with no prefix matching: what has not come yet is
next.

Sources: Olsson et al. 2022, arXiv 2209.11895; Elhage et al. 2021 (induction heads by composition).
Rates, steps and bands were set on seeds 100 and above, which no preset uses.
"""

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

from lab.claims import Control, Expected, Measured, above, below, between
from lab.data import periodic_repeats
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures.attention import prefix_matching_score, previous_token_score
from lab.measures.curves import crossing
from lab.models import transformer
from lab.models.attention import Edits
from lab.objectives import cross_entropy
from lab.plotting import STYLES, curve, key, panels, theory_line
from lab.sweep import sweep
from lab.types import BadInput, Dynamics, Params

LENGTH, PERIODS = 32, (8, 16)
NONE = -1
FIRST_LAYER = {  # What is done to its attention in training: distance clamped to, and masked.
    "two layers": (NONE, NONE),
    "previous masked": (NONE, 1),
    "second masked": (NONE, 2),
    "clamped to previous": (1, NONE),
}
OLSSON = "Olsson et al. 2022, arXiv 2209.11895: "


@dataclass(frozen=True)
class Config:
    """Settings of the three sweeps."""

    seeds: int = 8  # How many starts (and batches) of each.
    first_seed: int = 0  # The first of them.
    lr: float = 0.005  # Adam's rate.
    steps: int = 500  # Steps of each run.
    every: int = 10  # Steps between two records.
    batch: int = 32  # Sequences in a batch.
    held_out: int = 64  # Sequences on which loss and attention are measured, the same for all.
    vocabulary: int = (
        32  # Tokens; twice the greatest period, or elimination does what copying does.
    )
    scale: float = 0.2  # Deviation of the embedding's first entries; 1 / sqrt(width) is 0.18.

    def __post_init__(self) -> None:
        """Refuses a vocabulary less than twice the greatest period."""
        if self.vocabulary < 2 * PERIODS[1]:
            raise BadInput(
                f"vocabulary: {self.vocabulary} tokens; give {2 * PERIODS[1]} or more, twice the "
                "greatest period"
            )


PRESETS = {"quick": Config(seeds=5, held_out=32), "paper": Config()}


def training(
    first: Array, seed: Array, *, layers: int, vocabulary: int, config: Config
) -> Dynamics:
    """Attention on repeats drawn anew at each step, its first layer free, clamped or masked."""
    small: Any = {"heads": 1, "hidden": 0, "norm": None, "positions": "relative"}
    model = transformer(vocabulary, LENGTH, layers=layers, scale=config.scale, **small)
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


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Two layers with each first layer, one layer, and a vocabulary no larger than the period."""
    free = FIRST_LAYER["two layers"]
    parts = [
        sweep(
            partial(training, config=config),
            {"first": {k: np.array(v, np.int32) for k, v in done.items()}, "seed": seeds(config)},
            static={"layers": [layers], "vocabulary": [vocabulary]},
            steps=config.steps,
            every=config.every,
            store=store / next(iter(done)),
        ).isel(layers=0, vocabulary=0, drop=True)
        for done, layers, vocabulary in (
            (FIRST_LAYER, 2, config.vocabulary),
            ({"one layer": free}, 1, config.vocabulary),
            ({"few tokens": free}, 2, PERIODS[1]),
        )
    ]
    return {"repeats": xr.concat(parts, "first", combine_attrs="override").rename(first="run")}


def expected(config: Config) -> dict[str, Expected]:
    """What is learned, how abruptly, by which heads, and which of them is first."""
    by = partial(Expected, kind="direction", vary="initial weights and batches")
    loss = partial(by, estimator="loss of tokens after a repeat, held out, at the end (Bayes: 0)")
    learned = between(0.0, 0.35, why="a tenth of the 3.47 of a uniform guess")
    lost = above(2.0, why="most of the 3.47 of a uniform guess")
    return {
        "learned": loss(
            "two layers foretell repeats",
            learned,
            Control("one layer does not", lost),
            source=OLSSON + "two layers are needed; Elhage et al. 2021",
        ),
        "prefix": by(
            "a second-layer head then matches prefixes",
            above(0.8, why="nearly all of its attention"),
            Control(
                "of no more tokens than the period: it does not",
                below(0.3, why="attention to all alike has 0.1"),
            ),
            source=OLSSON + "prefix matching",
            estimator="last layer's attention to what followed the present token before, last",
        ),
        "abrupt": by(
            "two layers learn it abruptly",
            above(0.6, why="most of the fall in less than a sixth of the steps"),
            Control("one layer gains what it gains gradually", below(0.6, why="as for the claim")),
            source=OLSSON + "an abrupt change",
            estimator="largest share of the loss's whole fall that comes within 80 steps",
        ),
        "masked": loss(
            "trained with attention to the previous token masked, they do not learn it",
            lost,
            Control("with that to the second token back masked they do", learned),
            source=OLSSON + "what the heads need",
        ),
        "lesion": loss(
            "masked in the trained network, what was learned is lost",
            lost,
            Control(
                "with that to the second token back masked there it is not",
                below(1.0, why="less than half of what is lost else"),
            ),
            source=OLSSON + "ablations",
        ),
        "order": by(
            "the previous-token head is not the first to form: prefix matching is",
            above(20.0, why="two records"),
            Control("of no more tokens than the period, it is", below(-20.0, why="two records")),
            source=OLSSON + "a previous-token head is what prefix matching builds on",
            estimator="steps from when prefix matching passes 0.25 to when the previous-token head "
            "does; the last step for never",
        ),
        "waits": by(
            "yet it is what they wait for: clamped to the previous token, they learn earlier",
            below(0.8, why="by a fifth or more"),
            Control(
                "with the second token back masked they do not",
                between(0.8, 1.25, why="a fifth either way"),
            ),
            source=OLSSON + "an architecture that makes the head easy shifts the change",
            estimator="step at which the loss passes 1.73, half of ln 32, over the free one's",
            scale="log",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Losses and attention at the end, the steepest fall, and when levels are passed."""
    repeats = data["repeats"].transpose("run", "seed", "step")
    steps, loss = repeats.step.values.astype(float), repeats.loss
    window = min(max(1, 80 // int(steps[1])), len(steps) - 1)
    falls = loss.values[..., :-window] - loss.values[..., window:]
    steep = (loss.isel(step=0) - loss.isel(step=-1)).copy(data=falls.max(-1))
    steep = steep / (loss.isel(step=0) - loss.isel(step=-1))

    def passes(curves: xr.DataArray, level: float) -> xr.DataArray:
        found = crossing(steps, curves.values, level)
        return curves.isel(step=0, drop=True).copy(data=np.nan_to_num(found, nan=steps[-1]))

    order = passes(repeats.previous, 0.25) - passes(repeats.prefix, 0.25)
    learns = passes(-loss, -np.log(32) / 2)
    sooner = learns / learns.sel(run="two layers")
    end = repeats.isel(step=-1)
    free = end.sel(run="two layers")
    pairs: dict[str, Any] = {
        "learned": (end.loss, "two layers", "one layer"),
        "prefix": (end.prefix, "two layers", "few tokens"),
        "abrupt": (steep, "two layers", "one layer"),
        "masked": (end.loss, "previous masked", "second masked"),
        "order": (order, "two layers", "few tokens"),
        "waits": (sooner, "clamped to previous", "second masked"),
    }
    return {
        **{name: (at.sel(run=one), at.sel(run=two)) for name, (at, one, two) in pairs.items()},
        "lesion": (free.previous_lost, free.second_lost),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Loss of each run against Bayes (dashed), and the two heads with many and few tokens."""
    repeats = data["repeats"]
    with panels(2, ratio=0.85) as (result, (left, right)):
        for name, style in zip(repeats.run.values, STYLES, strict=False):
            if name != "few tokens":
                curve(left, repeats.loss.sel(run=name), label=name, **style)
        theory_line(left, 0.0)
        left.set(xlabel="step", ylabel="loss after a repeat (nats)", ylim=(-0.1, 3.6))
        heads = {"previous token, layer 1": "previous", "prefix matching, layer 2": "prefix"}
        for tokens, name in (("", "two layers"), (", few tokens", "few tokens")):
            for (head, measure), style in zip(heads.items(), STYLES[5:], strict=False):
                thin = {**style, "linestyle": ":" if tokens else "-"}
                curve(right, repeats[measure].sel(run=name), label=head + tokens, **thin)
        theory_line(right, 0.25)
        right.set(xlabel="step", ylabel="attention", ylim=(0, 1))
        key(left, columns=2)
        key(right, columns=1, title="dashed: the level of forming")
    return result


if __name__ == "__main__":
    main(__name__)
