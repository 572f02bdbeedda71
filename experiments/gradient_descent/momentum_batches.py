"""On small batches momentum lowers the level of batch sharpness (Andreyev et al. 2026).

Heavy ball (b = 0.9) on batches of 512 MNIST digits (14 x 14), tanh network 196-32-32-10, half
squared error. Batch sharpness, the curvature of a batch along its own gradient, is said to settle
at 2 (1 - b) / lr on small batches, nineteen times below the 2 (1 + b) / lr of the full batch. A
quadratic with curvatures drawn anew at every step gives 2 (1 - b) / lr + 2b / (1 + b) h, with h the
curvature of the mean loss along the same gradients. A level of 1 / lr has exponent -1 in lr.

    python -m experiments momentum_batches          # quick: 100 s on two cores
    python -m experiments momentum_batches paper    # 7 minutes; writes figures/

Expect theory right to a third from batches of 8 on, and the whole set at its edge. On batches of 2
there is no level of 1 / lr: the exponent fails (about -0.5; a factor of 4 in rate doubles lr x
batch sharpness, with momentum and without), the level fails (0.59 of predicted over these rates),
and whether it has come to rest is inconclusive (0.95 a quarter, interval 0.84 to 1.07). More than
200 lines because there are two sweeps and three kinds of prediction.

Sources: Andreyev et al. 2026, arXiv 2604.14108 (dampening none), and Andreyev and Beneventano 2024,
arXiv 2412.20553 (2 / lr at b = 0). Rates were chosen on seeds 100 to 103, which no preset uses:
below the largest at which all four trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, PRNGKeyArray
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below
from lab.data import mnist
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures.curves import late
from lab.measures.gradients import batch_sharpness
from lab.models import mlp
from lab.plotting import STYLES, key, panels, points, theory_line
from lab.sweep import sweep
from lab.tasks import regression
from lab.theory import edges
from lab.types import BadInput, Dynamics

B = 0.9
LARGE, SMALL = (0.25, 0.5, 1.0), (0.005, 0.01, 0.02)  # shares of a rate; the small for controls
ANDREYEV = "Andreyev et al. 2026, arXiv 2604.14108, abstract"
LINE = "lab.theory.edges.noisy_heavy_ball, a quadratic with curvatures drawn anew at every step"
RATES = {  # of each batch size, the last being the whole set: without momentum, with
    2: (0.2, 0.025),
    8: (0.5, 0.08),
    32: (0.8, 0.3),
    128: (0.6, 0.6),
    512: (0.5, 1.0),
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweeps."""

    batches: tuple[int, ...] = tuple(RATES)
    """Batch sizes, ascending; the last is the whole set."""
    seeds: int = 8
    """How many initialisations and orders of batches."""
    first_seed: int = 0
    """The first of them."""
    warmup: int = 2_000
    """Steps over which the rate rises from 0."""
    steps: int = 12_000
    """Steps of each run."""
    every: int = 300
    """Steps between two measurements."""
    draws: int = 64
    """Batches for a measurement of batch sharpness."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers."""

    def __post_init__(self) -> None:
        """Refuses sizes without a rate or that do not ascend, or fewer than two."""
        if [*self.batches] != sorted({*self.batches} & {*RATES}) or len(self.batches) < 2:
            raise BadInput(f"batches: {self.batches}; give two or more of {[*RATES]}, ascending")


PRESETS = {
    "quick": Config(batches=(2, 32, 512), seeds=4, warmup=1_000, steps=6_000),
    "paper": Config(),
}


def training(
    momentum: Array, share: Array, seed: Array, x: Array, y: Array, *, batch: int, config: Config
) -> Dynamics:
    """Heavy ball on batches drawn without replacement; batch sharpness."""
    task = regression(mlp((x.shape[1], *config.hidden, y.shape[1]), gain=0.25), seed, x, y)
    plain, heavy = RATES[batch]
    rate = optax.linear_schedule(0.0, share * jnp.where(momentum > 0, heavy, plain), config.warmup)

    def draw(key: PRNGKeyArray) -> tuple[Array, Array]:
        chosen = jax.random.permutation(key, len(x))[:batch]
        return x[chosen], y[chosen]

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        return {"loss": task.loss(state.params)}

    def inspect(state: Descent, t: Array) -> dict[str, Array]:
        draws = 1 if batch == len(x) else config.draws
        keys = jax.random.split(jax.random.fold_in(task.measures, t), draws)
        return batch_sharpness(task.loss, state.params, jax.vmap(draw)(keys))._asdict()

    return descent(
        task.loss,
        optax.sgd(rate, momentum),
        init=task.init,
        observe=observe,
        inspect=inspect,
        batch=lambda t: draw(jax.random.fold_in(task.batches, t)),
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Every batch size at its rate and a small share of it; the smallest at several shares."""
    digits = mnist(config.batches[-1], pool=2).train

    def swept(name: str, shares: tuple[float, ...], batches: tuple[int, ...]) -> xr.Dataset:
        data = sweep(
            partial(training, config=config),
            {"momentum": [0.0, B], "share": shares, "seed": seeds(config)},
            static={"batch": batches},
            steps=config.steps,
            every=config.every,
            inspect_every=config.every,
            shared={"x": digits.x, "y": digits.y},
            attrs={"seed": {"vary": "initial weights and batches"}},
            store=store / name,
        )
        lr = data.share * xr.DataArray(
            [RATES[size] for size in batches], dims=("batch", "momentum")
        )
        own, other = lr * data.own, lr * data.other  # in units of 1 / rate
        line = xr.apply_ufunc(edges.noisy_heavy_ball, 1.0, data.momentum, late(other))
        return data.assign(lr=lr, own=own, other=other, level=late(own), line=line)

    return {
        "sizes": swept("sizes", (SMALL[-1], 1.0), config.batches),
        "rates": swept("rates", (*SMALL, *LARGE), config.batches[:1]),
    }


def expected(config: Config) -> dict[str, Expected]:
    """The exponent and the plateau on the smallest batches; the level of every size."""
    first, *middle, last = config.batches
    claim = partial(Expected, vary="initial weights and batches")
    small = f"at {SMALL[-1]:g} of "
    exponent = claim(
        f"batches of {first}, b = {B:g}: batch sharpness is inverse to the rate",
        about(-1.0, within=0.2, why="makes a level 1.3 times off over a factor of 4 in rate"),
        Control(f"{small}these rates it is not", above(-0.5, why="half of the exponent predicted")),
        kind="published value",
        source=ANDREYEV,
        estimator="slope of log batch sharpness (mean of the second half) on log rate",
    )
    plateau = claim(
        f"batches of {first}, b = {B:g}: batch sharpness has come to rest",
        about(1.0, within=0.05, why="a drift of a tenth over the second half is no plateau"),
        Control(f"{small}the rate it still moves", above(1.05, why="outside of the band above")),
        kind="published value",
        source=ANDREYEV,
        estimator="batch sharpness, mean of the last quarter over that of the quarter before",
        scale="log",
    )
    beyond = "beyond its share of the mean curvature it is 2 (1 - b) / lr"
    third = about(1.0, within=0.4, why="theory is of one dimension and linear: right to a third")
    levels = {
        first: (
            f"{first}, {LARGE[0]:g} to 1 of lr {RATES[first][1]:g}: the level is 2 (1 - b) / lr",
            about(1.0, within=0.25, why="a quarter, where the upper edge is 19 times higher"),
            ANDREYEV,
        ),
        **{size: (f"{size}, lr {RATES[size][1]:g}: {beyond}", third, LINE) for size in middle},
        last: (
            f"{last}, lr {RATES[last][1]:g}: it settles at 2 (1 + b) / lr",
            about(1.0, within=0.03, why="as for the sharpness of the full batch"),
            ANDREYEV,
        ),
    }
    return {
        "exponent": exponent,
        "plateau": plateau,
        **{
            f"batches of {size}": claim(
                f"batches of {statement}",
                band,
                Control(f"{small}that it is not", below(0.5, why="half of the level predicted")),
                kind="closed form" if source == LINE else "published value",
                source=source,
                estimator="lr x batch sharpness over predicted, mean over second half and rates",
                scale="log",
            )
            for size, (statement, band, source) in levels.items()
        },
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Each at the rates, and at small shares of them."""
    sizes, rates = data["sizes"].sel(momentum=B), data["rates"].isel(batch=0)
    heavy, (first, *middle, last) = rates.sel(momentum=B), sizes.batch.values.tolist()
    low, high = 2 * (1 - B), 2 * (1 + B)

    def slope(shares: tuple[float, ...]) -> np.ndarray:
        at = heavy.sel(share=list(shares))
        log = np.log(at.level / at.lr).transpose("share", "seed").values
        return np.polyfit(np.log(shares), log, 1)[0]

    def rest(share: float) -> xr.DataArray:
        values = heavy.own.sel(share=share)
        return late(values, 0.25) / (2 * late(values) - late(values, 0.25))

    def levels(shares: tuple[float, ...]) -> xr.DataArray:
        return np.exp(np.log(heavy.level.sel(share=list(shares)) / low).mean("share"))

    beyond = 1 + (sizes.level - sizes.line) / low
    ratios = {**dict.fromkeys(middle, beyond), last: sizes.level / high}
    return {
        "exponent": (slope(LARGE), slope(SMALL)),
        "plateau": (rest(1.0), rest(SMALL[-1])),
        f"batches of {first}": (levels(LARGE), levels(SMALL)),
        **{
            f"batches of {size}": (at.sel(share=1.0), at.sel(share=SMALL[-1]))
            for size, ratio in ratios.items()
            for at in [ratio.sel(batch=size)]
        },
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """lr times batch sharpness: by batch size with theory; on the smallest batches by rate."""
    sizes, rates = data["sizes"].sel(share=1.0), data["rates"].isel(batch=0)
    with panels(2, ratio=0.8) as (result, (left, right)):
        for b, style in ((B, STYLES[1]), (0.0, STYLES[0])):
            name, plain = f"b = {b:g}", {"color": style["color"], "marker": style["marker"]}
            points(left, sizes.level.sel(momentum=b), label=name, **plain)
            line = sizes.line.sel(momentum=b).mean("seed")
            left.plot(
                sizes.batch, line, color=style["color"], linewidth=0.8, label=f"{name}, theory"
            )
            theory_line(right, 2 * (1 - b), colour=style["color"])
            at = rates.level.sel(momentum=b, share=list(LARGE))
            points(right, at, log=True, label=name, linewidth=0.8, **{**style, "linestyle": "-"})
        for name, level, x in (("2 (1 + b)", 2 * (1 + B), 0), ("2 (1 − b)", 2 * (1 - B), -2)):
            theory_line(left, level)
            left.text(sizes.batch[x], level * 1.08, name, fontsize="small")
        right.text(0.27, 2.15, "predicted: 2", fontsize="small")
        right.text(0.27, 0.215, "predicted: 2 (1 − b)", fontsize="small")
        left.set(xlabel="batch size", ylabel="lr × batch sharpness")
        left.set_xticks(sizes.batch, labels=sizes.batch.astype(str).values)
        right.set(xlabel="learning rate / largest", ylabel="lr × batch sharpness")
        for axes in (left, right):
            axes.set(xscale="log", yscale="log", ylim=(0.06, 6))
            axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], labels=["0.1", "0.2", "0.5", "1", "2", "5"])
            axes.minorticks_off()
        left.set_xticks(sizes.batch, labels=sizes.batch.astype(str).values)
        right.set_xticks(LARGE, labels=["1/4", "1/2", "1"])
        key(left, title="each batch size at its rate")
        key(right, title=f"batches of {int(rates.batch)}")
    return result


if __name__ == "__main__":
    main(__name__)
