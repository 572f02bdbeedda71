"""Layer norm before each part lets the last gradient fall with depth, after each part it does not.

At init, random weights, one block a step (attention, then an MLP with GELU, width 128): gradient
of its output matrix. With norm before each part the stream's variance is 1 + 1.425 L,
and the gradient its inverse root: an exponent in depth of -1/2 in the limit. With norm after each
part it is the same at all depths; without norm the variance triples a block. All curves have closed
forms with nothing to fit (`lab.theory.layer_norm`). Sixteen tokens that attend to one another start
independent, cancel in attention's average, and grow alike with depth: variance grows faster than
linearly, the gradient falls more steeply. A gradient averaged over a batch falls less steeply
than each of its parts, since examples grow alike too: fit exponents to single examples.

Then the consequence: a transformer of 6 blocks on rows of digits (Adam, 300 steps), by rate, with
the rate risen linearly in the first 100 or not. LARGEST STABLE RATE of a seed: where the final
training loss, from the best rate upwards, first passes half of log 10, interpolated in log rate.

    python -m experiments.layer_norm_placement          # quick
    python -m experiments.layer_norm_placement paper    # writes figures/

Source: Xiong et al. 2020, arXiv 2002.04745, theorem 1 (ReLU, uniform attention; bounds), figure 2.
Draft: never run; tolerances are guesses, to be set on
seeds 100 and above; the claims about training are missing.
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
from lab.data import minibatch, sklearn_digits
from lab.dynamics import descent
from lab.experiment import main
from lab.models import attention_blocks
from lab.objectives import cross_entropy
from lab.plotting import OKABE_ITO, band_plot, paper_style, theory_line
from lab.sweep import sweep
from lab.theory import layer_norm
from lab.types import BadInput, Claim, Dynamics, Model, Params

NORMS = {"pre": "pre", "post": "post", "none": None}
SETTINGS = ("one token", "mixing tokens", "batch")
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
    draws: int = 32
    """Seeds at init: weights, tokens and readout."""
    seeds: int = 8
    """Seeds of training: initial weights and batches."""
    first_seed: int = 0
    """The first of both."""
    layers: int = 6
    """Blocks of the trained transformer."""
    train_width: int = 32
    """Of a token in it; the MLP's is twice that."""
    lrs: tuple[float, ...] = tuple(2.0**k for k in range(-11, -2))
    """Adam's rates."""
    warmup: int = 100
    """Steps in which the rate rises from 0."""
    steps: int = 300
    """Steps of training."""
    every: int = 50
    """Steps between two records of it."""
    batch: int = 32
    """Digits in a batch."""
    examples: int = 512
    """Digits to learn."""


PRESETS = {"quick": Config(draws=8, seeds=3), "paper": Config()}


def deepening(seed: Array, *, norm: str | None, setting: str, config: Config) -> Dynamics:
    """Tokens going through blocks with random weights, one a step; the gradient of the last."""
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

        def read(params: Params) -> tuple[Array, Array]:
            y = model.apply(params, x)
            return jnp.sum(readout * (y if norm is None else normed(y))) / count, y

        gradient, y = jax.grad(read, has_aux=True)(model.init(jax.random.fold_in(block_key, t)))
        return {
            "gradient": jnp.log(jnp.linalg.norm(gradient["mlp_1"]["out"]["kernel"])),
            "variance": jnp.log(jnp.mean(y**2)),
        }

    return Dynamics(init, step, observe)


def normed(x: Array) -> Array:
    """Layer norm without gain or bias."""
    return jax.nn.standardize(x, epsilon=1e-6)


def classifier(norm: str, config: Config) -> Model:
    """Digits [n, 8, 8], their rows as tokens, to logits [n, 10]; pre-norm ends in a norm too."""
    width = config.train_width
    blocks = attention_blocks(width, layers=config.layers, heads=4, hidden=2 * width, norm=norm)

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


def training(lr: Array, warmup: Array, seed: Array, *, norm: str, config: Config) -> Dynamics:
    """Adam on rows of digits, its rate risen linearly within `warmup` steps."""
    digits = sklearn_digits(config.examples).train
    rows = digits.x.reshape(-1, 8, 8)
    model = classifier(norm, config)
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
        static={"norm": ["pre", "post"]},
        steps=config.steps,
        every=config.every,
        store=store / "training",
    )
    drawn = sweep(
        partial(deepening, config=config),
        {"seed": range(config.first_seed, config.first_seed + config.draws)},
        static={"norm": NORMS, "setting": SETTINGS},
        steps=config.depth - 1,
        every=1,
        store=store / "init",
    )
    theory = [
        [
            layer_norm.last_gradient(
                config.depth,
                width=config.width,
                hidden=2 * config.width,
                norm=norm,
                count=1 if setting == "one token" else config.count,
                mixing=setting != "batch",
            )
            for setting in SETTINGS
        ]
        for norm in NORMS.values()
    ]
    at_init = drawn[["gradient"]].rename(seed="draw", step="depth")
    final = trained.loss.rename(norm="placement").isel(step=slice(-2, None)).mean("step")
    return (
        at_init.assign_coords(depth=at_init.depth + 1)
        .assign(
            theory=(("norm", "setting", "depth"), np.log(theory)),
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

    def exponent(statement: str, norm: str, setting: str = "one token", **words: Any) -> Claim:
        def slope(of: xr.DataArray) -> np.ndarray:
            values = of.sel(norm=norm, setting=setting).transpose("depth", ...).values
            return np.polyfit(np.log(depths), values, 1)[0]

        predicted = float(slope(curves.theory))
        return by(
            statement,
            slope(curves.gradient),
            predicted=predicted,
            tolerance=(predicted - 0.03, predicted + 0.03),
            source=source,
            estimator=f"slope of log gradient in log depth, {FIRST} blocks to {depths[-1]}",
            why="a third of what tells one token from 16",
            **words,
        )

    def scale(statement: str, norm: str, **words: Any) -> Claim:
        off = data.gradient.sel(norm=norm) - data.theory.sel(norm="pre")
        return by(
            statement,
            off.sel(setting="one token").mean("depth").values,
            source=source,
            estimator="mean over depths of log (gradient / theory of pre-norm)",
            **words,
        )

    def growth(statement: str, norm: str, **words: Any) -> Claim:
        shown = data.gradient.sel(norm=norm, setting="one token", depth=slice(FIRST, None))
        rate = np.polyfit(shown.depth, shown.transpose("depth", "draw").values, 1)[0]
        return by(
            statement,
            rate,
            source=source + ": without norm the stream's variance triples a block",
            estimator=f"slope of log gradient in depth, from {FIRST} blocks on",
            why="a twentieth of the rate; logarithms of random factors lag by 1 / width",
            **words,
        )

    post = exponent("post-norm: it stays", "post")
    alone = exponent("pre-norm, one token: exponent -1/2 in the limit", "pre")
    return [
        exponent("pre-norm: the last gradient falls as the root of depth", "pre", control=post),
        scale(
            "pre-norm: so does theory's whole curve, with nothing fitted",
            "pre",
            predicted=0.0,
            tolerance=(-0.05, 0.05),
            why="corrections are of the order of 1 / width and spread of 6% over seeds",
            control=scale(
                "post-norm's is another",
                "post",
                predicted=None,
                tolerance=(0.5, math.inf),
                why="ten times the claim's tolerance",
            ),
        ),
        exponent(
            "pre-norm, tokens that mix: more steeply, as they grow alike",
            "pre",
            "mixing tokens",
            control=alone,
        ),
        exponent(
            "pre-norm, averaged over a batch: less steeply, a bias", "pre", "batch", control=alone
        ),
        growth(
            "without norm it grows as the root of 3 to the power of depth",
            "none",
            predicted=math.log(3) / 2,
            tolerance=(math.log(3) / 2 - 0.03, math.log(3) / 2 + 0.03),
            control=growth(
                "with pre-norm it does not grow", "pre", predicted=None, tolerance=(-0.1, 0.03)
            ),
        ),
    ]


def in_training(data: xr.Dataset) -> list[Claim]:
    """The largest stable rate, with warm-up and without."""
    none, some = data.warmup.values
    stable = data.stable
    by = partial(
        claim,
        source="Xiong et al. 2020, arXiv 2002.04745, section 3.4 and figure 2",
        predicted=None,
        seeds="initial weights and batches",
    )
    gained = stable.sel(warmup=some) - stable.sel(warmup=none)

    def gains(statement: str, placement: str, **words: Any) -> Claim:
        return by(
            statement,
            gained.sel(placement=placement).values,
            estimator="octaves between largest stable rates with and without warm-up",
            **words,
        )

    def ahead(statement: str, warmup: int, **words: Any) -> Claim:
        return by(
            statement,
            (stable.sel(placement="pre") - stable.sel(placement="post")).sel(warmup=warmup).values,
            estimator="octaves between largest stable rates of pre-norm and post-norm",
            **words,
        )

    return []


def figure(data: xr.Dataset) -> Figure:
    """Last gradient by depth, averages, and the largest stable rates; dashed: theory."""
    dashed = {"color": "0.3", "linestyle": (0, (4, 2)), "linewidth": 0.8, "zorder": 3}
    with paper_style("neurips", columns=3, ratio=1.0):
        result, (left, middle, right) = plt.subplots(1, 3)

        def curve(axes: Any, norm: str, setting: str, colour: str, label: str) -> None:
            at = data.sel(norm=norm, setting=setting)
            values = np.exp(at.gradient.transpose("draw", "depth").values)
            band_plot(axes, data.depth, values, colour=colour, label=label, log=True)
            axes.plot(data.depth, np.exp(at.theory), **dashed)

        for norm, label, colour in (
            ("none", "no norm", OKABE_ITO[3]),
            ("post", "after", OKABE_ITO[1]),
            ("pre", "before", OKABE_ITO[0]),
        ):
            curve(left, norm, "one token", colour, label)
        for setting, label, colour in (
            ("one token", "one token", OKABE_ITO[0]),
            ("mixing tokens", "tokens that mix", OKABE_ITO[2]),
            ("batch", "batch", OKABE_ITO[4]),
        ):
            curve(middle, "pre", setting, colour, label)
        for axes in (left, middle):
            axes.set(xscale="log", yscale="log", xlabel="depth (blocks)")
            ticks = [d for d in (1, 4, 16, 64) if d <= data.depth[-1]]
            axes.set_xticks(ticks, labels=[f"{d}" for d in ticks])
            axes.minorticks_off()
            axes.legend(fontsize="small", labelspacing=0.2, borderaxespad=0)
        left.set(ylabel="norm of the last gradient")
        for placement, colour in (("post", OKABE_ITO[1]), ("pre", OKABE_ITO[0])):
            for warmup, style in zip(data.warmup.values, ("-", "--"), strict=True):
                at = data.final.sel(placement=placement, warmup=warmup)
                label = f"{placement}, " + ("warm-up" if warmup else "none")
                right.plot(
                    data.lr, at.mean("seed"), style, color=colour, marker="o", ms=2, label=label
                )
        theory_line(right, LEVEL)
        right.set(xscale="log", xlabel="learning rate (Adam)", ylabel="final training loss")
        right.legend(fontsize="small", labelspacing=0.2, borderaxespad=0)
    return result


if __name__ == "__main__":
    main(__name__)
