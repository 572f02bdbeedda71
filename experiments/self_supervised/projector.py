"""Views cost a contrastive encoder dimensions; a projector saves some of them (Jing et al. 2022).

NT-Xent (temperature 0.2) on two views of MNIST digits (14 x 14): encoder 196-256-64, trained by its
own output or behind a projector 64-64-64 that is thrown away. Views are none (both are the digit
itself), usual, or strong. Dimensions: effective rank of the encoder's output on digits held out.
Jing et al.: contrast collapses dimensions in which views vary more than digits, and a projector
takes that upon itself. So with no views to agree on there is nothing to save (the control). They
also find that stronger augmentation collapses more, which is claimed as they have it, and fails. A
linear probe on 500 labels reads the layer (hidden or output), at the penalty, that validation
chooses, for every method alike: trained encoders, the network at init (random), raw pixels.
Expect effective ranks (without, with) of 62, 51 (none), 32, 41 (usual), 39, 44 (strong); a probe 2
percent above random features, which are 4 above raw pixels, and no more with than without.

    python -m experiments projector          # quick: 45 seconds on two cores
    python -m experiments projector paper    # three busy minutes; writes figures/

Sources: Jing et al. 2022, arXiv 2110.09348; Chen et al. 2020, arXiv 2002.05709."""

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

from lab.claims import Control, Expected, Measured, above, below
from lab.data import Augmentation, mnist
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures.choice import chosen
from lab.measures.representation import Labelled, effective_rank, ridge_scores
from lab.models import mlp
from lab.plotting import STYLES, curve, key, panels, points, theory_line
from lab.sweep import sweep
from lab.tasks import contrast
from lab.types import BadInput, Dynamics

VIEWS = {
    "none": Augmentation(),
    "usual": Augmentation(shift=2.0, rotation=0.3, stretch=0.15, elastic=0.5, noise=0.2),
    "strong": Augmentation(shift=3.0, rotation=0.6, stretch=0.3, elastic=1.0, noise=1.0, erase=0.4),
}
ENCODER = mlp((196, 256, 64), activation="relu", gain=2.0)
HEAD = mlp((64, 64, 64), activation="relu", gain=2.0)
PENALTIES = (1e-3, 1e-2, 1e-1, 0.3, 1.0)  # Of ridge probes, on features of mean square 1.
LEARNED = ["hidden", "output"]  # Layers that a probe may read, beside pixels.
JING = "Jing et al. 2022, arXiv 2110.09348"


@dataclass(frozen=True)
class Config:
    """Settings of the sweep; fewer than ten labels are refused."""

    temperature: float = 0.2  # Of the loss.
    batch: int = 64  # Digits in a batch, each in two views.
    lr: float = 1e-3  # Adam's rate.
    labels: int = 500  # Labelled digits that probes are fitted to, and as many to choose by.
    tested: int = 1_000  # Digits that probes are tested on.
    examples: int = 3_000  # Digits to train on, without labels.
    steps: int = 600  # Minibatch steps.
    seeds: int = 12  # How many weights, orders of batches, views, and splits of the labelled.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        if self.labels < 10:
            raise BadInput(f"labels: {self.labels}; give 10 or more")


PRESETS = {"quick": Config(seeds=10), "paper": Config()}


def learning(
    views: Array,
    behind: Array,
    seed: Array,
    x: Array,
    held: Array,
    labels: Array,
    *,
    config: Config,
) -> Dynamics:
    """Contrastive learning on the views of that index, with a projector or without."""
    own_key, split_key = jax.random.split(jax.random.key(seed))
    how = Augmentation(*(jnp.array(each)[views] for each in zip(*VIEWS.values(), strict=True)))
    sizes: Any = {"size": config.batch, "temperature": config.temperature, "fill": x.min(0)}
    task = contrast(ENCODER, HEAD, own_key, x, how=how, projector=behind == 1, **sizes)
    order = jax.random.permutation(split_key, len(held))
    rows = jnp.split(order, (config.labels, 2 * config.labels))

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        hidden, output = ENCODER.apply(state.params["encoder"], held, preactivations=True)
        scores = [
            ridge_scores(*(Labelled(z[i], labels[i]) for i in rows), penalties=jnp.array(PENALTIES))
            for z in (held, jax.nn.relu(hidden), output)
        ]
        return {"scores": jnp.stack(scores), "dimensions": effective_rank(output)}

    adam = optax.adam(config.lr)
    return descent(task.loss, adam, init=task.init, observe=observe, batch=task.batch)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """All views, with and without projector; the probes' choices."""
    train, test = mnist(config.examples, pool=2, test=2 * config.labels + config.tested)
    data = sweep(
        partial(learning, config=config),
        {"views": [*range(len(VIEWS))], "behind": [0, 1], "seed": seeds(config)},
        shared={"x": train.x, "held": test.x, "labels": test.labels},
        steps=config.steps,
        every=config.steps,
        dims={"scores": ("layer", "penalty", "of")},
        store=store,
    ).assign_coords(views=[*VIEWS], behind=["without", "with"])
    scores = data.scores.assign_coords(layer=["pixels", *LEARNED])
    read, begun = scores.sel(layer=LEARNED), scores.isel(views=0, behind=0, step=0)
    found = {
        "probe": chosen(read.isel(step=-1), "views", "behind", "seed").accuracy.variable,
        "random": chosen(begun.sel(layer=LEARNED), "seed").accuracy.variable,
        "pixels": chosen(begun.sel(layer=["pixels"]), "seed").accuracy.variable,
        "not_learned": chosen(begun, "seed").accuracy.variable,
    }
    return {"views": data.drop_vars("scores").assign(found)}


def expected(config: Config) -> dict[str, Expected]:
    """What views cost, and what a projector saves."""
    by = partial(Expected, kind="direction", vary="weights, batches, views, labelled digits")
    return {
        views: by(
            f"under {views} views the encoder keeps more dimensions behind a projector",
            above(1.05, why="by a twentieth at least"),
            Control("it does not with no views to agree on", below(1.05, why="as above")),
            source=JING,
            estimator="effective rank of the encoder's output, with projector over without",
            scale="log",
        )
        for views in ("usual", "strong")
    } | {
        "stronger": by(
            "without projector, stronger views cost more dimensions",
            below(0.95, why="by a twentieth at least"),
            Control("behind a projector they do not", above(0.95, why="as for the claim")),
            source=f"{JING}: strong augmentation causes collapse",
            estimator="effective rank of the encoder's output, strong views over usual ones",
            scale="log",
        ),
        "probe": by(
            "behind a projector a probe reads more than from random features or raw pixels",
            above(0.008, why="half of the gain on other seeds: 8 digits of 1,000"),
            Control("not where there are no views to agree on", below(0.008, why="as above")),
            source="Chen et al. 2020, arXiv 2002.05709, linear evaluation",
            estimator="test accuracy less that of those, each chosen on validation",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """By views, with and without."""
    end = data["views"].isel(step=-1)
    gain = end.probe.sel(behind="with") - end.not_learned
    saved = end.dimensions.sel(behind="with") / end.dimensions.sel(behind="without")
    cost = end.dimensions.sel(views="strong") / end.dimensions.sel(views="usual")
    return {
        "usual": (saved.sel(views="usual"), saved.sel(views="none")),
        "strong": (saved.sel(views="strong"), saved.sel(views="none")),
        "stronger": (cost.sel(behind="without"), cost.sel(behind="with")),
        "probe": (gain.sel(views="usual"), gain.sel(views="none")),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Dimensions, and what a probe reads, by views, with projector and without."""
    end = data["views"].isel(step=-1)
    with panels(2, ratio=0.75) as (result, (left, right)):
        for shift, which, style in zip((-0.08, 0.08), ("without", "with"), STYLES, strict=False):
            at = end.sel(behind=which).assign_coords(views=np.arange(len(VIEWS)) + shift)
            points(left, at.dimensions, label=which, **{**style, "linestyle": "none"})
            points(right, at.probe - end.random, label=which, **{**style, "linestyle": "none"})
        theory_line(left, float(data["views"].dimensions.isel(step=0).mean()), label="at init")
        pixels = (end.pixels - end.random).expand_dims(views=[-0.3, len(VIEWS) - 0.7])
        curve(right, pixels, label="raw pixels", **STYLES[2])
        theory_line(right, 0.0)
        for axes in (left, right):
            axes.set(xlabel="views", xticks=range(len(VIEWS)), xticklabels=[*VIEWS])
        left.set(ylabel="effective rank of the encoder", ylim=(0, None))
        right.set(ylabel="accuracy over random features")
        key(left, columns=3, title="projector")
        key(right, columns=3, title="projector (level: random features)")
    return result


if __name__ == "__main__":
    main(__name__)
