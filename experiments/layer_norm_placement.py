"""Layer norm before each part lets the last gradient fall with depth, after each part it does not.

At init, random weights, one block a step (attention, then an MLP with GELU, width 128): gradient
of its output matrix. With norm before each part the stream's variance is 1 + 1.425 L,
and the gradient its inverse root: an exponent in depth of -1/2 in the limit. With norm after each
part it is the same at all depths; without norm the variance triples a block. All curves have closed
forms with nothing to fit (`lab.theory.layer_norm`). Sixteen tokens that attend to one another start
independent, cancel in attention's average, and grow alike with depth: variance grows faster than
linearly, the gradient falls more steeply. A gradient averaged over a batch falls less steeply
than each of its parts, since examples grow alike too: fit exponents to single examples.

Then the consequence: transformers of 6 blocks (and, as control, 1) on rows of digits, by Adam, with
the rate risen linearly in the first third of 150 steps or not. LARGEST STABLE RATE of a seed: where
the final training loss, from the best rate upwards, first passes half of log 10, interpolated in
log rate.

    python -m experiments.layer_norm_placement
    python -m experiments.layer_norm_placement paper    # writes figures/

Source: Xiong et al. 2020, arXiv 2002.04745, theorem 1 (ReLU, uniform attention; bounds), figure 2
(Adam on translation). Tolerances were set on seeds 100 and above.
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

from lab.claims import band, claim
from lab.data import minibatch, sklearn_digits
from lab.dynamics import descent
from lab.experiment import main
from lab.models import attention_blocks
from lab.objectives import cross_entropy
from lab.plotting import OKABE_ITO, band_plot, paper_style, theory_line
from lab.sweep import sweep
from lab.theory import layer_norm
from lab.types import BadInput, Claim, Dynamics, Model, Params

CASES: dict[str, tuple[str | None, str]] = {
    "none": (None, "one token"),
    "post": ("post", "one token"),
    "pre": ("pre", "one token"),
    "pre, tokens mix": ("pre", "mixing tokens"),
    "pre, batch": ("pre", "batch"),
}
LEVEL = math.log(10) / 2  # half the loss of knowing nothing
FIRST = 8  # blocks from which on exponents are fitted


@dataclass(frozen=True)
class Config:
    """Settings of the two sweeps."""

    depth: int = 64
    """Blocks, one a step, at init."""
    width: int = 128
    """Of a token there; the MLP's is twice that."""
    count: int = 16
    """Tokens that mix, and examples in a batch."""
    draws: int = 64
    """Seeds at init: weights, tokens and readout."""
    seeds: int = 6
    """Seeds of training: initial weights and batches."""
    first_seed: int = 0
    """The first of both."""
    layers: tuple[int, int] = (1, 6)
    """Blocks of the trained transformers: the control's, and the claims'."""
    train_width: int = 32
    """Of a token in it; the MLP's is twice that."""
    lrs: tuple[float, ...] = tuple(2.0**k for k in range(-9, -1))
    """Adam's rates."""
    warmup: int = 50
    """Steps in which the rate rises from 0."""
    steps: int = 150
    """Steps of training."""
    every: int = 50
    """Steps between two records of it."""
    batch: int = 16
    """Digits in a batch."""
    examples: int = 256
    """Digits to learn."""


PRESETS = {
    "quick": Config(
        depth=32,
        draws=16,
        seeds=3,
        layers=(1, 3),
        lrs=tuple(2.0**k for k in range(-7, -2)),
        steps=60,
        warmup=20,
        every=20,
        examples=128,
    ),
    "paper": Config(),
}


def deepening(seed: Array, *, case: tuple[str | None, str], config: Config) -> Dynamics:
    """Tokens going through blocks with random weights, one a step; the gradient of the last."""
    norm, setting = case
    model = attention_blocks(config.width, layers=1, hidden=2 * config.width, norm=norm)
    token_key, block_key, read_key = jax.random.split(jax.random.key(seed), 3)
    count = 1 if setting == "one token" else config.count
    shape = (count, 1, config.width) if setting == "batch" else (1, count, config.width)

    def init() -> Array:
        return jax.random.normal(token_key, shape)

    def step(x: Array, t: Array) -> Array:
        return model.apply(model.init(jax.random.fold_in(block_key, t)), x)

    def observe(x: Array, t: Array) -> dict[str, Array]:
        # One readout for a whole batch, one of its own for each token.
        readout = jax.random.normal(read_key, (1, *shape[1:]))

        def read(params: Params) -> Array:
            y = model.apply(params, x)
            return jnp.sum(readout * (y if norm is None else normed(y))) / count

        gradient = jax.grad(read)(model.init(jax.random.fold_in(block_key, t)))
        return {"gradient": jnp.log(jnp.linalg.norm(gradient["mlp_1"]["out"]["kernel"]))}

    return Dynamics(init, step, observe)


def normed(x: Array) -> Array:
    """Layer norm without gain or bias."""
    return jax.nn.standardize(x, epsilon=1e-6)


def classifier(norm: str, layers: int, config: Config) -> Model:
    """Digits [n, 8, 8], their rows as tokens, to logits [n, 10]; pre-norm ends in a norm too."""
    width = config.train_width
    blocks = attention_blocks(width, layers=layers, heads=4, hidden=2 * width, norm=norm)

    def init(key: Array) -> Params:
        block_key, *keys = jax.random.split(key, 4)
        shapes = {"embed": (8, width), "place": (8, width), "head": (width, 10)}
        normal = {
            name: jax.random.normal(key, shape) / math.sqrt(shape[0])
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return {"blocks": blocks.init(block_key), **normal}

    def apply(params: Params, rows: Array) -> Array:
        x = rows @ params["embed"] + params["place"][None]
        x = blocks.apply(params["blocks"], x)
        return (normed(x) if norm == "pre" else x).mean(1) @ params["head"]

    return Model(init, apply)


def training(
    lr: Array, warmup: Array, seed: Array, *, norm: str, layers: int, config: Config
) -> Dynamics:
    """Adam on rows of digits, its rate risen linearly within `warmup` steps."""
    digits = sklearn_digits(config.examples).train
    rows = digits.x.reshape(-1, 8, 8)
    model = classifier(norm, layers, config)
    init_key, batch_key = jax.random.split(jax.random.key(seed))

    def loss(params: Params, batch: tuple[Array, Array] = (rows, digits.labels)) -> Array:
        return cross_entropy(model.apply(params, batch[0]), batch[1])

    return descent(
        loss,
        optax.adam(lambda t: lr * jnp.minimum(1.0, (t + 1) / jnp.maximum(warmup, 1))),
        init=lambda: model.init(init_key),
        observe=lambda state, t: {"loss": loss(state.params)},
        batch=lambda t: minibatch(batch_key, t, (rows, digits.labels), size=config.batch),
    )


def run(config: Config, store: Path) -> xr.Dataset:
    """Gradients at init, by depth, against theory; losses of training, by rate and warm-up.

    Raises:
        BadInput: too few blocks for an exponent; fewer than three rates, or not ascending.
    """
    if config.depth < 2 * FIRST:
        raise BadInput(f"depth: {config.depth}; give {2 * FIRST} blocks or more")
    if len(config.lrs) < 3 or list(config.lrs) != sorted({*config.lrs}):
        raise BadInput(f"lrs: {config.lrs}; give three or more, ascending")
    trained = sweep(
        partial(training, config=config),
        {
            "lr": config.lrs,
            "warmup": [0, config.warmup],
            "seed": range(config.first_seed, config.first_seed + config.seeds),
        },
        static={"norm": ["pre", "post"], "layers": config.layers},
        steps=config.steps,
        every=config.every,
        store=store / "training",
    )
    drawn = sweep(
        partial(deepening, config=config),
        {"seed": range(config.first_seed, config.first_seed + config.draws)},
        static={"case": CASES},
        steps=config.depth - 1,
        every=1,
        store=store / "init",
    )
    theory = [
        layer_norm.last_gradient(
            config.depth,
            width=config.width,
            hidden=2 * config.width,
            norm=norm,
            count=1 if setting == "one token" else config.count,
            mixing=setting != "batch",
        )
        for norm, setting in CASES.values()
    ]
    at_init = drawn[["gradient"]].rename(seed="draw", step="depth")
    final = (
        trained.loss.rename(norm="placement").isel(step=slice(-2, None)).mean("step", skipna=False)
    )
    return (
        at_init.assign_coords(depth=at_init.depth + 1)
        .assign(
            theory=(("case", "depth"), np.log(theory)),
            final=final,
            stable=largest_stable(final),
            diverged_at=("run", trained.diverged_at.values.ravel()),
        )
        .assign_attrs(trained.attrs)
    )


def largest_stable(final: xr.DataArray) -> xr.DataArray:
    """log2 of the rate at which the final loss, from the best rate upwards, first passes LEVEL.

    Interpolated in log2 of the rate; NaN where no rate gets below, or the largest still does.
    """
    octaves = np.log2(final.lr.values)

    def crossing(losses: np.ndarray) -> float:
        losses = np.where(np.isfinite(losses), np.minimum(losses, 2 * LEVEL), 2 * LEVEL)
        best = int(losses.argmin())
        above = best + np.flatnonzero(losses[best:] > LEVEL)
        if losses[best] > LEVEL or not len(above):
            return math.nan
        i = above[0]
        return float(np.interp(LEVEL, losses[i - 1 : i + 1], octaves[i - 1 : i + 1]))

    return xr.apply_ufunc(crossing, final, input_core_dims=[["lr"]], vectorize=True)


def claims(data: xr.Dataset) -> list[Claim]:
    """At init, then in training; tolerances precede the paper preset."""
    return [*at_init(data), *in_training(data)]


def at_init(data: xr.Dataset) -> list[Claim]:
    """The last gradient by depth: exponents, scale, and what averages do to them."""
    depths = np.unique(np.geomspace(FIRST, data.depth.values[-1], 16).round().astype(int))
    curves = data[["gradient", "theory"]].sel(depth=depths)
    by = partial(claim, seeds="weights, tokens and readout")
    source = "Xiong et al. 2020, arXiv 2002.04745, theorem 1; lab.theory.layer_norm.last_gradient"

    def exponent(statement: str, case: str, *, within: float = 0.04, **words: Any) -> Claim:
        def slope(of: xr.DataArray) -> np.ndarray:
            values = of.sel(case=case).transpose("depth", ...).values
            return np.polyfit(np.log(depths), values, 1)[0]

        predicted = float(slope(curves.theory))
        return by(
            statement,
            slope(curves.gradient),
            predicted=predicted,
            tolerance=(predicted - within, predicted + within),
            source=source,
            estimator=f"slope of log gradient in log depth, {FIRST} blocks to {depths[-1]}",
            why="half of what tells 16 tokens that mix (0.04), or a batch (0.018), from one token",
            **words,
        )

    def scale(statement: str, case: str, **words: Any) -> Claim:
        off = data.gradient.sel(case=case) - data.theory.sel(case="pre")
        return by(
            statement,
            off.mean("depth").values,
            source=source,
            estimator="mean over depths of log (gradient / theory of pre-norm)",
            **words,
        )

    def growth(statement: str, case: str, **words: Any) -> Claim:
        shown = data.gradient.sel(case=case, depth=slice(FIRST, None)).transpose("depth", "draw")
        return by(
            statement,
            np.polyfit(shown.depth, shown.values, 1)[0],
            source=source + ": without norm the stream's variance triples a block",
            estimator=f"slope of log gradient in depth, from {FIRST} blocks on",
            why="a twentieth of the rate; logarithms of random factors lag by 1 / width",
            **words,
        )

    tripling = math.log(3) / 2
    post = exponent("post-norm: it stays", "post")
    alone = exponent("one token: -1/2 in the limit", "pre")
    return [
        exponent("pre-norm: the last gradient falls as the root of depth", "pre", control=post),
        scale(
            "pre-norm: it is theory's at all depths, with nothing fitted",
            "pre",
            predicted=0.0,
            tolerance=(-0.05, 0.05),
            why="corrections are a few times 1 / width, 1%, and seeds spread by 6%",
            control=scale(
                "post-norm's is larger",
                "post",
                predicted=None,
                tolerance=(0.5, math.inf),
                why="ten times the claim's tolerance",
            ),
        ),
        exponent(
            "pre-norm, tokens that mix: more steeply, as they grow alike",
            "pre, tokens mix",
            control=alone,
        ),
        exponent(
            "pre-norm, averaged over a batch: less steeply, a bias",
            "pre, batch",
            within=0.018,
            control=alone,
        ),
        growth(
            "without norm it grows as the root of 3 to the power of depth",
            "none",
            predicted=tripling,
            tolerance=(tripling - 0.03, tripling + 0.03),
            control=growth(
                "with pre-norm it does not grow", "pre", predicted=None, tolerance=(-0.1, 0.03)
            ),
        ),
    ]


def in_training(data: xr.Dataset) -> list[Claim]:
    """The largest stable rate, with warm-up and without; the control has one block."""
    none, some = data.warmup.values
    few, many = data.layers.values
    ahead = data.stable.sel(placement="pre") - data.stable.sel(placement="post")
    by = partial(
        claim,
        source="Xiong et al. 2020, arXiv 2002.04745, sections 3 and 4, figure 2",
        predicted=None,
        seeds="initial weights and batches",
    )

    def lead(statement: str, layers: int, **words: Any) -> Claim:
        return by(
            statement,
            ahead.sel(warmup=none, layers=layers).values,
            estimator="octaves from post-norm's largest stable rate to pre-norm's, no warm-up",
            why="an octave is the grid's step, half of it what interpolation may miss",
            **words,
        )

    def closing(statement: str, layers: int, **words: Any) -> Claim:
        return by(
            statement,
            (ahead.sel(warmup=none) - ahead.sel(warmup=some)).sel(layers=layers).values,
            estimator="octaves that warm-up adds for post-norm, less those for pre-norm",
            why="the paper says that it does, not by how much; half the grid's step for none",
            **words,
        )

    return [
        lead(
            "no warm-up: pre-norm stands more than twice the rate that post-norm does",
            many,
            tolerance=(1.0, math.inf),
            control=lead(f"with {few} block it does not", few, tolerance=(-0.5, 0.5)),
        ),
        closing(
            "warm-up raises post-norm's by more than pre-norm's",
            many,
            tolerance=(0.0, math.inf),
            control=closing(f"with {few} block it does not", few, tolerance=(-0.5, 0.5)),
        ),
    ]


def tables(data: xr.Dataset) -> dict[str, Any]:
    """log2 of the largest stable rate, mean over seeds."""
    return {
        f"{placement}-norm, {layers} blocks, warm-up {warmup}": float(
            data.stable.sel(placement=placement, layers=layers, warmup=warmup).mean("seed")
        )
        for placement in data.placement.values
        for layers in data.layers.values
        for warmup in data.warmup.values
    }


def figure(data: xr.Dataset) -> Figure:
    """Last gradient by depth, averages, and the largest stable rates; dashed: theory."""
    dashed = {"color": "0.3", "linestyle": (0, (4, 2)), "linewidth": 0.8, "zorder": 3}
    with paper_style("neurips", columns=3, ratio=1.0):
        result, (left, middle, right) = plt.subplots(1, 3)

        for axes, case, label, colour in (
            (left, "none", "no norm", OKABE_ITO[3]),
            (left, "post", "after", OKABE_ITO[1]),
            (left, "pre", "before", OKABE_ITO[0]),
            (middle, "pre, batch", "batch of 16", OKABE_ITO[4]),
            (middle, "pre", "one token", OKABE_ITO[0]),
            (middle, "pre, tokens mix", "16 that mix", OKABE_ITO[2]),
        ):
            at = data.sel(case=case)
            values = np.exp(at.gradient.transpose("draw", "depth").values)
            band_plot(axes, data.depth, values, colour=colour, label=label, log=True)
            axes.plot(data.depth, np.exp(at.theory), **dashed)
        for axes in (left, middle):
            axes.set(xscale="log", yscale="log", xlabel="depth (blocks)")
            ticks = [d for d in (1, 4, 16, 64) if d <= data.depth[-1]]
            axes.set_xticks(ticks, labels=[f"{d}" for d in ticks])
            axes.minorticks_off()
            axes.legend(fontsize="small", labelspacing=0.2, borderaxespad=0)
        middle.set_yticks([5, 10, 20, 50], labels=["5", "10", "20", "50"])
        left.set(ylabel="norm of the last gradient")
        after, before = (float(np.exp(data.theory.sel(case=c)[-1])) for c in ("post", "pre"))
        left.set_ylim(before / 2, 30 * after)  # Without norm it leaves for 1e17.
        for placement, colour in (("post", OKABE_ITO[1]), ("pre", OKABE_ITO[0])):
            for warmup, style in zip(data.warmup.values, ("-", "--"), strict=True):
                at = data.final.sel(placement=placement, warmup=warmup, layers=data.layers[-1])
                label = "warm-up" if warmup else "no warm-up"
                mean, low, high = band(at.transpose("seed", "lr").values)
                right.plot(
                    *(data.lr, mean, style),
                    color=colour,
                    marker="o",
                    ms=2,
                    label=label if placement == "pre" else None,
                )
                right.fill_between(data.lr, low, high, color=colour, alpha=0.2, linewidth=0)
        theory_line(right, LEVEL)
        right.set(xscale="log", xlabel="learning rate (Adam)", ylabel="final training loss")
        right.set_ylim(0, 3.6)
        right.legend(loc="upper left", fontsize="small", labelspacing=0.2, borderaxespad=0)
    return result


if __name__ == "__main__":
    main(__name__)
