"""Stop-gradient and predictor, both, keep SimSiam, BYOL and DirectPred spread (Chen and He 2021).

MNIST (14 x 14, two of 16 views a step), hidden layers with batch norm, outputs without. SimSiam,
and without each of its parts; its target a moving average (BYOL, two rates), and that without
predictor; a predictor set from the batch's own correlation (DirectPred), and that with the gradient
through both sides. Collapse shows in the spread of outputs of unit length: 1 evenly over the
sphere, 0 at one point. Other measures do not depend on how large differences are; how blind they
are is judged by the missing part that they see best.

    python -m experiments simsiam_collapse          # quick: half a minute on two cores
    python -m experiments simsiam_collapse paper    # three minutes; writes figures/

Expect spreads of 0.94 to 0.97; without a part 0.14 (SimSiam), 0.15 and 0.27 (BYOL at 0.9 and 0.99,
which collapses more slowly) and 0.07 (DirectPred). That effective rank does not see a collapse
fails: without stop-gradient 0.59 of it is kept, though more than all without predictor. Nearest
neighbours keep 0.80 [0.77, 0.83] of an accuracy, which is inconclusive against 0.8; with noise of a
fifth of an output's length they keep 0.31. (Batch norm on outputs would hide it by construction.)

Sources: Chen and He, arXiv 2011.10566; Grill et al. 2020, arXiv 2006.07733 (BYOL); Tian, Chen and
Ganguli 2021, arXiv 2102.06810 (DirectPred). All measures are of 1,000 digits held out. Tolerances
were set on seeds 100 to 103, which no preset uses. More than 200 lines because ten objectives and
what five measures say of them are one sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, above, below
from lab.data import Augmentation, mnist, pairs, several_views
from lab.dynamics import Bootstrap, bootstrap
from lab.experiment import main, seeds
from lab.measures.representation import effective_rank, knn_accuracy, spread
from lab.models import batch_norm, mlp
from lab.objectives import negative_cosine, unit
from lab.plotting import STYLES, curve, key, panels, points, theory_line
from lab.sweep import sweep
from lab.types import BadInput, Dynamics, Params

VIEWS = Augmentation(shift=0.5, noise=0.5)
NOISE = 0.2  # A control's noise, in units of an output's length.


class Objective(NamedTuple):
    """What is minimised, in numbers: one compilation serves all."""

    held: float = 1.0  # 1 holds the target fixed, 0 lets the gradient through.
    trained: float = 1.0  # 1 with a trained predictor.
    direct: float = 0.0  # 1 with one set from the correlation; neither is the identity.
    average: float = 0.0  # Of the target.


OBJECTIVES = {
    "SimSiam": Objective(),
    "no stop-gradient": Objective(held=0.0),
    "no predictor": Objective(trained=0.0),
    "neither": Objective(held=0.0, trained=0.0),
    "BYOL 0.9": Objective(average=0.9),
    "BYOL 0.9, no predictor": Objective(trained=0.0, average=0.9),
    "BYOL 0.99": Objective(average=0.99),
    "BYOL 0.99, no predictor": Objective(trained=0.0, average=0.99),
    "DirectPred": Objective(trained=0.0, direct=1.0),
    "DirectPred, no stop-gradient": Objective(held=0.0, trained=0.0, direct=1.0),
}
SIMSIAM = [*OBJECTIVES][1:4]  # Without each of its parts.
WITHOUT = {
    "SimSiam": (SIMSIAM, "Chen and He 2021, arXiv 2011.10566"),
    "BYOL 0.9": (["BYOL 0.9, no predictor"], "Grill et al. 2020, arXiv 2006.07733"),
    "BYOL 0.99": (["BYOL 0.99, no predictor"], "Grill et al. 2020, arXiv 2006.07733"),
    "DirectPred": (["DirectPred, no stop-gradient"], "Tian et al. 2021, arXiv 2102.06810"),
}
BLIND = {  # Each measure, and the same of what it is blind to.
    "neighbours": ("accuracy of 5 nearest neighbours", "noisy_neighbours", "that of noisy outputs"),
    "dimensions": ("effective rank", "dimensions_about_zero", "that about zero"),
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    examples: int = 2_000  # Digits to train on.
    views: int = 16  # Views of each digit, of which a step takes two; 2 or more.
    features: int = 32  # Output dimensions.
    hidden: int = 128  # Width of hidden layers.
    batch: int = 128  # Digits in a batch, each in two views.
    lr: float = 0.05  # Rate of SGD with momentum 0.9.
    weight_decay: float = 5e-4  # Weight decay of all weights.
    steps: int = 1_000  # Minibatch steps.
    every: int = 50  # Steps between two records.
    seeds: int = 12  # How many first weights, each with its own batches and views.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses fewer than two views of a digit."""
        if self.views < 2:
            raise BadInput(f"views: {self.views}; give 2 or more")


PRESETS = {"quick": Config(seeds=6, hidden=64), "paper": Config()}


def direct_predictor(rows: Array) -> Array:
    """DirectPred: `sqrt(s_j / s_1) + 0.1` for each eigenvalue s_j of the rows' correlation."""
    values, vectors = jnp.linalg.eigh(rows.T @ rows)
    sizes = jnp.sqrt(jnp.maximum(values, 0) / values[-1]) + 0.1
    return (vectors * sizes[None]) @ vectors.T


def training(
    objective: Array, seed: Array, pool: Array, held_out: Array, labels: Array, *, config: Config
) -> Dynamics:
    """An objective on minibatches of digits, in two of their views each."""
    on, d, hidden = Objective(*objective), config.features, config.hidden
    normed = partial(mlp, activation=lambda h: jax.nn.relu(batch_norm(h)), gain=2.0)
    encoder, predictor = normed((pool.shape[-1], hidden, hidden, d)), normed((d, hidden // 2, d))
    keys = jax.random.split(jax.random.key(seed), 4)

    def init() -> Params:
        return {"encoder": encoder.init(keys[0]), "predictor": predictor.init(keys[1])}

    def loss(params: Params, target: Params, pair: tuple[Array, Array]) -> Array:
        z = [encoder.apply(params["encoder"], view) for view in pair]
        fixed = [encoder.apply(target["encoder"], view) for view in pair]
        matrix = direct_predictor(unit(jax.lax.stop_gradient(jnp.concatenate(z))))

        def guess(side: Array) -> Array:
            trained = on.trained * predictor.apply(params["predictor"], side)
            return trained + on.direct * side @ matrix + (1 - on.trained - on.direct) * side

        def apart(i: int) -> Array:
            aim = on.held * fixed[1 - i] + (1 - on.held) * z[1 - i]
            return negative_cosine(guess(z[i]), aim, stop_gradient=False)

        return (apart(0) + apart(1)) / 2

    def observe(state: Bootstrap, t: Array) -> dict[str, Array]:
        z = encoder.apply(state.params["encoder"], held_out)
        noisy = unit(z) + NOISE / jnp.sqrt(d) * jax.random.normal(keys[3], z.shape)

        def neighbours(z: Array) -> Array:
            (near, far), (known, asked) = jnp.split(z, 2), jnp.split(labels, 2)
            return knn_accuracy(near, known, far, asked)

        return {
            "spread": spread(z),
            "neighbours": neighbours(z),
            "noisy_neighbours": neighbours(noisy),
            "dimensions": effective_rank(z),
            "dimensions_about_zero": effective_rank(jnp.concatenate([z, -z])),
        }

    decayed = optax.add_decayed_weights(config.weight_decay)
    return bootstrap(
        loss,
        optax.chain(decayed, optax.sgd(config.lr, momentum=0.9)),
        init=init,
        average=on.average,
        observe=observe,
        batch=lambda t: pairs(keys[2], t, pool, size=config.batch),
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Every objective, whole and without its parts."""
    train, test = mnist(config.examples, pool=2, test=1_000)
    pool = several_views(jax.random.key(0), train.x, VIEWS, count=config.views, fill=train.x.min(0))
    numbers = {name: np.array(objective, np.float32) for name, objective in OBJECTIVES.items()}
    digits = sweep(
        partial(training, config=config),
        {"objective": numbers, "seed": seeds(config)},
        shared={"pool": pool, "held_out": test.x, "labels": test.labels},
        steps=config.steps,
        every=config.every,
        attrs={"seed": {"vary": "first weights, batches and views"}},
        store=store,
    )
    return {"digits": digits}


def expected(config: Config) -> dict[str, Expected]:
    """Who stays spread over the sphere, and what does not see a collapse."""
    by = partial(Expected, kind="direction", vary="first weights, batches and views")
    why = "nearly a factor of two lies between this and the control's band, or the claim's"
    found = {
        name: by(
            f"{name}: outputs stay spread over the sphere",
            above(0.7, why=why),
            Control(f"not so: {'; '.join(without)}", below(0.35, why=why)),
            source=source,
            estimator="sqrt(d) × mean standard deviation of unit outputs, the largest, at the end",
        )
        for name, (without, source) in WITHOUT.items()
    }
    for name, (words, _, sighted) in BLIND.items():
        found[name] = by(
            f"{words} does not see the collapse, whatever part is missing",
            above(0.8, why="four fifths are kept, where spread keeps a seventh"),
            Control(f"{sighted} does", below(0.5, why="less than half is kept")),
            source="shown here: it does not depend on how large differences are",
            estimator="measure without a part over SimSiam's, the smallest of three, at the end",
            scale="log",
        )
    return found


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Spread of each beside the largest of its ablations; measures where they see most."""
    end = data["digits"].isel(step=-1)
    kept = end.sel(objective=SIMSIAM).min("objective") / end.sel(objective="SimSiam")
    return {
        **{
            name: (
                end.spread.sel(objective=name),
                end.spread.sel(objective=without).max("objective"),
            )
            for name, (without, _) in WITHOUT.items()
        },
        **{name: (kept[name], kept[sighted]) for name, (_, sighted, _) in BLIND.items()},
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Spread over training, whole and without parts; what other measures keep without a part."""
    digits, styles = data["digits"], dict(zip(OBJECTIVES, STYLES[:4] + STYLES[:6], strict=True))
    names = [*OBJECTIVES]
    shown = (names[:4], names[4:8], names[8:])
    with panels(2, rows=2, ratio=0.6) as (result, (*grid, seen)):
        for axes, objectives in zip(grid, shown, strict=True):
            for name in objectives:
                label = name.removeprefix("DirectPred, ").replace("BYOL 0.9, ", "0.9, ")
                label = label.replace("BYOL 0.99, ", "0.99, ")
                curve(axes, digits.spread.sel(objective=name), label=label, **styles[name])
            theory_line(axes, 1.0, label="even")
            axes.set(xlabel="step", ylabel="spread of outputs", ylim=(0, 1.05))
        end = digits.isel(step=-1)
        both = [name for blind, (_, sighted, _) in BLIND.items() for name in (blind, sighted)]
        both.append("spread")
        kept = (end / end.sel(objective="SimSiam"))[both]
        for i, name in enumerate(SIMSIAM):
            at = kept.sel(objective=name, drop=True).to_dataarray("measure")
            at = at.assign_coords(measure=np.arange(5) + 0.2 * (i - 1)).drop_vars("step")
            points(seen, at, log=True, label=name, **{**styles[name], "linestyle": "none"})
        theory_line(seen, 1.0)
        words = ("kNN", "noisy\nkNN", "rank", "rank\nabout 0", "spread")
        seen.set_xticks(range(5), labels=words, fontsize="x-small")
        seen.set(ylabel="measure / SimSiam's", ylim=(0, None))
        for axes in (*grid, seen):
            key(axes, columns=2)
    return result


if __name__ == "__main__":
    main(__name__)
