"""What pretraining without labels is worth when labels are few, against fair baselines.

MNIST digits (14 x 14): 3,000 without labels, of which 1 to 50 a class are labelled; 500 to validate
on; 1,500 to test. Contrastive pretraining (NT-Xent) and a ridge probe, against

- a network of the same layers, from scratch on the labels, WITH THE SAME AUGMENTATIONS, tuned;
- the same probe on the network at init (random features), and on raw pixels.

Whatever can be chosen (temperature, layer, penalty and time to stop of pretraining; rate and time
to stop of supervised training; layer and penalty of the others) is chosen on the validation split,
for each method and seed; test labels are looked at for no choice. That split has more labels than
most methods train on: each choice is near the best there is, for all methods alike. Seeds vary
the labelled digits, the split of validation and test, initial weights, batches and views.

    python -m experiments.label_efficiency          # quick: 95 seconds
    python -m experiments.label_efficiency paper    # 7 minutes, shared; writes figures/

Expect pretraining to gain 3 to 9 percent over features that are not learned, at each number of
labels, and against supervision never to win for certain: 4 percent ahead at one label a class, an
interval that holds zero; 3 behind at 5 and 5 behind at 10; level or a percent behind at 50.

Sources: Chen et al. 2020, arXiv 2002.05709, section 6 (few labels); Newell and Deng 2020, arXiv
2003.14323 (the gain shrinks as labels grow). Settings and tolerances were set on seeds 100 and
above, which no preset uses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import claim
from lab.data import Augmentation, minibatch, mnist, two_views, views
from lab.dynamics import Descent, descent
from lab.experiment import main
from lab.measures.representation import probed, ridge_probe
from lab.models import mlp
from lab.objectives import accuracy, cross_entropy, nt_xent
from lab.plotting import OKABE_ITO, band_plot, paper_style, theory_line
from lab.sweep import sweep
from lab.types import BadInput, Claim, Dynamics, Params

VIEWS = Augmentation(shift=2.0, rotation=0.3, stretch=0.15, elastic=0.5, noise=0.2)
VALIDATION = 500
"""Labelled digits on which choices are made."""
ENCODER = mlp((196, 256, 64), activation="relu", gain=2.0)
HEAD = mlp((64, 64, 32), activation="relu", gain=2.0)
CLASSIFIER = mlp((196, 256, 64, 10), activation="relu", gain=2.0)
LAYERS: dict[str, Callable[[Params, Array], Array]] = {
    "pixels": lambda params, x: x,
    "hidden": lambda params, x: jax.nn.relu(ENCODER.apply(params, x, preactivations=True)[0]),
    "output": lambda params, x: ENCODER.apply(params, x),
}
"""What a probe may read of an encoder."""


@dataclass(frozen=True)
class Config:
    """Settings of the two sweeps."""

    labels: tuple[int, ...] = (1, 5, 10, 50)
    """Labelled digits a class, ascending."""
    temperatures: tuple[float, ...] = (0.1, 0.2)
    """Of pretraining."""
    penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    """Of the ridge probe, on features of mean square 1."""
    lrs: tuple[float, ...] = (1e-3, 3e-3)
    """Adam's rates of supervised training."""
    lr: float = 1e-3
    """Adam's rate of pretraining."""
    examples: int = 3_000
    """Digits without labels, as many of each class."""
    tested: int = 1_500
    """Digits to test on."""
    batch: int = 64
    """Digits in a batch of pretraining, each in two views; half as many in one of supervision."""
    steps: int = 1_200
    """Minibatch steps of pretraining, which may stop at each quarter of them."""
    supervised_steps: int = 1_000
    """Of supervised training."""
    every: int = 100
    """Steps between two records; supervised training may stop at each."""
    seeds: int = 8
    """See above for what they vary."""
    first_seed: int = 0
    """The first of them."""


PRESETS = {
    "quick": Config(labels=(1, 10), temperatures=(0.2,), lrs=(1e-3,), seeds=3, steps=800),
    "paper": Config(),
}


class Keys(NamedTuple):
    """Of all that a seed draws: the labelled digits, the split of the others, weights, batches."""

    labelled: Array
    others: Array
    init: Array
    head: Array
    batches: Array
    views: Array


class Parts(NamedTuple):
    """Rows that one seed draws: labelled digits of those trained on, and a split of the others."""

    labelled: Array
    validation: Array
    test: Array


def keys(seed: Array) -> Keys:
    """One key for each thing drawn, the same for every method."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def parts(seed: Array, *, config: Config) -> Parts:
    """Rows drawn by tens that hold one digit of each class, as `lab.data.mnist` orders them.

    Those trained on come first. The labelled ones of `n` a class are the first `10 n`.
    """

    def tens(key: Array, count: int) -> Array:
        order = jax.random.permutation(key, count // 10)
        return (10 * order[:, None] + jnp.arange(10)[None]).reshape(-1)

    labelled = tens(keys(seed).labelled, config.examples)[: 10 * max(config.labels)]
    others = config.examples + tens(keys(seed).others, VALIDATION + config.tested)
    return Parts(labelled, others[:VALIDATION], others[VALIDATION:])


def pretraining(
    temperature: Array,
    paired: Array,
    seed: Array,
    x: Array,
    labels: Array,
    fill: Array,
    *,
    config: Config,
) -> Dynamics:
    """Contrastive learning without labels, and probes of it; `paired` 0, on views of others."""
    own, rows = keys(seed), parts(seed, config=config)

    def loss(params: Params, pair: tuple[Array, Array]) -> Array:
        first, second = (
            HEAD.apply(params["head"], jax.nn.relu(ENCODER.apply(params["encoder"], view)))
            for view in pair
        )
        return nt_xent(first, second, temperature=temperature)

    def batch(t: Array) -> tuple[Array, Array]:
        drawn = minibatch(own.batches, t, x[: config.examples], size=config.batch)
        first, second = two_views(jax.random.fold_in(own.views, t), drawn, VIEWS, fill=fill)
        return first, jnp.where(paired == 1, second, jnp.roll(second, 1, 0))

    def inspect(state: Descent, t: Array) -> dict[str, Array]:
        read = (partial(layer, state.params["encoder"]) for layer in LAYERS.values())
        return {"scores": jnp.stack([probe_scores(f, rows, x, labels, config) for f in read])}

    return descent(
        loss,
        optax.adam(config.lr),
        init=lambda: {"encoder": ENCODER.init(own.init), "head": HEAD.init(own.head)},
        observe=lambda state, t: {"loss": state.loss},
        inspect=inspect,
        batch=batch,
    )


def probe_scores(
    features: Callable[[Array], Array], rows: Parts, x: Array, labels: Array, config: Config
) -> Array:
    """Accuracy of ridge probes: [labels a class, penalty, (validation, test)]."""
    few, validation, test = (features(x[of]) for of in rows)

    def scores(count: int, penalty: Array) -> Array:
        mean = few[:count].mean(0)[None]
        scale = jnp.sqrt(jnp.mean((few[:count] - mean) ** 2) + 1e-12)
        y = jax.nn.one_hot(labels[rows.labelled[:count]], 10)
        fitted = ridge_probe((few[:count] - mean) / scale, y, penalty=penalty)

        def score(z: Array, of: Array) -> Array:
            return accuracy(probed(fitted, (z - mean) / scale), labels[of])

        return jnp.stack([score(validation, rows.validation), score(test, rows.test)])

    penalties = jnp.array(config.penalties)
    return jnp.stack([jax.lax.map(partial(scores, 10 * n), penalties) for n in config.labels])


def supervised(
    lr: Array,
    count: Array,
    seed: Array,
    x: Array,
    labels: Array,
    fill: Array,
    *,
    config: Config,
) -> Dynamics:
    """Cross entropy on augmented views of labelled digits, `count` a class, from scratch."""
    own, rows = keys(seed), parts(seed, config=config)

    def loss(params: Params, drawn: tuple[Array, Array]) -> Array:
        return cross_entropy(CLASSIFIER.apply(params, drawn[0]), drawn[1])

    def batch(t: Array) -> tuple[Array, Array]:
        index_key = jax.random.fold_in(own.batches, t)
        index = rows.labelled[jax.random.randint(index_key, (config.batch // 2,), 0, 10 * count)]
        return views(jax.random.fold_in(own.views, t), x[index], VIEWS, fill=fill), labels[index]

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        return {
            name: accuracy(CLASSIFIER.apply(state.params, x[of]), labels[of])
            for name, of in (("validation", rows.validation), ("test", rows.test))
        }

    return descent(
        loss,
        optax.adam(lr),
        init=lambda: CLASSIFIER.init(own.init),
        observe=observe,
        batch=batch,
    )


def chosen(scores: xr.DataArray) -> xr.Dataset:
    """By count and seed, the choice that is best on validation, and its test accuracy.

    Scores have dims "count", "seed", "of" (validation, test), and those that are chosen among.
    """
    free = [dim for dim in scores.dims if dim not in ("count", "seed", "of")]
    by_choice = scores.transpose("count", "seed", "of", *free).values
    validation, test = np.moveaxis(by_choice.reshape(*by_choice.shape[:3], -1), 2, 0)
    best = validation.argmax(-1)
    accuracy = np.take_along_axis(test, best[..., None], -1)[..., 0]
    dims = ("count", "seed")
    return xr.Dataset({"choice": (dims, best), "accuracy": (dims, accuracy)})


def run(config: Config, store: Path) -> xr.Dataset:
    """Pretraining with its probes, supervised training, and then the choices.

    Raises:
        BadInput: labels that do not ascend or are more than there are; digits no multiple of ten;
            steps no multiple of four.
    """
    if [*config.labels] != sorted({*config.labels}) or not config.labels:
        raise BadInput(f"labels: {config.labels}; give one number or more, ascending")
    if not 1 <= config.labels[0] <= config.labels[-1] <= config.examples // 10:
        raise BadInput(f"labels: {config.labels}; give 1 to {config.examples // 10} a class")
    for name, by in (("examples", 10), ("tested", 10), ("steps", 4)):
        if (value := getattr(config, name)) > 0 and value % by:
            raise BadInput(f"{name}: {value}; give a multiple of {by}")
    train, others = mnist(config.examples, pool=2, test=VALIDATION + config.tested)
    shared = {
        "x": jnp.concatenate([train.x, others.x]),
        "labels": jnp.concatenate([train.labels, others.labels]),
        "fill": train.x.min(0),
    }
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    middle = config.temperatures[len(config.temperatures) // 2]
    pretrained = sweep(
        partial(pretraining, config=config),
        {("temperature", "paired"): [*((t, 1) for t in config.temperatures), (middle, 0)]}
        | {"seed": seeds},
        shared=shared,
        steps=config.steps,
        every=config.steps // 4,
        inspect_every=config.steps // 4,
        dims={"scores": ("layer", "count", "penalty", "of")},
        store=store / "pretraining",
    ).assign_coords(layer=[*LAYERS], count=[*config.labels])
    from_scratch = sweep(
        partial(supervised, config=config),
        {"lr": config.lrs, "count": config.labels, "seed": seeds},
        shared=shared,
        steps=config.supervised_steps,
        every=config.every,
        store=store / "supervised",
    )
    scores = pretrained.scores.rename(temperature_paired="point")
    read = scores.sel(layer=["hidden", "output"])
    begun = read.isel(point=0, step_rare=0)
    after = read.isel(step_rare=slice(1, None))
    candidates = {
        "pretrained": after.isel(point=slice(0, -1)),
        "supervised": from_scratch[["validation", "test"]].to_dataarray("of"),
        "random features": begun,
        "raw pixels": scores.sel(layer="pixels").isel(point=0, step_rare=0),
        "unpaired": after.isel(point=-1),
    }
    made = {name: chosen(each) for name, each in candidates.items()}
    diverged = [part.diverged_at.values.ravel() for part in (pretrained, from_scratch)]
    return xr.Dataset(
        {
            name: (("approach", "count", "seed"), np.stack([each[name] for each in made.values()]))
            for name in ("choice", "accuracy")
        }
        | {"diverged_at": ("run", np.concatenate(diverged))},
        {"approach": [*made], "count": [*config.labels], "seed": [*seeds]},
        pretrained.attrs,
    )


def claims(data: xr.Dataset) -> list[Claim]:
    """Against features that are not learned, and against supervision; tolerances came first."""
    by = partial(
        claim,
        estimator="test accuracy less that of the baseline, same labels and split",
        seeds="labelled digits, splits, initial weights, batches and views",
        source="Chen et al. 2020, arXiv 2002.05709, section 6; Newell and Deng 2020, arXiv "
        "2003.14323; here against fair baselines",
    )
    fixed = data.accuracy.sel(approach=["random features", "raw pixels"]).max("approach")
    scratch = data.accuracy.sel(approach="supervised")

    def gain(count: int, approach: str, baseline: xr.DataArray) -> np.ndarray:
        return (data.accuracy.sel(approach=approach) - baseline).sel(count=count).values

    def over_fixed(count: int, statement: str, control: Claim | None = None) -> Claim:
        return by(
            statement,
            gain(count, "pretrained", fixed),
            predicted=None,
            tolerance=(0.0, math.inf),
            why="any gain",
            control=control,
        )

    def unpaired(count: int, baseline: xr.DataArray, most: float = 0.02) -> Claim:
        return by(
            f"pretrained on pairs of different digits they {'do not' if most > 0 else 'are below'}",
            gain(count, "unpaired", baseline),
            predicted=None,
            tolerance=(-math.inf, most),
            why="two percent",
        )

    def over_supervised(count: int) -> Claim:
        values = gain(count, "pretrained", scratch)
        if count < 5:
            return by(
                f"{count} a class: they beat supervision with the same augmentations",
                values,
                predicted=None,
                tolerance=(0.0, math.inf),
                why="any gain",
                control=unpaired(count, scratch),
            )
        if count < 50:
            return by(
                f"{count} a class: they do NOT beat supervision with the same augmentations",
                values,
                predicted=None,
                tolerance=(-math.inf, 0.0),
                why="no gain",
                control=over_fixed(count, "over features that are not learned they do gain"),
            )
        return by(
            f"{count} a class: they are level with supervision with the same augmentations",
            values,
            predicted=0.0,
            tolerance=(-0.02, 0.02),
            why="two percent",
            control=unpaired(count, scratch, -0.02),
        )

    counts = data["count"].values.tolist()
    learned = "pretraining and a probe beat random features and raw pixels, the better of them"
    return [
        *(over_fixed(n, f"{n} a class: {learned}", unpaired(n, fixed)) for n in counts),
        *(over_supervised(n) for n in counts),
    ]


def tables(data: xr.Dataset) -> dict[str, dict[str, float]]:
    """Mean test accuracy by method and labels a class."""
    names = [f"{count} a class" for count in data["count"].values]
    means = data.accuracy.mean("seed")
    return {
        str(approach): dict(zip(names, means.sel(approach=approach).values.tolist(), strict=True))
        for approach in data.approach.values
    }


def figure(data: xr.Dataset) -> Figure:
    """Accuracy by labels; gain of pretraining over each other method."""
    counts = data["count"].values
    colours = dict(zip(data.approach.values, OKABE_ITO, strict=False))
    with paper_style("neurips", columns=2, ratio=0.7):
        result, (left, right) = plt.subplots(1, 2)
        for method, colour in colours.items():
            accuracy = data.accuracy.sel(approach=method)
            values = accuracy.transpose("seed", "count").values
            band_plot(left, counts, values, colour=colour, label=method)
            if method != "pretrained":
                gain = data.accuracy.sel(approach="pretrained") - accuracy
                values = gain.transpose("seed", "count").values
                band_plot(right, counts, values, colour=colour, label=method)
        theory_line(right, 0.0)
        for axes in (left, right):
            axes.set(xscale="log", xlabel="labelled digits a class")
            axes.set_xticks(counts, labels=[f"{n}" for n in counts])
            axes.minorticks_off()
        left.set(ylabel="test accuracy", ylim=(0, 1))
        left.legend(loc="lower right", fontsize="small")
        right.set(ylabel="gain of pretraining over each")
    return result


if __name__ == "__main__":
    main(__name__)
