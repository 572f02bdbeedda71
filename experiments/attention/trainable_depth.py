"""Deep attention trains where a skip keeps its tokens apart (Noci et al. 2022).

Eight tokens, each another symbol, go through blocks of softmax attention; each is to say which
symbol it was (Adam, full batch, the better of two rates). Outputs that are all alike cannot get
below log 8: the share of it that is left says whether a network trains. Without skips random blocks
make tokens alike (`rank_collapse`). How many blocks train, with and without a skip, where there is
attention alone, with norm, or with MLPs?

    python -m experiments trainable_depth          # quick: half a minute on two cores
    python -m experiments trainable_depth paper    # a minute; writes figures/

Expect two or three blocks without a skip, all five with one. Without a skip three blocks often stop
at two thirds of log 8, four and five at all of it, their residual below 1e-8 before training and
after. Adam's epsilon is not what stops them: at 1e-20 as many train as at 1e-8 (seeds 100 to 103).

Sources: Noci et al. 2022, arXiv 2206.03126 (collapse at initialisation hinders training); Dong et
al. 2021, arXiv 2103.03404 (skips matter, MLPs slow the collapse, norm plays no role; at
initialisation). Bands were set on seeds 100 and above, which no preset uses.
"""

import math
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
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures.attention import rank_one_residual
from lab.measures.curves import border
from lab.models import attention_blocks
from lab.objectives import cross_entropy
from lab.plotting import STYLES, key, panels, points, theory_line
from lab.sweep import sweep
from lab.types import BadInput, Dynamics, Params

x64 = True
SOURCE = "Noci et al. 2022, arXiv 2206.03126: collapse hinders training; Dong et al. 2021: skips"
PARTS = {"attention alone": (False, False), "norm": (True, False), "MLPs": (False, True)}
VARIANTS = {  # skip, norm, MLP
    (name if not skip else f"{name}, skip"): (skip, *parts)
    for name, parts in PARTS.items()
    for skip in (False, True)
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    parts: tuple[str, ...] = tuple(PARTS)  # What a block has beside attention.
    layers: tuple[int, ...] = (1, 2, 3, 4, 5)  # Numbers of blocks, from 1 on.
    tokens: int = 8  # Symbols, and tokens in a sequence: each once.
    width: int = 16  # Width of a token; the MLP's is twice that.
    lrs: tuple[float, ...] = (0.003, 0.01)  # Adam's rates; the best for each run counts.
    seeds: int = 8  # How many initial weights.
    first_seed: int = 0  # The first of them.
    steps: int = 400  # Steps of training.
    every: int = 50  # Steps between two records.

    def __post_init__(self) -> None:
        """Refuses numbers of blocks that are not 1, 2, ...; fewer than two tokens."""
        if list(self.layers) != list(range(1, len(self.layers) + 1)) or len(self.layers) < 2:
            raise BadInput(f"layers: {self.layers}; give 1, 2, and on without a gap")
        if not self.parts or not {*self.parts} <= {*PARTS}:
            raise BadInput(f"parts: {self.parts}; give some of {', '.join(PARTS)}")
        if self.tokens < 2:
            raise BadInput(f"tokens: {self.tokens}; give two or more")


PRESETS = {"quick": Config(layers=(1, 2, 3, 4), seeds=6, steps=200), "paper": Config()}


def training(
    lr: Array, layers: Array, seed: Array, *, variant: tuple[bool, bool, bool], config: Config
) -> Dynamics:
    """Adam on the task of saying which symbol a token is, after `layers` blocks of those there are.

    What is beyond them has no gradient: one compilation serves all depths.
    """
    skip, norm, mlp = variant
    n, width = config.tokens, config.width
    parts: Any = {"norm": "pre" if norm else None, "hidden": 2 * width if mlp else None}
    blocks = attention_blocks(width, layers=config.layers[-1], skip=skip, **parts)

    def init() -> Params:
        block_key, embed_key, head_key = jax.random.split(jax.random.key(seed), 3)
        return {
            "embed": jax.random.normal(embed_key, (n, width), float),
            "blocks": blocks.init(block_key),
            "head": jax.random.normal(head_key, (width, n), float) / math.sqrt(width),
        }

    def output(params: Params) -> Array:
        y = jnp.stack(blocks.apply(params["blocks"], params["embed"], activations=True))[layers]
        return jax.nn.standardize(y, epsilon=1e-6) if norm else y

    def loss(params: Params) -> Array:
        return cross_entropy(output(params) @ params["head"], jnp.arange(n))

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        residual = rank_one_residual(output(state.params))
        return {"share": loss(state.params) / math.log(n), "residual": residual}

    return descent(loss, optax.adam(lr), init=init, observe=observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Every variant at every depth; of each run the rate that is best at the end."""
    variants = {name: had for name, had in VARIANTS.items() if name.split(",")[0] in config.parts}
    data = sweep(
        partial(training, config=config),
        {"lr": config.lrs, "layers": config.layers, "seed": seeds(config)},
        static={"variant": variants},
        steps=config.steps,
        every=config.every,
        store=store,
    )
    best = data.share.isel(step=-1, drop=True).fillna(np.inf).argmin("lr")
    return {"blocks": data.isel(lr=best).drop_vars("lr")}


def expected(config: Config) -> dict[str, Expected]:
    """Of attention alone, with norm, with MLPs: without a skip few blocks train, with one all."""
    last = config.layers[-1]
    by = partial(Expected, kind="direction", source=SOURCE, vary="initial weights")
    few = below(last - 0.5, why=f"the {last} blocks that train with a skip are not reached")
    every = above(last - 0.5, why=f"all of the {last} tried")
    return {
        name: by(
            f"{name}, no skip: fewer than {last} blocks train",
            few,
            Control("with a skip all do", every),
            estimator="blocks up to which the loss falls below half of log(tokens), and 1/2",
            grid=0.5,
        )
        for name in config.parts
    }


def trainable(data: xr.Dataset) -> xr.DataArray:
    """Midway between the blocks up to which a run trains and the next; the last, if all do."""
    trains = data.share.isel(step=-1, drop=True) < 0.5
    depths = data.layers.values.astype(float)
    found = xr.apply_ufunc(partial(border, depths), trains, input_core_dims=[["layers"]])
    return found.fillna(depths[-1])


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Depths that train, of each without and with a skip."""
    depth = trainable(data["blocks"])
    names = [name for name in PARTS if name in depth.variant]
    return {name: (depth.sel(variant=name), depth.sel(variant=f"{name}, skip")) for name in names}


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Loss reached, and what tokens have of their own before training, against depth."""
    blocks = data["blocks"]
    share, own = blocks.share.isel(step=-1), blocks.residual.isel(step=0).clip(1e-17)
    with panels(2, ratio=0.85) as (result, (left, right)):
        for i, (name, style) in enumerate(zip(blocks.variant.values, STYLES, strict=False)):
            shift = 0.06 * (i - 2.5)
            for axes, values in ((left, share), (right, own)):
                at = values.sel(variant=name).assign_coords(layers=blocks.layers + shift)
                points(axes, at, log=axes is right, label=name, **style)
        theory_line(left, 1.0)
        left.set(xlabel="blocks", ylabel="loss reached / log(tokens)")
        right.set(xlabel="blocks", ylabel="rank-one residual, before", yscale="log")
        for axes in (left, right):
            axes.set_xticks(blocks.layers.values)
            key(axes, columns=2)
    return result


if __name__ == "__main__":
    main(__name__)
