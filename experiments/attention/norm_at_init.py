"""Norm before each part: the last gradient falls as the root of depth (Xiong et al. 2020).

At init, random weights, one block a step (attention, then an MLP with GELU, width 128): gradient
of its output matrix. With norm before each part the stream's variance is 1 + 1.425 L, the gradient
its inverse root: an exponent of -1/2 in the limit. With norm after each part it is the same at all
depths; without norm the variance triples a block (closed forms: `lab.theory.layer_norm`). Sixteen
tokens that attend to one another start independent, cancel in attention's average, and grow alike
with depth: the gradient falls more steeply. Averaged over a batch it falls less steeply than each
of its parts, since examples grow alike too: fit exponents to single examples.

    python -m experiments norm_at_init          # quick: half a minute on two cores
    python -m experiments norm_at_init paper    # two minutes; writes figures/

Expect exponents within 0.02 of theory: -0.48 (one token), -0.57 (mixing), -0.45 (batch), 0 (post).
Source: Xiong et al. 2020, arXiv 2002.04745 (bounds). Tolerances were set on seeds 100 and above."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below
from lab.experiment import main, seeds
from lab.measures.curves import exponent
from lab.models import attention_blocks
from lab.plotting import STYLES, curve, key, panels
from lab.sweep import sweep
from lab.theory import layer_norm
from lab.types import BadInput, Dynamics, Params

CASES: dict[str, tuple[str | None, str]] = {
    "no norm": (None, "one token"),
    "post": ("post", "one token"),
    "pre": ("pre", "one token"),
    "pre, mixing": ("pre", "mixing tokens"),
    "post, mixing": ("post", "mixing tokens"),
    "pre, batch": ("pre", "batch"),
    "post, batch": ("post", "batch"),
}
FIRST = 8.0  # Blocks from which on exponents are fitted.
SOURCE = "lab.theory.layer_norm.last_gradient; bounds: Xiong et al. 2020, arXiv 2002.04745"


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    depth: int = 64  # How many blocks, one a step.
    width: int = 128  # Width of a token; the MLP's is twice that.
    count: int = 16  # Tokens that mix, and examples in a batch.
    seeds: int = 64  # How many draws of weights, tokens and readout.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses too few blocks for an exponent."""
        if self.depth < 2 * FIRST:
            raise BadInput(f"depth: {self.depth}; give {2 * FIRST:g} blocks or more")


PRESETS = {"quick": Config(depth=32), "paper": Config()}


def deepening(seed: Array, *, case: tuple[str | None, str], config: Config) -> Dynamics:
    """Tokens going through blocks with random weights, one a step; the gradient of the last."""
    norm, setting = case
    model = attention_blocks(config.width, layers=1, hidden=2 * config.width, norm=norm)
    token_key, block_key, read_key = jax.random.split(jax.random.key(seed), 3)
    count = 1 if setting == "one token" else config.count
    shape = (count, 1, config.width) if setting == "batch" else (1, count, config.width)

    readout = jax.random.normal(read_key, (1, *shape[1:]))  # One for a batch, one for each token.

    def step(x: Array, t: Array) -> Array:
        return model.apply(model.init(jax.random.fold_in(block_key, t)), x)

    def observe(x: Array, t: Array) -> dict[str, Array]:
        def read(params: Params) -> Array:
            y = model.apply(params, x)
            y = y if norm is None else jax.nn.standardize(y, epsilon=1e-6)
            return jnp.sum(readout * y) / count

        gradient = jax.grad(read)(model.init(jax.random.fold_in(block_key, t)))
        return {"gradient": jnp.log(jnp.linalg.norm(gradient["mlp_1"]["out"]["kernel"]))}

    return Dynamics(lambda: jax.random.normal(token_key, shape), step, observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Gradients by depth, beside theory's."""
    how: Any = {"static": {"case": CASES}, "steps": config.depth - 1, "every": 1, "store": store}
    drawn = sweep(partial(deepening, config=config), {"seed": seeds(config)}, **how)
    drawn = drawn.rename(step="depth")
    theory = np.log([curve_of(case, config) for case in CASES])
    drawn = drawn.assign_coords(depth=drawn.depth + 1)
    return {"blocks": drawn.assign(theory=(("case", "depth"), theory))}


def curve_of(case: str, config: Config) -> np.ndarray:
    """Theory's norm of the last gradient, at each depth."""
    norm, setting = CASES[case]
    count = 1 if setting == "one token" else config.count
    sizes: Any = {"width": config.width, "hidden": 2 * config.width, "count": count}
    mixing = setting != "batch"
    return layer_norm.last_gradient(config.depth, norm=norm, mixing=mixing, **sizes)


def expected(config: Config) -> dict[str, Expected]:
    """Exponents, scale, and what averages do to them."""
    depth = np.arange(1.0, config.depth + 1)
    by = partial(Expected, kind="closed form", source=SOURCE, vary="weights, tokens and readout")
    fitted = partial(by, estimator=f"slope of log gradient in log depth, from {FIRST:g} blocks on")
    why = "half of what tells 16 tokens that mix, or a batch, from one token"

    def theory(case: str, within: float = 0.04) -> Any:
        logs = np.log(curve_of(case, config))
        return about(float(exponent(depth, logs, first=FIRST)), within=within, why=why)

    return {
        "pre": fitted(
            "pre-norm: the last gradient falls as the root of depth",
            theory("pre"),
            Control("post-norm: it stays", theory("post")),
        ),
        "mixing": fitted(
            "pre-norm, tokens that mix: more steeply, as they grow alike",
            theory("pre, mixing"),
            Control("post-norm, tokens that mix: not so", theory("post, mixing")),
        ),
        "batch": fitted(
            "pre-norm, averaged over a batch: less steeply, a bias",
            theory("pre, batch", 0.018),
            Control("post-norm, averaged over a batch: otherwise", theory("post, batch")),
        ),
        "scale": by(
            "pre-norm: it is theory's at all depths, with nothing fitted",
            about(
                0.0, within=0.05, why="corrections are a few times 1 / width; seeds spread by 6%"
            ),
            Control("post-norm's is larger", above(0.5, why="ten times the claim's tolerance")),
            estimator="mean over depths of log (gradient / theory of pre-norm)",
        ),
        "none": by(
            "without norm it grows as the root of 3 to the power of depth",
            about(float(np.log(3)) / 2, within=0.03, why="a twentieth of the rate"),
            Control("with pre-norm it does not grow", below(0.03, why="as for the claim")),
            estimator=f"slope of log gradient in depth, from {FIRST:g} blocks on",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Exponents of each case, levels against pre-norm's theory, and rates of growth."""
    blocks = data["blocks"].transpose("depth", "case", "seed")
    depth, logs = blocks.depth.values.astype(float), blocks.gradient.values
    power = blocks.gradient[0].copy(data=exponent(depth, logs, first=FIRST))
    level = (blocks.gradient - blocks.theory.sel(case="pre")).mean("depth")
    grown = (
        blocks.gradient.sel(depth=slice(FIRST, None)).polyfit("depth", 1).polyfit_coefficients[0]
    )
    pairs: dict[str, Any] = {
        "pre": (power, "pre", "post"),
        "mixing": (power, "pre, mixing", "post, mixing"),
        "batch": (power, "pre, batch", "post, batch"),
        "scale": (level, "pre", "post"),
        "none": (grown, "no norm", "pre"),
    }
    return {name: (at.sel(case=one), at.sel(case=two)) for name, (at, one, two) in pairs.items()}


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Last gradient by depth, of single tokens and of averages; grey: theory."""
    blocks = data["blocks"]
    shown = (
        ["no norm", "post", "pre"],
        ["pre, mixing", "pre, batch", "post, mixing", "post, batch"],
    )
    with panels(2, ratio=0.85) as (result, grid):
        for axes, cases, first in zip(grid, shown, (0, 3), strict=True):
            for case, style in zip(cases, STYLES[first:], strict=False):
                curve(axes, np.exp(blocks.gradient.sel(case=case)), log=True, label=case, **style)
                axes.plot(blocks.depth, np.exp(blocks.theory.sel(case=case)), color="0.3", lw=0.6)
            axes.set(xscale="log", yscale="log", xlabel="depth (blocks)")
            axes.set_xticks([1, 4, 16], labels=["1", "4", "16"], minor=False)
            key(axes, columns=2, title="thin grey: theory")
        post, pre = (np.exp(blocks.theory.sel(case=case)[-1]) for case in ("post", "pre"))
        grid[0].set(ylabel="norm of the last gradient", ylim=(pre / 2, 30 * post))
    return result


if __name__ == "__main__":
    main(__name__)
