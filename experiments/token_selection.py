"""Gradient descent on an attention query selects tokens along the max-margin separator.

Sequences of random tokens, one query, softmax attention, scores held fixed: the token that scores 1
is relevant, the others score 0. Normalised gradient descent sends the query to infinity, attention
to the relevant token, and the query's direction to that of the smallest query that separates it
from the rest with margin 1, a quadratic programme solved exactly. Where the other tokens' scores
differ, the token selected may be another, locally optimal one; the direction is its separator's.

Attention saturates on the way, and the gradient as everybody writes it, s (γ - s · γ), cancels:
from then on normalised descent follows rounding. That of `lab.theory.token_selection` does not.

    python -m experiments.token_selection          # quick: a minute on two busy cores
    python -m experiments.token_selection paper    # 3 minutes on two busy cores; writes figures/

Expect a cosine to the separator above 0.999, short of 1 by the steps' power -2 (an angle of 1 over
the query's length), and attention 1.000 on the relevant token; with the naive gradient a cosine
that rises, then falls to 0.4.

Source: Tarzanagh, Li, Zhang and Oymak 2023, arXiv 2306.13596: theorem 1 (equal scores), theorem 3
(local). Tolerances were set on seeds from 100 on, which no preset uses.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import claim
from lab.data import Selection, token_selection
from lab.experiment import main
from lab.plotting import OKABE_ITO, band_plot, paper_style, theory_line
from lab.sweep import sweep
from lab.theory.token_selection import descent_direction, separator
from lab.types import Claim, Dynamics

x64 = True
SOURCE = "Tarzanagh et al. 2023, arXiv 2306.13596, "
CASES = ("equal", "unequal", "flipped")
GRADIENTS = ("exact", "naive")


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    sequences: int = 4
    """That one query attends to."""
    tokens: int = 6
    """In each."""
    dimension: int = 40
    """Of keys and query."""
    lr: float = 0.1
    """Length of a step: the gradient is normalised."""
    steps: int = 4_000
    """Steps."""
    every: int = 5
    """Steps between two records."""
    seeds: int = 32
    """Draws of the tokens, and of where the query starts."""
    first_seed: int = 0
    """The first of them."""


PRESETS = {"quick": Config(seeds=8), "paper": Config()}


def problem(seed: Array, case: str, config: Config) -> tuple[Selection, Array]:
    """Tokens, their scores negated where labels are flipped, and a small first query."""
    data_key, query_key = jax.random.split(jax.random.key(seed))
    drawn = token_selection(
        data_key,
        sequences=config.sequences,
        tokens=config.tokens,
        dimension=config.dimension,
        equal=case != "unequal",
    )
    sign = -1.0 if case == "flipped" else 1.0
    start = 0.01 * jax.random.normal(query_key, (config.dimension,), float)
    return drawn._replace(scores=sign * drawn.scores), start


def selecting(seed: Array, *, case: str, gradient: str, config: Config) -> Dynamics:
    """Normalised gradient descent on the query."""
    (keys, scores, _), start = problem(seed, case, config)

    def loss(query: Array) -> Array:
        return jnp.mean(jax.nn.softplus(-jnp.sum(jax.nn.softmax(keys @ query) * scores, -1)))

    def naive(query: Array) -> Array:
        slope = jax.grad(loss)(query)
        return -slope / jnp.maximum(jnp.linalg.norm(slope), jnp.finfo(slope.dtype).tiny)

    def step(query: Array, t: Array) -> Array:
        exact = gradient == "exact"
        return query + config.lr * (
            descent_direction(query, keys, scores) if exact else naive(query)
        )

    def observe(query: Array, t: Array) -> dict[str, Array]:
        weights = jax.nn.softmax(keys @ query)
        return {"direction": query, "attention": weights, "loss": loss(query)}

    return Dynamics(lambda: start, step, observe)


def run(config: Config, store: Path) -> xr.Dataset:
    """The sweep, and the cosines of its queries with the directions that theory knows."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    swept = partial(
        sweep,
        partial(selecting, config=config),
        {"seed": seeds},
        steps=config.steps,
        every=config.every,
        dims={"direction": ("d",), "attention": ("sequence", "token")},
    )
    data = swept(static={"case": CASES, "gradient": GRADIENTS}, store=store)
    return data.assign(xr.concat([directions(data, case, config) for case in CASES], "case"))


def directions(data: xr.Dataset, case: str, config: Config) -> xr.Dataset:
    """Of one case: cosines with the separators of relevant and of selected tokens, and others."""
    drawn, _ = jax.vmap(lambda seed: problem(seed, case, config))(data.seed.values)
    keys, relevant = np.asarray(drawn.keys), np.asarray(drawn.relevant)
    at = data.sel(case=case)
    selected = at.attention.isel(step=-1).argmax("token")
    rest = (keys.sum(2) - _taken(keys, relevant)) / (config.tokens - 1)
    known = {
        "relevant": [separator(k, r) for k, r in zip(keys, relevant, strict=True)],
        "wrong": [
            separator(k, (r + 1) % config.tokens) for k, r in zip(keys, relevant, strict=True)
        ],
        "means": list((_taken(keys, relevant) - rest).mean(1)),
    }
    cosines = {
        f"cosine_{name}": cosine(at.direction, xr.DataArray(np.stack(value), dims=("seed", "d")))
        for name, value in known.items()
    }
    of_selected = np.stack(
        [
            [separator(k, s) for k, s in zip(keys, selected.sel(gradient=g).values, strict=True)]
            for g in GRADIENTS
        ]
    )
    cosines["cosine_selected"] = cosine(
        at.direction, xr.DataArray(of_selected, dims=("gradient", "seed", "d"))
    )
    place = xr.DataArray(relevant, dims=("seed", "sequence"))
    on_relevant = at.attention.isel(token=place).mean("sequence")
    chose = (selected == place).mean("sequence")
    return xr.Dataset({**cosines, "on_relevant": on_relevant, "chose_relevant": chose})


def _taken(keys: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.take_along_axis(keys, tokens[..., None, None], axis=2)[:, :, 0]


def cosine(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    """Cosine of the angle between vectors along `d`."""
    return (a * b).sum("d") / np.sqrt((a**2).sum("d") * (b**2).sum("d"))


def claims(data: xr.Dataset) -> list[Claim]:
    """Direction, attention, local optima, the naive gradient; tolerances precede the paper run."""
    end = data.isel(step=-1)
    equal, unequal, flipped = (end.sel(case=c, gradient="exact") for c in CASES)
    by = partial(claim, seeds="tokens and the query's start")
    angle = partial(by, estimator="cosine of the last query and the direction", predicted=1.0)
    close = {"tolerance": (0.999, 1.001), "why": "error falls with |query|, here up to 400"}
    far = {"tolerance": (-1.0, 0.98), "why": "20 times the angle's error above", "predicted": None}
    global_, local = SOURCE + "theorem 1", SOURCE + "theorem 3"
    return [
        angle(
            "the query's direction goes to the relevant tokens' max-margin separator",
            equal.cosine_relevant.values,
            source=global_,
            **close,
            control=angle(
                "not to the difference between the relevant and the mean of the others",
                equal.cosine_means.values,
                source="the direction of the first step",
                **far,
            ),
        ),
        angle(
            "that is the separator of these tokens",
            equal.cosine_selected.values,
            source=global_,
            **close,
            control=angle(
                "not that of the tokens beside them",
                equal.cosine_wrong.values,
                source=global_,
                **far,
            ),
        ),
        by(
            "attention goes to the relevant tokens",
            equal.on_relevant.values,
            source=global_,
            predicted=1.0,
            estimator="mean attention on the relevant token at the end",
            tolerance=(0.999, 1.001),
            why="what is left falls exponentially with the query's length",
            control=by(
                "with flipped labels it leaves them",
                flipped.on_relevant.values,
                source="the same theorem, of the tokens that then score most",
                predicted=0.0,
                estimator="mean attention on the relevant token at the end",
                tolerance=(-0.01, 0.01),
                why="as above",
            ),
        ),
        angle(
            "other tokens' scores unequal: to the separator of the tokens selected",
            unequal.cosine_selected.values,
            source=local,
            **close,
            control=angle(
                "not that of the tokens beside the best",
                unequal.cosine_wrong.values,
                source=local,
                **far,
            ),
        ),
        by(
            "the angle left falls as 1 / |query|: what differs from the direction stays bounded",
            decay(data, "exact"),
            source="|query| grows with the steps; derived here",
            predicted=-2.0,
            estimator="slope of log(1 - cosine) in log step over the last decade",
            tolerance=(-2.2, -1.8),
            why="the offset itself still settles, as a logarithm",
            control=by(
                "with the naive gradient it does not fall",
                decay(data, "naive"),
                source="its rounding",
                predicted=None,
                estimator="slope of log(1 - cosine) in log step over the last decade",
                tolerance=(-0.5, math.inf),
                why="far from -2",
            ),
        ),
        by(
            "the naive gradient loses the direction once attention saturates",
            naive_loss(data).values,
            source="cancellation in s (γ - s · γ) when s is 1 to rounding; derived here",
            predicted=None,
            estimator="largest cosine on the way less the cosine at the end",
            tolerance=(0.05, math.inf),
            why="fifty times what the exact gradient may miss",
            control=by(
                "the exact one does not",
                naive_loss(data, "exact").values,
                source="the sum over pairs, in logarithms",
                predicted=0.0,
                estimator="largest cosine on the way less the cosine at the end",
                tolerance=(-1e-3, 1e-3),
                why="as the tolerance of the cosine",
            ),
        ),
    ]


def naive_loss(data: xr.Dataset, gradient: str = "naive") -> xr.DataArray:
    """How far the cosine to the separator has fallen from its height."""
    at = data.cosine_relevant.sel(case="equal", gradient=gradient)
    return at.max("step") - at.isel(step=-1)


def decay(data: xr.Dataset, gradient: str) -> np.ndarray:
    """Exponent of 1 - cosine in steps, equal scores, over the last decade of steps."""
    at = data.cosine_relevant.sel(case="equal", gradient=gradient)
    late = at.isel(step=data.step >= data.step[-1] / 10).transpose("step", "seed")
    return np.polyfit(np.log(late.step.values), np.log(1 - late.values), 1)[0]


def tables(data: xr.Dataset) -> dict[str, float]:
    """How often the token selected is that of the highest score."""
    end = data.isel(step=-1).sel(gradient="exact")
    return {
        f"{case}: share of sequences whose best token is selected": float(
            end.chose_relevant.sel(case=case).mean()
        )
        for case in CASES
    }


def figure(data: xr.Dataset) -> Figure:
    """Attention, and the angle to the separator: with both gradients, and with unequal scores."""
    steps = data.step.values[1:]
    with paper_style("neurips", columns=3, ratio=1.0):
        result, (left, middle, right) = plt.subplots(1, 3)
        for case, colour in zip(CASES, OKABE_ITO, strict=False):
            at = data.on_relevant.sel(case=case, gradient="exact")
            values = at.transpose("seed", "step").values
            band_plot(left, steps, values[:, 1:], colour=colour, label=case)
        for level in (0.0, 1.0):
            theory_line(left, level)
        for gradient, colour in zip(GRADIENTS, OKABE_ITO[3:], strict=False):
            at = data.cosine_relevant.sel(case="equal", gradient=gradient)
            off = 1 - at.transpose("seed", "step").values[:, 1:]
            band_plot(middle, steps, off, colour=colour, label=gradient, log=True)
        exact = 1 - data.cosine_relevant.sel(case="equal", gradient="exact").mean("seed").values
        half = len(steps) // 10
        middle.plot(
            steps[half:],
            exact[1:][half] * (steps[half:] / steps[half]) ** -2.0,
            color="0.3", linestyle=(0, (4, 2)), linewidth=0.8, zorder=3,
        )  # fmt: skip
        for name, label, colour in (
            ("cosine_selected", "of the selected", OKABE_ITO[1]),
            ("cosine_relevant", "of the best", OKABE_ITO[5]),
        ):
            at = data[name].sel(case="unequal", gradient="exact")
            off = 1 - at.transpose("seed", "step").values[:, 1:]
            band_plot(right, steps, off, colour=colour, label=label, log=True)
        left.set(xscale="log", xlabel="step", ylabel="attention on relevant token")
        left.legend(title="scores", loc="center right", fontsize="small")
        middle.set(xscale="log", yscale="log", xlabel="step", ylabel="1 - cosine to separator")
        middle.legend(title="gradient", loc="lower left")
        right.set(xscale="log", yscale="log", xlabel="step", ylabel="1 - cosine, unequal scores")
        right.legend(title="separator", loc="lower left")
    return result


if __name__ == "__main__":
    main(__name__)
