"""Deep attention trains where a skip keeps its tokens apart.

Draft: never run; tolerances are guesses, to be set on seeds 100 and above.
"""

import itertools
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
from lab.dynamics import Descent, descent
from lab.experiment import main
from lab.measures.attention import rank_one_residual
from lab.models import attention_blocks
from lab.objectives import cross_entropy
from lab.plotting import OKABE_ITO, paper_style, theory_line
from lab.sweep import sweep
from lab.types import BadInput, Claim, Dynamics, Params

x64 = True
DONG = "Dong et al. 2021, arXiv 2103.03404, section 3"
PARTS = ("skip", "norm", "MLP")
VARIANTS = {
    " + ".join(p for p, there in zip(PARTS, chosen, strict=True) if there) or "attention": chosen
    for chosen in itertools.product((False, True), repeat=3)
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    layers: tuple[int, ...] = (1, 3, 8)
    """Blocks; claims are about the first and the last."""
    tokens: int = 8
    """Symbols, and tokens in a sequence: each once."""
    width: int = 16
    """Of a token; the MLP's is twice that."""
    lrs: tuple[float, ...] = (0.003, 0.01)
    """Adam's rates; the best for each run counts."""
    seeds: int = 8
    """Initial weights."""
    first_seed: int = 0
    """The first of them."""
    steps: int = 500
    """Steps of training."""
    every: int = 50
    """Steps between two records."""


PRESETS = {"quick": Config(layers=(1, 6), seeds=3, steps=300), "paper": Config()}


def training(
    lr: Array, seed: Array, *, variant: tuple[bool, bool, bool], layers: int, config: Config
) -> Dynamics:
    """Adam on the task of saying which symbol a token is, after `layers` blocks."""
    skip, norm, mlp = variant
    n, width = config.tokens, config.width
    blocks = attention_blocks(
        width,
        layers=layers,
        skip=skip,
        norm="pre" if norm else None,
        hidden=2 * width if mlp else None,
    )

    def init() -> Params:
        block_key, embed_key, head_key = jax.random.split(jax.random.key(seed), 3)
        return {
            "embed": jax.random.normal(embed_key, (n, width), float),
            "blocks": blocks.init(block_key),
            "head": jax.random.normal(head_key, (width, n), float) / math.sqrt(width),
        }

    def output(params: Params) -> Array:
        y = blocks.apply(params["blocks"], params["embed"])
        return jax.nn.standardize(y, epsilon=1e-6) if norm else y

    def loss(params: Params) -> Array:
        return cross_entropy(output(params) @ params["head"], jnp.arange(n))

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        return {
            "loss": loss(state.params),
            "residual": rank_one_residual(output(state.params)),
        }

    return descent(loss, optax.adam(lr), init=init, observe=observe)


def run(config: Config, store: Path) -> xr.Dataset:
    """Every combination of skip, norm and MLP, at every depth.

    Raises:
        BadInput: depths that are fewer than two, or not ascending; fewer than two tokens.
    """
    if len(config.layers) < 2 or list(config.layers) != sorted({*config.layers}):
        raise BadInput(f"layers: {config.layers}; give two depths or more, ascending")
    if config.tokens < 2:
        raise BadInput(f"tokens: {config.tokens}; give two or more")
    data = sweep(
        partial(training, config=config),
        {"lr": config.lrs, "seed": range(config.first_seed, config.first_seed + config.seeds)},
        static={"variant": VARIANTS, "layers": config.layers},
        steps=config.steps,
        every=config.every,
        store=store,
    )
    share = data.loss.isel(step=-1, drop=True) / math.log(config.tokens)
    best = share.fillna(np.inf).argmin("lr")
    end = data.residual.isel(step=-1, drop=True).isel(lr=best).drop_vars("lr")
    return data.assign(
        share=share.isel(lr=best).drop_vars("lr"),
        before=data.residual.isel(step=0, lr=0, drop=True),
        after=end,
    )


def claims(data: xr.Dataset) -> list[Claim]:
    """What trains and what does not; tolerances precede the paper preset."""
    shallow, deep = (int(data.layers[i]) for i in (0, -1))
    by = partial(claim, seeds="initial weights")

    def loss(statement: str, variant: str, layers: int, *, trains: bool, **words: Any) -> Claim:
        return by(
            statement,
            data.share.sel(variant=variant, layers=layers).values,
            predicted=0.0 if trains else 1.0,
            tolerance=(0.0, 0.1) if trains else (0.9, 1.01),
            source="log(tokens) is the least loss of outputs that are all alike; " + DONG,
            estimator="last loss over log(tokens), at the best rate",
            why="a tenth of the way between knowing nothing and knowing all",
            **words,
        )

    def residual(statement: str, variant: str, at: str, *, alike: bool, **words: Any) -> Claim:
        return by(
            statement,
            np.log10(data[at].sel(variant=variant, layers=deep).values),
            predicted=None,
            tolerance=(-math.inf, -6.0) if alike else (-1.0, 0.0),
            source=DONG,
            estimator=f"log10 of the outputs' rank-one residual {at} training",
            why="float32 would hold no more than 1e-7 of it" if alike else "a tenth is plenty",
            **words,
        )

    alone = loss(f"{deep} blocks of attention alone: no", "attention", deep, trains=False)
    return [
        loss(
            f"{deep} blocks of attention alone do not train",
            "attention",
            deep,
            trains=False,
            control=loss(f"{shallow} of them: they do", "attention", shallow, trains=True),
        ),
        loss("a skip alone restores training", "skip", deep, trains=True, control=alone),
        loss("all together train", "skip + norm + MLP", deep, trains=True, control=alone),
        residual(
            "attention alone: tokens are alike from the start",
            "attention",
            "before",
            alike=True,
            control=residual("with a skip they are not", "skip", "before", alike=False),
        ),
        residual(
            "attention alone: training does not part them",
            "attention",
            "after",
            alike=True,
            control=residual("with a skip they stay apart", "skip", "after", alike=False),
        ),
    ]


def figure(data: xr.Dataset) -> Figure:
    """Loss reached by depth, and the deepest networks' residual before and after training."""
    colours = dict(zip(("", "norm", "MLP", "norm + MLP"), OKABE_ITO, strict=False))
    with paper_style("neurips", columns=2, ratio=0.75):
        result, (left, right) = plt.subplots(1, 2)
        for row, name in enumerate(VARIANTS):
            skip = name.startswith("skip")
            colour = colours[name.removeprefix("skip").removeprefix(" + ").replace("attention", "")]
            style = {"color": colour, "marker": "o" if skip else "s", "ms": 3}
            mean, low, high = band(data.share.sel(variant=name).transpose("seed", "layers").values)
            left.errorbar(
                data.layers,
                mean,
                (mean - low, high - mean),
                linestyle="--" if skip else "-",
                label=name,
                **style,
            )
            for at, filled in (("before", False), ("after", True)):
                values = data[at].sel(variant=name).isel(layers=-1).values
                face = {} if filled else {"markerfacecolor": "white"}
                right.plot(values, np.full(len(values), row), linestyle="none", **style, **face)
        theory_line(left, 1.0)
        left.set(xscale="log", xlabel="blocks", ylabel="loss reached / log(tokens)")
        left.set_xticks(data.layers.values, labels=[f"{n:d}" for n in data.layers.values])
        left.minorticks_off()
        right.set(xscale="log", xlabel=f"rank-one residual, {int(data.layers[-1])} blocks")
        right.set_yticks(range(len(VARIANTS)), labels=[*VARIANTS])
        right.invert_yaxis()
    return result


if __name__ == "__main__":
    main(__name__)
