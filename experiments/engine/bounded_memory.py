"""A hundred thousand runs within 2 GB, each further run at the price of the last.

Deep linear networks 64-16-10 on 20 of scikit-learn's digits, 200 full-batch steps, loss every 20.
The engine takes dispatch after dispatch to its last step, so that only records (44 bytes each),
names and points grow with the number of runs; `jit(vmap(scan))` holds all runs at once. Each
measurement is a process of its own; memory is the peak resident set, with some 300 MB of imports.
Seconds are a + b n, with a for tracing and loading what is compiled: a further run's price, b, is a
difference, which a leaves.

    python -m experiments bounded_memory          # quick: to 30,000 runs, two minutes
    python -m experiments bounded_memory paper    # to 100,000, 12 minutes; writes figures/

Expect 0.38 GB for 1,000 runs, 0.46 for 100,000 (`jit(vmap(scan))` 2.2) and 0.2 ms a further run.
From 50,000 on it costs 0.90 times as much as from 10,000 to there [0.67, 1.21]: three turns leave
it inconclusive. Results rewritten: 1.64 times.

The control of memory is `jit(vmap(scan))`. That of time keeps the engine's results as one json
file, written anew after each thousand runs, as scripts often do: a time that grows with n squared.
A first turn of the engine, which compiles, does not count.

A turn is no random draw: intervals over turns tell a difference from the machine's noise, no more.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.engine.peers.memory import cost
from lab.claims import Control, Expected, Measured, above, below, between
from lab.experiment import main
from lab.plotting import STYLES, key, panels, points, theory_line
from lab.types import BadInput

FORMS = {"sweep": "the engine", "vmap": "jit(vmap(scan))"}


@dataclass(frozen=True)
class Config:
    """How many runs, and how often."""

    runs: tuple[int, ...] = (1_000, 10_000, 50_000, 100_000)
    """Sizes of the sweep, ascending; of the last three time is claimed about."""
    turns: int = 3
    """How often each is measured, forms in turn."""
    examples: int = 20
    """Digits in the training set."""
    limit: float = 2e9
    """Bytes of resident memory allowed."""

    def __post_init__(self) -> None:
        """Refuses fewer than three sizes, sizes that do not grow, or no turn."""
        if len(self.runs) < 3 or [0, *self.runs] != sorted({0, *self.runs}):
            raise BadInput(
                f"runs: {self.runs}; give three sizes or more, each larger than the last"
            )
        if self.turns < 1:
            raise BadInput(f"turns: {self.turns} is not a positive int")


PRESETS = {
    "quick": Config(runs=(1_000, 15_000, 30_000), turns=3, limit=0.75e9),
    "paper": Config(),
}


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Seconds and peak bytes by form, size and turn; what the store holds is not measured again."""
    store.mkdir(parents=True, exist_ok=True)
    found = np.full((3, len(FORMS), len(config.runs), config.turns), math.nan)
    for turn in range(-1, config.turns):
        for j, runs in enumerate(config.runs):
            for i, form in enumerate(FORMS if turn >= 0 else ["sweep"]):
                file = store / f"{form}-{runs}-{config.examples}-{turn}.json"
                if not file.exists():
                    file.write_text(json.dumps(cost(form, runs, config.examples)))
                if turn >= 0:
                    found[:, i, j, turn] = json.loads(file.read_text())
    dims = ("form", "runs", "turn")
    names = ("seconds", "peak", "rewriting")
    data = xr.Dataset(
        {name: (dims, one) for name, one in zip(names, found, strict=True)},
        {"form": [*FORMS], "runs": list(config.runs)},
        {"limit": config.limit},
    )
    return {"costs": data}


def expected(config: Config) -> dict[str, Expected]:
    """Memory within the limit, and each run at the same price."""
    fewer, many, most = config.runs[-3:]
    limit = config.limit / 1e9
    return {
        "memory": Expected(
            f"{most:,} runs stay within {limit:g} GB",
            below(limit, why="the goal"),
            Control("jit(vmap(scan)) does not", above(limit, why="it holds every run at once")),
            kind="goal",
            source="a goal set beforehand",
            estimator="peak resident memory of the process, GB",
            vary="turns",
        ),
        "time": Expected(
            "seconds are a + b n: a further run costs the same, however many there are",
            between(0.8, 1.25, why="a fifth for the machine's noise", predicted=1.0),
            Control(
                "results rewritten each thousand runs: it costs ever more",
                above(1.25, why="outside of the band above"),
            ),
            kind="goal",
            source="a goal set beforehand",
            estimator=f"seconds a run between {many:,} and {most:,} runs, over those between "
            f"{fewer:,} and {many:,}, same turn",
            vary="turns",
            scale="log",
        ),
    }


def growth(seconds: xr.DataArray) -> xr.DataArray:
    """A further run's price between the two largest sizes, over that between the two before."""
    prices = seconds.diff("runs") / seconds.runs.diff("runs")
    return prices.isel(runs=-1) / prices.isel(runs=-2)


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Peak memory at the most runs, and the growth of a run's price."""
    costs = data["costs"]
    peak, engine = costs.peak.isel(runs=-1) / 1e9, costs.sel(form="sweep")
    return {
        "memory": (peak.sel(form="sweep"), peak.sel(form="vmap")),
        "time": (growth(engine.seconds), growth(engine.seconds + engine.rewriting)),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Time and peak memory against the number of runs."""
    costs = data["costs"].rename(turn="seed")
    with panels(2, ratio=0.8) as (result, (time, memory)):
        for (form, label), style in zip(FORMS.items(), STYLES, strict=False):
            at = costs.sel(form=form)
            points(time, at.seconds, log=True, label=label, **style)
            points(memory, at.peak / 1e9, log=True, label=label, **style)
        kept = costs.sel(form="sweep").seconds + costs.sel(form="sweep").rewriting
        points(time, kept, log=True, label="results rewritten", **STYLES[2])
        engine = costs.sel(form="sweep").mean("seed")
        b, a = np.polyfit(engine.runs, engine.seconds, 1, w=1 / engine.seconds)
        n = np.geomspace(int(costs.runs[0]), int(costs.runs[-1]), 50)
        time.plot(n, a + b * n, color="0.3", lw=0.8, zorder=1, label="a + b n")
        theory_line(memory, costs.limit / 1e9, label="limit")
        for axes, said in ((time, "seconds, tracing included"), (memory, "peak memory / GB")):
            axes.set(xscale="log", yscale="log", xlabel="runs", ylabel=said)
            axes.minorticks_off()
            key(axes, columns=2)
        time.set_yticks([2, 5, 10, 20, 50], labels=["2", "5", "10", "20", "50"])
        memory.set_yticks([0.5, 1, 2], labels=["0.5", "1", "2"])
    return result


if __name__ == "__main__":
    main(__name__)
