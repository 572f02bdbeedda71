"""In maximal-update form the best learning rate is one for all widths (Yang et al. 2022).

Adam on MNIST (14 x 14, 5,000 digits), ReLU networks 196-n-n-10, cross-entropy, 50 batches of 32.
"muP": `mlp`'s parametrisation and rates by layer (`rate_factors`); "standard": one rate. BEST RATE:
where a parabola through the least log loss (the mean of batches after the first third) and its
neighbours an octave away is lowest. CHANGE of a preactivation: by all weights, or by its layer's.

    python -m experiments width_transfer          # quick: 40 s on two cores
    python -m experiments width_transfer paper    # 4 minutes; writes figures/

Expect the power of the width in the best rate to be -0.03 in muP and -1.0 in standard form, where
theory has -1 in the limit (from 64 to 128 units it falls by 0.8 octaves, from 512 to 1,024 by 1.3).
At the best rate of 64 units 1,024 lose at most 2% in muP (0.39, where 64 have 0.45) and 65% in
standard form (0.68 and 0.49). Three steps move layer 2 as n^0 and n^0.76, the first layer's part of
it being n^0 in both. Not claimed: outputs move, by all weights, as n^-0.12 and n^1.18, theory's
limits being 0 and 3/2.

Sources: Yang and Hu 2021, arXiv 2011.14522; Yang et al. 2022, arXiv 2203.03466 ("Tensor Programs
V"). Tolerances and the loss's share of the run were set on seeds 100 to 131, which no preset uses.
More than 200 lines because changes are read off the runs that find the rates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below
from lab.data import Digits, minibatch, mnist
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures.curves import late
from lab.models import by_layer, mlp, rate_factors
from lab.plotting import OKABE_ITO, STYLES, curve, key, panels, points
from lab.sweep import sweep
from lab.tasks import classification
from lab.types import BadInput, Dynamics

SOURCE = "Yang et al. 2022, arXiv 2203.03466: in muP the best rate does not depend on the width"
FORMS = {"muP": "mup", "standard": "standard"}
EARLY = 3  # Steps after which preactivations are seen to have moved.


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)  # Units of each hidden layer, ascending.
    octaves: tuple[int, int] = (-15, -5)  # Powers of 2: the lowest rate and the highest.
    steps: int = 50  # Of Adam.
    seeds: int = 16  # How many initial weights and orders of batches.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses widths that do not ascend, rates without an inside."""
        if len(self.widths) < 2 or [0, *self.widths] != sorted({0, *self.widths}):
            raise BadInput(f"widths: {self.widths}; give two or more, ascending")
        if self.octaves[1] < self.octaves[0] + 2:
            raise BadInput(f"octaves: {self.octaves}; give two, ascending by 2 or more")


QUICK = Config(widths=(64, 128, 256, 512), octaves=(-13, -5), seeds=8)
PRESETS = {"quick": QUICK, "paper": Config()}


def training(lr: Array, seed: Array, train: Digits, *, form: str, width: int) -> Dynamics:
    """Adam on batches; how far preactivations moved (rms), in all and by their own weights."""
    sizes = (train.x.shape[1], width, width, 10)
    model = mlp(sizes, activation="relu", gain=2.0, parametrisation=form, bias=False)
    factors = rate_factors(sizes, parametrisation=form, bias=False)
    task = classification(model, seed, train.x, train.labels)

    def inspect(state: Descent, t: Array) -> dict[str, Array]:
        start, now = task.init(), state.params
        read = partial(model.apply, x=train.x[:100], preactivations=True)
        alone = [read({**start, name: now[name]})[i] for i, name in enumerate(factors)]
        layers = zip(read(now), alone, read(start), strict=True)
        rms = [[jnp.sqrt(jnp.mean((h - b) ** 2)) for h in both] for *both, b in layers]
        return {"moved": jnp.array(rms)}

    return descent(
        task.loss,
        by_layer(optax.adam(lr), factors),
        init=task.init,
        observe=lambda state, t: {"loss": state.loss},
        inspect=inspect,
        batch=lambda t: minibatch(task.batches, t, (train.x, train.labels), size=32),
    )


def best_rate(rates: Float[np.ndarray, " m"], logs: Float[np.ndarray, " m"]) -> float:
    """Of log losses; NaN, not measured, if the least is at an end or beside one that diverged."""
    i = int(np.nanargmin(logs)) if np.isfinite(logs).any() else 0
    if not 0 < i < len(logs) - 1:
        return np.nan
    left, least, right = logs[i - 1 : i + 2]
    shift = (left - right) / (left - 2 * least + right) / 2
    return float(rates[i] * (rates[1] / rates[0]) ** shift)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Each width at each rate, in either form; scores and best rates, of runs that are finite."""
    rates = 2.0 ** np.arange(config.octaves[0], config.octaves[1] + 1)
    data = sweep(
        training,
        {"lr": rates, "seed": seeds(config)},
        static={"form": FORMS, "width": config.widths},
        steps=config.steps,
        every=1,
        inspect_every=[EARLY],
        shared={"train": mnist(None, pool=2).train},
        dims={"moved": ("layer", "by")},  # By: 0 all layers' weights, 1 its own.
        attrs={"seed": {"vary": "initial weights and batches"}},
        store=store,
    )
    score = late(data.loss, 2 / 3).where(data.diverged_at.isnull())
    by_rate: Any = {"input_core_dims": [["lr"]], "vectorize": True}
    best = xr.apply_ufunc(partial(best_rate, rates), np.log(score), **by_rate)
    return {"runs": data.assign(score=score, best=best)}


def power(values: xr.DataArray) -> xr.DataArray:
    """Of the width, by which they go: a straight line through logarithms; NaN where one is."""
    x = np.log(values.width) - np.log(values.width).mean()
    return (x * np.log(values)).sum("width", skipna=False) / (x**2).sum()


def expected(config: Config) -> dict[str, Expected]:
    """In muP no power of the width; in standard form those of theory."""
    by = partial(Expected, source=SOURCE, kind="closed form", vary="initial weights and batches")
    moved = f"power of the width in their change (rms) after {EARLY} steps at the lowest rate"
    whole, own = (partial(by, estimator=moved + more) for more in ("", ", other layers as before"))
    rate = partial(by, estimator="power of the width in the best rate")
    level = partial(about, 0.0, why="chance in narrow networks; far below the control")
    wider = above(0.4, why="as n^0 by the first layer, as n by the second: between the two")
    first = Control("standard: as the width", about(1.0, within=0.2, why="chance, in narrow ones"))
    falls = Control("standard: it falls", below(-0.5, why="half of theory's limit, 1 / n"))
    return {
        "hidden": whole(
            "muP: preactivations of layer 2 move alike at every width",
            level(within=0.1),
            Control("standard: the wider the further", wider),
        ),
        "hidden alone": own("muP: so they do by its own weights alone", level(within=0.15), first),
        "output alone": own("muP: so do outputs by their own weights", level(within=0.15), first),
        "transfer": rate("muP: the best rate is that of any width", level(within=0.15), falls),
        "carried": by(
            "muP: the narrowest's best rate costs the widest less than 8%",
            below(1.08, why="rates are an octave apart"),
            Control("standard: more", above(1.08, why="the same")),
            kind="direction",
            estimator="the widest's loss at the narrowest's best of the rates, over its least",
            scale="log",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Powers of the width, and the price of the narrowest's rate."""
    runs, moved = data["runs"], data["runs"].moved.isel(lr=0, step_rare=0)
    wide, at = runs.score.isel(width=-1), runs.score.isel(width=0).fillna(np.inf).argmin("lr")
    found = {
        "hidden": power(moved.isel(layer=1, by=0)),
        "hidden alone": power(moved.isel(layer=1, by=1)),
        "output alone": power(moved.isel(layer=2, by=1)),
        "transfer": power(runs.best),
        "carried": wide.isel(lr=at) / wide.min("lr"),
    }
    return {name: (v.sel(form="muP"), v.sel(form="standard")) for name, v in found.items()}


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Loss by rate in either form; best rates and early changes by width; lines: theory."""
    runs, widths = data["runs"], data["runs"].width.values
    own = runs.moved.isel(lr=0, step_rare=0, by=1)
    with panels(2, rows=2, ratio=0.8) as (result, (left, right, low, last)):
        for axes, form in zip((left, right), FORMS, strict=True):
            for width, style in zip(widths, STYLES, strict=False):
                at = runs.score.sel(form=form, width=width)
                curve(axes, at, log=True, **style, markevery=1, label=f"{width}")
            key(axes, columns=3, title=f"{form}; units a layer:")
            axes.set(yscale="log", ylim=(0.3, 3.5), xlabel="learning rate")
            axes.set_yticks([0.3, 0.5, 1, 2], labels=["0.3", "0.5", "1", "2"])
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
        shown = [(low, runs.best), *((last, own.isel(layer=i)) for i in range(3))]
        for form, colour, n in zip(FORMS, OKABE_ITO, (0, 1), strict=False):
            for i, (axes, values) in enumerate(shown):
                at, slope = values.sel(form=form), n * (-1, 0, 1, 1)[i]
                label = form + f", layer {i}" * (i > 0)
                points(axes, at, log=True, color=colour, marker="oosXsv^D"[4 * n + i], label=label)
                theory = xr.DataArray(widths ** float(slope), dims="width")
                line = theory * np.exp(np.log(at / theory).mean())
                axes.plot(widths, line, color="0.6", lw=0.7, zorder=1)
        for axes, base in ((low, 2), (last, 10)):
            axes.set_yscale("log", base=base)
            axes.set(xscale="log", xlabel="units a layer")
            axes.set_xticks(widths, labels=widths.astype(str))
            axes.minorticks_off()
        left.set_ylabel("training loss, nats")
        low.set_ylabel("best learning rate")
        last.set_ylabel("change, rms")
        key(low, title="lines: slope by theory")
        key(last, title=f"by own weights, {EARLY} steps; lines: slope by theory")
    return result


if __name__ == "__main__":
    main(__name__)
