"""In maximal-update form the best learning rate is one for all widths (Yang et al. 2022).

Adam on MNIST (14 x 14, 5,000 digits), ReLU networks 196-n-n-10, cross-entropy, 50 batches of 32.
"muP": `mlp`'s parametrisation and rates by layer (`rate_factors`); "standard": one rate. BEST RATE:
where a parabola through the least log loss (the mean of batches after the first third) and its
neighbours an octave away is lowest. CHANGE of a preactivation: by all weights, or by its layer's.

    python -m experiments width_transfer          # quick: 40 s on two cores
    python -m experiments width_transfer paper    # 3 minutes; writes figures/

Expect the best rate to go as n^-0.03 in muP and n^-1 in standard form, theory's limit (0.8 octaves
from 64 to 128 units, 1.3 from 512 on). At the best rate of 64 units 1,024 lose at most 2% in muP
(0.39, where 64 have 0.45), 65% in standard form. Layer 2 moves as n^0 and n^0.76: the first layer's
part of that is n^0 in both. Not claimed: by all weights outputs move as n^-0.12 and n^1.18, where
theory's limits are 0 and 3/2. Tolerances and the loss's batches were set on seeds 100 to 131.

Sources: Yang and Hu 2021, arXiv 2011.14522; Yang et al. 2022, arXiv 2203.03466 (Tensor Programs V).
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

SOURCE = "Yang et al. 2022, arXiv 2203.03466: in muP changes and rates hold at every width"
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


PRESETS = {"quick": Config((64, 128, 256, 512), (-13, -5), seeds=8), "paper": Config()}


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
    axes: Any = {"lr": rates, "seed": seeds(config)}
    how: Any = {"steps": config.steps, "every": 1, "inspect_every": [EARLY]}
    how["shared"], how["dims"] = {"train": mnist(None, pool=2).train}, {"moved": ("layer", "by")}
    data = sweep(training, axes, static={"form": FORMS, "width": config.widths}, **how, store=store)
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
    moved = f"power of the width in the change (rms) after {EARLY} steps at the lowest rate"
    whole, own = (partial(by, estimator=moved + more) for more in ("", ", other layers as before"))
    rate = partial(by, estimator="power of the width in the best rate")
    chance = "chance in narrow networks; far from the control's"
    near, level = (about(0.0, within=width, why=chance) for width in (0.1, 0.15))
    wider = Control("standard: the wider the further", above(0.4, why="n^0 and n, of two layers"))
    first = Control("standard: as the width", about(1.0, within=0.2, why="chance, as in muP"))
    falls = Control("standard: it falls", below(-0.5, why="half of theory's limit, 1 / n"))
    return {
        "hidden": whole("muP: layer 2 moves alike at every width", near, wider),
        "hidden alone": own("muP: so it does by its own weights alone", level, first),
        "output alone": own("muP: so do outputs by their own weights", level, first),
        "transfer": rate("muP: the best rate is the same at every width", level, falls),
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
        shown = [(low, runs.best), *((last, own.isel(layer=i)) for i in range(3))]
        for form, colour, n in zip(FORMS, OKABE_ITO, (0, 1), strict=False):
            for i, (axes, values) in enumerate(shown):
                at, slope = values.sel(form=form), n * (-1, 0, 1, 1)[i]
                label = form + f", layer {i}" * (i > 0)
                points(axes, at, log=True, color=colour, marker="oosXsv^D"[4 * n + i], label=label)
                theory = xr.DataArray(widths ** float(slope), dims="width")
                line = theory * np.exp(np.log(at / theory).mean())
                axes.plot(widths, line, color="0.6", lw=0.7, zorder=1)
        for axes, base, says in ((low, 2, "best learning rate"), (last, 10, "change, rms")):
            axes.set_yscale("log", base=base)
            axes.set(xscale="log", xlabel="units a layer", ylabel=says)
            axes.set_xticks(widths, labels=widths.astype(str))
        left.set_ylabel("training loss, nats")
        key(low, title="lines: slope by theory")
        key(last, title=f"by own weights, {EARLY} steps; lines: slope by theory")
        for axes in (left, right, low, last):
            axes.minorticks_off()
    return result


if __name__ == "__main__":
    main(__name__)
