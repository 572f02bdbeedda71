"""Deep attention trains where a skip keeps its tokens apart.

Eight tokens, each another symbol, go through blocks of softmax attention; each is to say which
symbol it was (Adam, full batch, the better of two rates). Outputs that are all alike cannot get
below log 8: the share of it that is left says whether a network trains. Without skips random blocks
make tokens alike (`experiments/rank_collapse.py`), and the gradients that could part them are of
the order of the residual, far below Adam's epsilon. Which of skip, norm and MLP restores training?

    python -m experiments.trainable_depth          # quick
    python -m experiments.trainable_depth paper    # two to five minutes, busy; writes figures/

Expect single blocks to train, to shares below 1e-3. Six blocks of attention alone, with norm, or
with MLPs stay at 1, their residual at 1e-16 (where float64 ends, not what is left) before training
and after; with a skip, or all three, they get to 2e-3 in the mean.

Source: Dong et al. 2021, arXiv 2103.03404, section 3 (skips matter, MLPs slow the collapse, norm
plays no role; of outputs at init, here of training). Tolerances were set on seeds 100 and above.
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
from lab.dynamics import Descent, descent
from lab.experiment import main
from lab.measures.attention import rank_one_residual
from lab.models import attention_blocks
from lab.objectives import cross_entropy
from lab.plotting import OKABE_ITO, paper_style
from lab.sweep import sweep
from lab.types import BadInput, Claim, Dynamics, Params

x64 = True
DONG = "Dong et al. 2021, arXiv 2103.03404, section 3"
VARIANTS = {  # skip, norm, MLP
    "attention": (False, False, False),
    "norm": (False, True, False),
    "MLP": (False, False, True),
    "skip": (True, False, False),
    "skip, norm, MLP": (True, True, True),
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    layers: tuple[int, ...] = (1, 6)
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
    steps: int = 400
    """Steps of training."""
    every: int = 50
    """Steps between two records."""


PRESETS = {"quick": Config(layers=(1, 4), seeds=3, steps=200), "paper": Config()}


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
    """Attention with nothing, one or all of skip, norm and MLP, at every depth.

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
            tolerance=(-0.1, 0.1) if trains else (0.9, 1.01),
            source="log(tokens) is the least loss of outputs that are all alike; " + DONG,
            estimator="last loss over log(tokens), at the best rate",
            why="a tenth of the way between knowing nothing and knowing all",
            **words,
        )

    def residual(statement: str, variant: str, at: str, *, alike: bool, **words: Any) -> Claim:
        return by(
            statement,
            np.log10(np.maximum(data[at].sel(variant=variant, layers=deep).values, 1e-17)),
            predicted=None,
            tolerance=(-math.inf, -6.0) if alike else (-1.0, 0.1),
            source=DONG,
            estimator=f"log10 of the outputs' rank-one residual {at} training",
            why="float32 would hold no more than 1e-7 of it" if alike else "a tenth is plenty",
            **words,
        )

    def fails(statement: str, variant: str) -> Claim:
        few = loss(f"{shallow} block of it does", variant, shallow, trains=True)
        return loss(statement, variant, deep, trains=False, control=few)

    alone = loss(f"{deep} blocks of attention alone: no", "attention", deep, trains=False)
    return [
        fails(f"{deep} blocks of attention alone do not train", "attention"),
        fails("nor with norm", "norm"),
        fails("nor with MLPs", "MLP"),
        loss("a skip alone restores training", "skip", deep, trains=True, control=alone),
        loss("all together train", "skip, norm, MLP", deep, trains=True, control=alone),
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
    """Loss reached, shallow and deep, and what the deep ones' tokens have of their own."""
    rows = np.arange(len(VARIANTS))
    shallow, deep = (int(data.layers[i]) for i in (0, -1))
    with paper_style("neurips", columns=2, ratio=0.6):
        result, (left, right) = plt.subplots(1, 2, sharey=True)

        def points(axes: Any, values: xr.DataArray, at: float, colour: str, label: str) -> None:
            for row, name in enumerate(VARIANTS):
                shown = values.sel(variant=name).values
                axes.plot(
                    *(shown, np.full(len(shown), row + at)),
                    marker="o",
                    ms=3,
                    alpha=0.6,
                    color=colour,
                    linestyle="none",
                    label=None if row else label,
                )

        for layers, at, colour in ((shallow, -0.15, OKABE_ITO[0]), (deep, 0.15, OKABE_ITO[1])):
            label = f"{layers} block" + "s" * (layers > 1)
            points(left, data.share.sel(layers=layers), at, colour, label)
        for when, at, colour in (("before", -0.15, OKABE_ITO[5]), ("after", 0.15, OKABE_ITO[1])):
            points(right, data[when].sel(layers=deep), at, colour, f"{when} training")
        left.axvline(1.0, color="0.3", linestyle=(0, (4, 2)), linewidth=0.8, zorder=1)
        left.set(xlabel="loss reached / log(tokens)", xlim=(-0.05, 1.1))
        left.set_yticks(rows, labels=[*VARIANTS])
        right.set(xscale="log", xlabel=f"rank-one residual, {deep} blocks")
        left.set_ylim(len(VARIANTS) - 0.5, -0.5)
        for axes in (left, right):
            axes.legend(
                *axes.get_legend_handles_labels(),
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
                ncols=2,
                fontsize="small",
                borderaxespad=0,
                handletextpad=0.1,
                columnspacing=1.0,
            )
    return result


if __name__ == "__main__":
    main(__name__)
