"""Runs from a hundred to a million, records and blocks: each further one at the price of the last.

Deep linear networks 64-16-10 on 5 of scikit-learn's digits, 200 full-batch steps, stored, of their
states none kept. Along each line one number grows: runs (a record every 20 steps), records of so
many runs, or blocks of 25 runs, each a job of two worker processes. Seconds (compilation included),
peak memory of the process that calls, and bytes on disk are to be a + b n: a is what it costs to
start, b the price of one more. Each measurement is a process of its own that compiles for itself.

    python -m experiments scale          # quick: to 15,000 runs; two to four minutes
    python -m experiments scale paper    # to a million, 13 quiet minutes; writes figures/

Claimed is the growth of b: the price between the two largest numbers over that between the two
before, 1 if costs are proportional beyond their constant part. The controls, by the same estimator,
are what scripts often do: results so far written anew, or all files of blocks read, after each
200th of them; and all such versions kept, in memory or on disk.

Expect 1.0 s + 154 us a run, 8.5 s + 9.6 ms a record of 50,000 runs, 2.0 s + 6.5 ms a block; on disk
70 bytes a run, 250 kB a record (5 bytes a run), 4.1 kB a block, each growing by 1.00 to 1.02. A
million runs take 156 s, 0.95 GB and 70 MB. That memory is a + b n in runs FAILS: it grows by less,
a further run costing an eighth of what it did (most is held once, whatever the runs). Times grow by
0.97, 0.5 and 1.05, which three turns cannot tell from the band; the control in records is no
control (1.0), since records hardly cost time. Turns are no random draw: intervals tell a difference
from the machine's noise, no more. Tolerances are those of `bounded_memory`, set before.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.engine.peers.memory import STEPS
from experiments.engine.peers.scaling import Cost, cost
from lab.claims import NOTHING, Control, Expected, Measured, above, between
from lab.experiment import main
from lab.plotting import STYLES, panels, points
from lab.types import BadInput

COSTS = {
    "seconds": (1.0, "time / s"),
    "peak": (1e6, "peak memory / MB"),
    "disk": (1e6, "disk / MB"),
}
"""Of a sweep: the unit it is drawn in, and the axis's name."""

CLAIMED = {
    "runs": ("seconds", "peak", "disk"),
    "records": ("seconds", "peak", "disk"),
    "blocks": ("seconds", "disk"),
}
"""By line; a block adds too little to its coordinator's memory to be told from noise."""


@dataclass(frozen=True)
class Config:
    """How many of each, and how often."""

    runs: tuple[int, ...] = (100, 1_000, 10_000, 100_000, 1_000_000)
    """Sizes of the sweep, ascending; claimed about are the last three, here and below."""
    records: tuple[int, ...] = (11, 51, 101, 201)
    """Records of each run, ascending; one less divides the 200 steps."""
    blocks: tuple[int, ...] = (20, 80, 320, 1_280)
    """Blocks given out as jobs, ascending."""
    of_runs: int = 50_000
    """Runs where records vary."""
    turns: int = 3
    """How often each is measured, in turn."""
    examples: int = 5
    """Digits in the training set."""

    def __post_init__(self) -> None:
        for line in CLAIMED:
            given = getattr(self, line)
            if len(given) < 3 or [1, *given] != sorted({1, *given}):
                raise BadInput(f"{line}: {given}; give three numbers or more, ascending from 2")
        for records in self.records:
            if STEPS % (records - 1):
                raise BadInput(f"records: {records}; give one more than a divisor of {STEPS}")
        for name in ("turns", "of_runs", "examples"):
            if (value := getattr(self, name)) < 1:
                raise BadInput(f"{name}: {value} is not a positive int")


SMALL = Config((1_000, 5_000, 15_000), (51, 101, 201), (20, 80, 160), of_runs=5_000)
PRESETS = {"quick": SMALL, "paper": Config()}


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Costs by line, number and turn; what the store holds is not measured again."""
    store.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[list[Cost]]] = {line: [] for line in CLAIMED}
    for turn in range(config.turns):
        for line, rows in found.items():
            numbers = getattr(config, line)
            rows.append([])
            for number in numbers:
                chunk = max(1, numbers[-1] // 200)
                asked = (line, number, chunk, config.examples, config.of_runs)
                file = store / f"{'-'.join(map(str, asked))}-{turn}.json"
                if not file.exists():
                    file.write_text(json.dumps(cost(*asked)))
                rows[-1].append(Cost(*json.loads(file.read_text())))
    data = {}
    for line, rows in found.items():
        costs = zip(Cost._fields, np.moveaxis(np.array(rows), -1, 0), strict=True)
        held = {name: (("turn", line), values) for name, values in costs}
        data[line] = xr.Dataset(held, {line: list(getattr(config, line))})
    return data


def expected(config: Config) -> dict[str, Expected]:
    """Each further one at the same price."""
    ways = {"seconds": "seconds are", "peak": "peak memory is", "disk": "disk is"}
    found = {}
    for line, costs in CLAIMED.items():
        fewer, many, most = getattr(config, line)[-3:]
        anew = "all blocks read" if line == "blocks" else "results written"
        for name in costs:
            said = f"{anew} anew" if name == "seconds" else f"all versions kept ({name})"
            found[f"{line}, {name}"] = Expected(
                f"{ways[name]} a + b n in {line}: a further one costs the same",
                between(0.8, 1.25, why="a fifth for the machine's noise", predicted=1.0),
                Control(
                    f"{said}: a further one of the {line} costs ever more",
                    above(1.25, why="outside of the band above"),
                ),
                kind="goal",
                source="a goal set beforehand",
                estimator=f"price of one more between {many:,} and {most:,} {line}, over that "
                f"between {fewer:,} and {many:,}, same turn",
                vary=NOTHING if name == "disk" else "turns",
                scale="log",
            )
    return found


def growth(costs: xr.DataArray, line: str) -> xr.DataArray:
    """A further one's price between the two largest numbers, over that between the two before."""
    prices = costs.diff(line) / costs[line].diff(line)
    ratio = prices.isel({line: -1}) / prices.isel({line: -2})
    return ratio.where((prices > 0).isel({line: slice(-2, None)}).all(line))


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """The growth of the price, of the sweep and of the other way."""
    found: dict[str, Measured] = {}
    for line, costs in data.items():
        versions = costs.peak + costs.again_bytes
        other = {"seconds": costs.again_seconds, "peak": versions, "disk": costs.again_bytes}
        for name in CLAIMED[line]:
            both = growth(costs[name], line), growth(other[name], line)
            first = both[0].isel(turn=[0]), both[1].isel(turn=[0])
            found[f"{line}, {name}"] = first if name == "disk" else both
    return found


def parts(costs: xr.DataArray, line: str) -> tuple[float, float]:
    """The constant part a and the price b of one more, by least squares of relative errors."""
    mean = costs.mean("turn")
    b, a = np.polyfit(mean[line], mean, 1, w=1 / mean)
    return float(a), float(b)


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Each cost along each line, with its a + b n above."""
    with panels(len(data), rows=len(COSTS), ratio=0.7) as (result, grid):
        for i, (name, (unit, said)) in enumerate(COSTS.items()):
            for j, (line, costs) in enumerate(data.items()):
                axes, at = grid[i * len(data) + j], costs[name].rename(turn="seed") / unit
                points(axes, at, log=True, **{**STYLES[j], "linestyle": "none"})
                (a, b), n = parts(costs[name], line), np.geomspace(at[line][0], at[line][-1], 50)
                axes.plot(n, (a + b * n) / unit, color="0.3", lw=0.8, zorder=1)
                form = EngFormatter(unit="s" if name == "seconds" else "B", places=1)
                axes.set_title(f"{form(a)} + {form(b)} n", fontsize=7)
                axes.set(xscale="log", yscale="log", ylabel="" if j else said)
                low, high = np.log10(at.min() / 2), np.log10(at.max() * 2)
                axes.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
                if line != "runs":
                    axes.set_xticks(at[line].values, labels=map(str, at[line].values))
                axes.minorticks_off()
                axes.set_xlabel(line if i == len(COSTS) - 1 else "")
    return result


def tables(data: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Of each line the constant part and the price of one more, in seconds or bytes."""
    return {f"{line}, {name}": parts(c[name], line) for line, c in data.items() for name in COSTS}


if __name__ == "__main__":
    main(__name__)
