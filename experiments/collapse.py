"""What keeps a network that predicts itself from collapsing: stop-gradient and predictor, both.

Linear (`lab.theory.collapse`): with views of noise s2 the encoder lives up to a weight decay of
1 / (4 + 4 s2), its predictor at the root p+, in the basin above p-, and comes to commute with the
outputs' correlation; without stop-gradient or without predictor all dies. Half of the directions
start in the basin, half outside of it.

MNIST (14 x 14, two of 16 views a step, hidden layers with batch norm, outputs without): SimSiam and
without each of its parts; a moving-average target (BYOL) at two rates; a predictor set from the
outputs' correlation (DirectPred); VICReg, and without each of two terms. Collapse shows in the
spread of outputs of unit length: 1 evenly over the sphere, 0 at one point. Nearest neighbours and
effective rank, blind to scale, do not tell collapsed from alive (without stop-gradient alone they
lose some), and batch norm on outputs hides it.

    python -m experiments.collapse          # quick: 1 minute
    python -m experiments.collapse paper    # 7 minutes, shared; writes figures/

Expect the linear values to 1e-4, spreads of 0.93 to 0.97 against 0.13, nearest neighbours and
effective rank of a collapsed network at 0.92 and 1.1 times SimSiam's; VICReg's outputs to deviate
by 1.05, without variance term by 0.04, and to fill 24 dimensions, without covariance term 3.6.

Sources: Tian, Chen and Ganguli 2021, arXiv 2102.06810 (linear theory, DirectPred); Chen and He
2021, arXiv 2011.10566; Grill et al. 2020, arXiv 2006.07733 (BYOL); Bardes, Ponce and LeCun 2022,
arXiv 2105.04906 (VICReg). DirectPred's correlation here is the batch's own, no average. All
measures are of 1,000 digits held out. Tolerances were set on seeds 100 and above.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import claim
from lab.data import Augmentation, mnist, pairs, several_views
from lab.dynamics import Bootstrap, bootstrap
from lab.experiment import main
from lab.measures.curves import border
from lab.measures.representation import effective_rank, knn_accuracy, spread
from lab.models import mlp
from lab.objectives import negative_cosine, unit, vicreg
from lab.plotting import OKABE_ITO, band_plot, paper_style, theory_line
from lab.sweep import sweep
from lab.theory import collapse as theory
from lab.types import BadInput, Claim, Dynamics, Params

TIAN = "Tian et al. 2021, arXiv 2102.06810, "
CHEN = "Chen and He 2021, arXiv 2011.10566, "
VIEWS = Augmentation(shift=0.5, noise=0.5)
RATE = 0.1  # of the linear process
AT = 0.75  # weight decay, in units of the critical one, at which the linear process is looked at
EARLY = 10  # alignment is looked at after this share of the linear process's steps


class Objective(NamedTuple):
    """What is minimised, in numbers: one compilation serves all."""

    stop_gradient: float = 1.0  # 1 holds the target fixed, 0 lets the gradient through
    trained: float = 1.0  # 1 with a trained predictor
    direct: float = 0.0  # 1 with one set from the correlation; neither is the identity
    average: float = 0.0  # of the target
    cosine: float = 1.0  # weights of the objective's terms, from here on
    invariance: float = 0.0
    variance: float = 0.0
    covariance: float = 0.0


VICREG = Objective(cosine=0.0, invariance=1 / 32, variance=1.0, covariance=1 / 25)
OBJECTIVES = {
    "SimSiam": Objective(),
    "no-stop-gradient": Objective(stop_gradient=0.0),
    "no-predictor": Objective(trained=0.0),
    "neither": Objective(stop_gradient=0.0, trained=0.0),
    "BYOL-0.9": Objective(average=0.9),
    "BYOL-0.99": Objective(average=0.99),
    "DirectPred": Objective(trained=0.0, direct=1.0),
    "VICReg": VICREG,
    "no-variance": VICREG._replace(variance=0.0),
    "no-covariance": VICREG._replace(covariance=0.0),
}
PARTS, LINEAR, OTHERS = [*OBJECTIVES][:4], [*OBJECTIVES][:6], [*OBJECTIVES][4:7]
ABLATED = PARTS[1:]
SOURCES = {
    "SimSiam": CHEN + "figure 2",
    "BYOL-0.9": "Grill et al. 2020, arXiv 2006.07733, section 3",
    "BYOL-0.99": "Grill et al. 2020, arXiv 2006.07733, section 3",
    "DirectPred": TIAN + "equation 18",
}
MEASURES = {
    "spread": "spread of outputs",
    "normed_spread": "spread after batch norm",
    "dimensions": "effective rank of outputs",
    "neighbours": "accuracy of nearest neighbours",
    "deviation": "standard deviation of outputs",
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweeps."""

    noise: float = 0.25
    """s2, the variance of a linear view's noise."""
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 0.97, 1.03, 1.1, 1.25)
    """Weight decay in units of the critical one, ascending, 0.75 among them."""
    starts: tuple[float, ...] = (0.8, 0.9, 0.97, 1.03, 1.1, 1.25)
    """Where the linear process starts to find its basin, p = w, in units of p-, ascending."""
    dimension: int = 8
    """Of the linear process, even."""
    linear_steps: int = 6_000
    """Its steps."""
    linear_every: int = 60
    """Steps between two of its records."""
    examples: int = 2_000
    """Digits to train on."""
    views: int = 16
    """Of each digit, of which a step takes two; 2 or more."""
    features: int = 32
    """Output dimensions."""
    hidden: int = 128
    """Width of hidden layers."""
    batch: int = 128
    """Digits in a batch, each in two views."""
    lr: float = 0.05
    """Rate of SGD with momentum 0.9."""
    weight_decay: float = 5e-4
    """Of all weights."""
    steps: int = 1_000
    """Minibatch steps."""
    every: int = 50
    """Steps between two records."""
    seeds: int = 6
    """First weights; on MNIST batches and views too."""
    first_seed: int = 0
    """The first of them."""


PRESETS = {"quick": Config(seeds=3, steps=400, every=40, hidden=64), "paper": Config()}


def linear(
    share: Array, case: Array, start: Array, seed: Array, *, mixed: float, config: Config
) -> Dynamics:
    """The linear process in expectation: W of two sizes in random directions, P near `start`."""
    on, d = Objective(*case), config.dimension
    decay = share * theory.critical_decay(config.noise)
    turn_key, predictor_key = jax.random.split(jax.random.key(seed))

    def init() -> Params:
        turn = jnp.linalg.qr(jax.random.normal(turn_key, (d, d)))[0]
        sizes = jnp.where(jnp.arange(d) < d // 2, 1.0, 0.1)
        other = mixed / math.sqrt(d) * jax.random.normal(predictor_key, (d, d))
        return {"W": start * turn * sizes[None], "P": start * (jnp.eye(d) + other)}

    def loss(params: Params, target: Params) -> Array:
        P = on.trained * params["P"] + (1 - on.trained) * jnp.eye(d)
        held = on.stop_gradient * target["W"] + (1 - on.stop_gradient) * params["W"]
        squares = jnp.sum(params["W"] ** 2) + jnp.sum(params["P"] ** 2)
        return theory.loss(params["W"], P, held, noise=config.noise) + decay / 2 * squares

    def observe(state: Bootstrap, t: Array) -> dict[str, Array]:
        W, P = state.params["W"], state.params["P"]
        w, p = (m / (jnp.linalg.norm(m) + 1e-30) for m in (W, P))
        f = w @ w.T
        return {
            "encoder": jnp.linalg.svd(W, compute_uv=False)[0],
            "predictor": jnp.linalg.eigvalsh((P + P.T) / 2)[-1],
            "apart": jnp.linalg.norm(p @ f - f @ p) / (jnp.linalg.norm(f) + 1e-30),
        }

    return bootstrap(loss, optax.sgd(RATE), init=init, average=on.average, observe=observe)


def standardised(h: Array) -> Array:
    """Batch norm without gain and bias."""
    centred = h - h.mean(0, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, 0, keepdims=True) + 1e-5)


def direct_predictor(rows: Array) -> Array:
    """DirectPred: `sqrt(s_j / s_1) + 0.1` for each eigenvalue s_j of the rows' correlation."""
    values, vectors = jnp.linalg.eigh(rows.T @ rows)
    sizes = jnp.sqrt(jnp.maximum(values, 0) / values[-1]) + 0.1
    return (vectors * sizes[None]) @ vectors.T


def learning(
    objective: Array,
    seed: Array,
    pool: Array,
    held_out: Array,
    labels: Array,
    *,
    config: Config,
) -> Dynamics:
    """An objective on minibatches of digits, in two of their views each."""
    on, d, hidden = Objective(*objective), config.features, config.hidden
    shape: dict[str, Any] = {"activation": lambda h: jax.nn.relu(standardised(h)), "gain": 2.0}
    encoder = mlp((pool.shape[-1], hidden, hidden, d), **shape)
    predictor = mlp((d, hidden // 2, d), **shape)
    encoder_key, predictor_key, batch_key = jax.random.split(jax.random.key(seed), 3)

    def init() -> Params:
        return {"encoder": encoder.init(encoder_key), "predictor": predictor.init(predictor_key)}

    def loss(params: Params, target: Params, pair: tuple[Array, Array]) -> Array:
        z = [encoder.apply(params["encoder"], view) for view in pair]
        held = [encoder.apply(target["encoder"], view) for view in pair]
        matrix = direct_predictor(unit(jax.lax.stop_gradient(jnp.concatenate(z))))
        same = 1 - on.trained - on.direct

        def guess(side: Array) -> Array:
            trained = predictor.apply(params["predictor"], side)
            return on.trained * trained + on.direct * side @ matrix + same * side

        aims = [
            on.stop_gradient * h + (1 - on.stop_gradient) * s for h, s in zip(held, z, strict=True)
        ]
        cosines = [
            negative_cosine(guess(side), aim, stop_gradient=False)
            for side, aim in zip(z, reversed(aims), strict=True)
        ]
        terms = vicreg(*z)
        return (
            on.cosine * (cosines[0] + cosines[1]) / 2
            + on.invariance * terms.invariance
            + on.variance * terms.variance
            + on.covariance * terms.covariance
        )

    def observe(state: Bootstrap, t: Array) -> dict[str, Array]:
        z = encoder.apply(state.params["encoder"], held_out)
        near, far = jnp.split(z, 2)
        return {
            "spread": spread(z),
            "normed_spread": spread(standardised(z)),
            "deviation": jnp.mean(jnp.std(z, axis=0)),
            "dimensions": effective_rank(z),
            "neighbours": knn_accuracy(near, labels[: len(near)], far, labels[len(near) :]),
        }

    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay), optax.sgd(config.lr, momentum=0.9)
    )
    return bootstrap(
        loss,
        optimizer,
        init=init,
        average=on.average,
        observe=observe,
        batch=lambda t: pairs(batch_key, t, pool, size=config.batch),
    )


def run(config: Config, store: Path) -> xr.Dataset:
    """MNIST by objective, then the linear process by weight decay and by start.

    Raises:
        BadInput: shares or starts that do not ascend, shares without 0.75, an odd dimension.
    """
    for name, values in (("shares", config.shares), ("starts", config.starts)):
        if list(values) != sorted(set(values)):
            raise BadInput(f"{name}: {values}; give them ascending")
    if config.views < 2:
        raise BadInput(f"views: {config.views}; give 2 or more")
    if AT not in config.shares:
        raise BadInput(f"shares: {config.shares}; {AT} should be among them")
    if config.dimension < 2 or config.dimension % 2:
        raise BadInput(f"dimension: {config.dimension}; give an even number, 2 or more")
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    train, test = mnist(config.examples, pool=2, test=1_000)
    made = partial(several_views, count=config.views, fill=train.x.min(0))
    pool = made(jax.random.key(0), train.x, VIEWS)
    numbers = {name: np.array(objective, np.float32) for name, objective in OBJECTIVES.items()}
    trained = sweep(
        partial(learning, config=config),
        {"objective": numbers, "seed": seeds},
        shared={
            "pool": pool,
            "held_out": test.x,
            "labels": test.labels,
        },
        steps=config.steps,
        every=config.every,
        store=store / "digits",
    )
    flow = partial(sweep, steps=config.linear_steps, every=config.linear_every)
    by_decay = flow(
        partial(linear, start=jnp.float32(1), mixed=0.3, config=config),
        {"share": config.shares, "case": {name: numbers[name] for name in LINEAR}, "seed": seeds},
        store=store / "decay",
    )
    edge = resting(AT, config.noise)[0]
    by_start = flow(
        partial(linear, case=jnp.array(Objective()), mixed=0.0, config=config),
        {"share": [AT / 3, AT], "start": [edge * s for s in config.starts], "seed": seeds},
        store=store / "start",
    )
    diverged = [part.diverged_at.values.ravel() for part in (trained, by_decay, by_start)]
    parts = [
        trained.drop_vars("diverged_at"),
        by_decay.drop_vars("diverged_at").rename(step="linear_step"),
        by_start.predictor.isel(step=-1, drop=True)
        .assign_coords(start=list(config.starts))
        .rename("from_start")
        .rename(share="basin_share"),
    ]
    data = xr.merge(parts, combine_attrs="drop").assign_attrs(trained.attrs, noise=config.noise)
    return data.assign(diverged_at=("run", np.concatenate(diverged)))


def resting(share: float, noise: float) -> tuple[float, float]:
    """(p-, p+) at this share of the critical weight decay."""
    low, high = theory.resting_points(share * theory.critical_decay(noise), noise)
    return float(low), float(high)


def edge(before: xr.DataArray, dim: str) -> np.ndarray:
    """Midway between the last value up to which all are `before` and the next, a seed each."""
    return border(before[dim].values, before.transpose("seed", dim).values)


def claims(data: xr.Dataset) -> list[Claim]:
    """The linear theory, then digits; tolerances precede the paper preset."""
    return [*of_theory(data), *of_digits(data)]


def of_theory(data: xr.Dataset) -> list[Claim]:
    """Resting point, critical decay, basin, alignment, and the two parts."""
    by = partial(claim, source=TIAN + "section 3; lab.theory.collapse", seeds="first weights")
    end = data.isel(linear_step=-1)
    low, high = resting(AT, data.attrs["noise"])
    alive, living = end.encoder > low / 2, data.from_start > low / 2
    early = data.apart.isel(linear_step=data.sizes["linear_step"] // EARLY).sel(share=AT)
    rest = partial(by, estimator="largest eigenvalue of the predictor at the end, in units of p+")
    decay = partial(by, estimator="midway between alive and dead, in units of the critical decay")
    basin = partial(by, estimator="start midway between dead and alive, in units of p-")
    apart = partial(
        by, estimator=f"|P F - F P| / (|P| |F|) after 1/{EARLY} of all steps, F = W W^T"
    )
    size = partial(by, estimator="largest singular value of the encoder at the end, in units of p+")
    dead = rest(
        "beyond the critical decay it dies",
        (end.predictor.sel(case="SimSiam").isel(share=-1) / high).values,
        predicted=0.0,
        tolerance=(-0.01, 0.01),
        why="an exponential decay",
    )
    return [
        rest(
            f"{case}: at {AT} of the critical weight decay the predictor rests at p+",
            (end.predictor.sel(case=case, share=AT) / high).values,
            predicted=1.0,
            tolerance=(0.999, 1.001),
            why="the end of a path that decays exponentially; a moving average does not shift it",
            control=dead,
        )
        for case in ("SimSiam", "BYOL-0.99")
    ] + [
        decay(
            "alive up to the critical weight decay, 1 / (4 + 4 s2)",
            edge(alive.sel(case="SimSiam"), "share"),
            predicted=1.0,
            tolerance=(0.96, 1.04),
            why="the grid's neighbours of 1 are 0.97 and 1.03",
            control=decay(
                "without stop-gradient dead at any that was tried",
                edge(alive.sel(case="no-stop-gradient"), "share"),
                predicted=None,
                tolerance=(0.0, 0.2),
                why="the smallest tried is 0.25",
            ),
        ),
        basin(
            "alive from p- on",
            edge(~living.sel(basin_share=AT), "start"),
            predicted=1.0,
            tolerance=(0.96, 1.04),
            why="the grid's neighbours of 1 are 0.97 and 1.03",
            control=basin(
                "at a third of the weight decay alive from all of those starts",
                edge(~living.isel(basin_share=0), "start"),
                predicted=None,
                tolerance=(0.0, 0.7),
                why="its own p- is a quarter as large, the smallest start 0.8",
            ),
        ),
        apart(
            "the predictor comes to commute with the outputs' correlation",
            early.sel(case="SimSiam").values,
            predicted=0.0,
            tolerance=(0.0, 1e-3),
            why="what is left decays exponentially",
            control=apart(
                "one that is not used does not",
                early.sel(case="no-predictor").values,
                predicted=None,
                tolerance=(0.03, math.inf),
                why="weight decay shrinks it and turns nothing; 30 times the band above",
            ),
        ),
        size(
            "with stop-gradient and predictor the encoder lives, as large as p+",
            (end.encoder.sel(case="SimSiam", share=AT) / high).values,
            predicted=1.0,
            tolerance=(0.99, 1.01),
            why="w² = p² at rest",
            control=size(
                "without either it dies (the largest of three)",
                (end.encoder.sel(case=ABLATED, share=AT).max("case") / high).values,
                predicted=0.0,
                tolerance=(-0.01, 0.01),
                why="an exponential decay",
            ),
        ),
    ]


def of_digits(data: xr.Dataset) -> list[Claim]:
    """Who stays spread over the sphere, what does not see a collapse, what VICReg's terms do."""
    end = data.isel(step=-1)
    by = partial(
        claim,
        predicted=None,
        why="nearly a factor of two lies between the claim's band and its control's",
        seeds="first weights, batches and views",
    )
    out = partial(by, estimator="sqrt(d) × mean standard deviation of unit outputs")
    collapsed = out(
        "without stop-gradient or predictor they collapse (the largest of three)",
        end.spread.sel(objective=ABLATED).max("objective").values,
        source=CHEN + "figure 2 and table 1",
        tolerance=(0.0, 0.35),
    )
    found = [
        out(
            f"{name}: outputs stay spread over the sphere",
            end.spread.sel(objective=name).values,
            source=source,
            tolerance=(0.7, 1.0),
            control=collapsed,
        )
        for name, source in SOURCES.items()
    ]
    measured = end[[*MEASURES]]
    lost = measured.sel(objective=ABLATED).max("objective") / measured.sel(objective="SimSiam")
    ratio = partial(
        by,
        source="shown here: these measures are blind to how large differences are",
        estimator="largest measure of the three that collapse over that of SimSiam",
    )
    seen = ratio("spread of outputs sees it", lost.spread.values, tolerance=(0.0, 0.5))
    for name in ("neighbours", "dimensions", "normed_spread"):
        words = f"{MEASURES[name]} does not see the collapse"
        found.append(ratio(words, lost[name].values, tolerance=(0.8, math.inf), control=seen))
    for missing, name, limit in (("variance", "deviation", 0.2), ("covariance", "dimensions", 8.0)):
        term = partial(
            by, estimator=MEASURES[name], source="Bardes et al. 2022, arXiv 2105.04906, section 4"
        )
        whole = term(
            f"with all terms it stays above {2 * limit:g}",
            end[name].sel(objective="VICReg").values,
            tolerance=(2 * limit, math.inf),
        )
        found.append(
            term(
                f"VICReg without {missing} term: {MEASURES[name]} falls below {limit:g}",
                end[name].sel(objective=f"no-{missing}").values,
                tolerance=(0.0, limit),
                control=whole,
            )
        )
    return found


def tables(data: xr.Dataset) -> dict[str, dict[str, float]]:
    """Means over seeds at the end, of each objective."""
    end = data.isel(step=-1).mean("seed")
    return {
        str(m): {n: float(end[n].sel(objective=m)) for n in MEASURES} for m in data.objective.values
    }


def figure(data: xr.Dataset) -> Figure:
    """Above the linear theory and spread over training, below what sees the collapse and what not.

    Dashed: theory, or an even spread.
    """
    dashed: dict[str, Any] = {"color": "0.3", "linestyle": (0, (4, 2)), "linewidth": 0.8}
    colours = dict(zip([*PARTS, *OTHERS], OKABE_ITO, strict=True))
    small: dict[str, Any] = {"fontsize": "x-small", "labelspacing": 0.2, "borderaxespad": 0.1}
    noise = data.attrs["noise"]
    with paper_style("neurips", rows=2, columns=3, ratio=0.85):
        result, ((rest, align, parts), (others, seen, terms)) = plt.subplots(2, 3)
        grid = jnp.linspace(0.01, 0.9999, 200)
        low, high = theory.resting_points(grid * theory.critical_decay(noise), noise)
        rest.plot([*grid, *grid[::-1]], [*high, *low[::-1]], **dashed)
        rest.plot([1.0, 1.3], [0, 0], **dashed)
        for case in PARTS:
            at = data.encoder.sel(case=case).isel(linear_step=-1).mean("seed")
            rest.plot(data.share, at, "o", ms=3, color=colours[case], label=case, clip_on=False)
        edge_of_basin = resting(AT, noise)[0]
        lived = (data.from_start.sel(basin_share=AT) > edge_of_basin / 2).mean("seed")
        for at in (lived[0], lived[-1]):
            marker = "^" if at > 0.5 else "v"
            rest.plot(AT, at.start * edge_of_basin, marker, ms=3, color="0.5")
        rest.text(0.04, 0.83, "$p_+$", fontsize="small")
        rest.text(0.4, 0.13, "$p_-$", fontsize="small")
        rest.set(xlabel="weight decay / critical", ylabel="encoder at rest", ylim=(-0.02, 1.0))
        early = data.apart.sel(share=AT).isel(
            linear_step=slice(0, data.sizes["linear_step"] // EARLY + 1)
        )
        for case in ("SimSiam", "no-predictor"):
            values = early.sel(case=case).transpose("seed", "linear_step").values
            band_plot(align, early.linear_step * RATE, values, colour=colours[case], log=True)
        align.set(yscale="log", xlabel="time, rate × step", ylabel=r"$|PF - FP|\,/\,|P||F|$")
        for panel, names in ((parts, PARTS), (others, [PARTS[0], *OTHERS])):
            for name in names:
                values = data.spread.sel(objective=name).transpose("seed", "step").values
                band_plot(panel, data.step, values, colour=colours[name], label=name)
            theory_line(panel, 1.0)
            panel.set(xlabel="step", ylabel="spread of outputs", ylim=(0, 1.05))
            panel.legend(loc="center right" if panel is parts else "lower right", **small)
        end = data.isel(step=-1)
        shown = {
            "spread": "spread",
            "normed_spread": "after\nnorm",
            "dimensions": "rank",
            "neighbours": "kNN",
        }
        for i, name in enumerate(shown):
            for j, objective in enumerate(PARTS):
                values = (
                    end[name].sel(objective=objective) / end[name].sel(objective="SimSiam").mean()
                )
                seen.plot(
                    i + 0.15 * (j - 1.5) + 0 * values, values, ".", ms=3, color=colours[objective]
                )
        theory_line(seen, 1.0)
        seen.set_xticks(range(len(shown)), labels=list(shown.values()))
        seen.set(ylabel="measure / SimSiam's", ylim=(0, None))
        for objective, colour in zip(
            ("VICReg", "no-variance", "no-covariance"), OKABE_ITO[4:], strict=True
        ):
            path = data[["deviation", "dimensions"]].sel(objective=objective).mean("seed")
            terms.plot(path.deviation, path.dimensions, color=colour, label=objective)
            last = end.sel(objective=objective)
            terms.plot(last.deviation, last.dimensions, ".", ms=4, color=colour)
        terms.set(
            xscale="log",
            xlabel="deviation of outputs",
            ylabel="effective rank",
            ylim=(0, None),
        )
        terms.legend(loc="lower left", **small)
    return result


if __name__ == "__main__":
    main(__name__)
