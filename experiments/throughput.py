"""Training many small networks while measuring them: the engine against what people use instead.

Reference sweeps of real training problems on real data, from a tiny minibatch MLP to a wide one
(`lab/peers/problems.py`); the sixth, (f), measures sharpness on the way. The
engine, `jit(vmap(scan))`, `jit(scan)` run after run, a Python loop over a jitted step, eager
PyTorch run after run and `torch.func` over stacked models do the same arithmetic: their losses are
compared before anything is timed. Each has a process of its own, under the flags that are fastest
for it, and they take turns, so that a noisy machine hits all alike.

    python -m experiments.throughput          # quick: (a), (b), contenders in JAX; 2 minutes
    python -m experiments.throughput paper    # (a) to (f); 60 minutes

PyTorch comes with `pip install -e '.[peers]'`; absent, its claims are inconclusive.

A turn's time is of the work alone, without compilation and tracing. Forms that go run after run are
timed on a few runs and scaled. A ratio is another form's time to the engine's in the same turn; the
control is the engine against itself, in a second process. Wall-clock times are not seeds of a
random draw: the interval is over turns.

Goals were set before the engine was tuned: geometric mean of the ratio to `jit(vmap(scan))` at
least 2 and none below 1; at least 3 times the best of PyTorch's forms, and 20 times eager PyTorch
on (b); at least 65% of the machine's sgemm peak on (a) and 80% on (c); the layout chosen within 15%
of the best found by timing; sharpness every 50 steps slows (a) by at most a third.

What came out, on two shared cores whose noise leaves many verdicts open: the mean is 1.92 (1.44 on
(c) to 2.3 on (b)), short of 2 by a twentieth. PyTorch's best takes 1.4 (c), 2.0 (a, d), 2.2 (e), 5
(f) and 7 times as long (b; eager 117): the goal of 3 is missed by a third, on (c) by half. 72% of
the peak on (a), 73% on (c). Sharpness cannot be told from free: -6% [-42%, 30%].

What stands in the way, by `jax.profiler`: the gradient of a hidden layer's weights, x^T d, is
refused by the fast library (YNNPACK) and runs at 57 to 85 GFLOP/s a core where the other products
run at 180 to 230; on (c) all forms wait for the same products. On (e) a single reduction takes 241
of a step's 1,120 us. Tried, and left out: data transposed once outside of the loop, with x^T d
written directly (4 to 8% on (a), 2 to 3% on (c)); YNNPACK off and 512-bit vectors (5 to 8% on (a),
(c), (d), nothing on (b), (e); the compiler option is experimental).
"""

import json
import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lab.claims import claim
from lab.experiment import main
from lab.peers.problems import problems
from lab.peers.race import PEAK_SIZE, Contender, available
from lab.plotting import OKABE_ITO, paper_style, theory_line
from lab.types import BadInput, Claim

FEWER = {"scan": 8, "loop": 4, "eager": 4, "func": 64}
"""Slow forms are timed on so many runs, and scaled; all but the last go run after run."""
LABELS = {
    "again": "the engine again (control)",
    "vmap": "jit(vmap(scan))",
    "scan": "jit(scan), run after run*",
    "loop": "loop over jitted step*",
    "eager": "PyTorch eager, run after run*",
    "func": "torch.func, stacked*",
}
COMPARED = 50
"""Steps over which losses are compared, of four runs."""
SHARES = {"a": 0.65, "c": 0.8}
"""Of the machine's sgemm peak, wanted where arithmetic is all."""
PRODUCTS = 200
"""Products of 1024 x 1024 matrices in a turn of the machine's peak."""


@dataclass(frozen=True)
class Config:
    """What is raced."""

    problems: str = "abcdef"
    """Letters of the reference sweeps; f is (a) with sharpness."""
    forms: tuple[str, ...] = ("vmap", "scan", "loop", "eager", "func")
    """What the engine is raced against."""
    turns: int = 5
    """Times that each contender is timed."""
    widths: tuple[int, ...] = (1, 4, 16, 64)
    """Block widths that are timed to judge the engine's choice."""
    shrink: int = 1
    """Divides the number of runs, for a trial."""


PRESETS = {
    "quick": Config(problems="ab", forms=("vmap", "scan"), turns=3, widths=(), shrink=4),
    "paper": Config(),
}


def run(config: Config, store: Path) -> xr.Dataset:
    """Race by race; one that is in the store is not run again.

    Raises:
        BadInput: an unknown problem or form, no turn, or a store of races of another kind.
    """
    for name, given, known in (
        ("problems", config.problems, problems()),
        ("forms", config.forms, LABELS.keys() - {"again"}),
    ):
        for one in set(given) - set(known):
            raise BadInput(f"{name}: {one!r} is not one of {', '.join(sorted(known))}")
    for name, value in (("turns", config.turns), ("shrink", config.shrink)):
        if value < 1:
            raise BadInput(f"{name}: {value} is not a positive int")
    store.mkdir(parents=True, exist_ok=True)
    kind = json.loads(json.dumps(asdict(replace(config, problems=""))))
    races = []
    for letter in config.problems:
        file = store / f"{letter}.json"
        if not file.exists():
            file.write_text(json.dumps({"config": kind, **raced(letter, config)}))
        races.append(json.loads(file.read_text()))
        if races[-1]["config"] != kind:
            raise BadInput(f"store: {file} is a race of another config; start over")
    absent = [math.nan] * config.turns
    names = sorted({name for race in races for name in race["seconds"]} | {*config.forms})
    widths = [[race["widths"].get(str(w), absent) for w in config.widths] for race in races]
    variables: dict[str, Any] = {
        f"seconds_{name}": (
            ("problem", "turn"),
            [race["seconds"].get(name, absent) for race in races],
        )
        for name in names
    }
    for name in names:
        differs = [race["differs"].get(name, math.nan) for race in races]
        variables[f"differs_{name}"] = ("problem", differs)
    for name in ("runs", "other_seed", "eigsh", "chosen"):
        variables[name] = ("problem", [race[name] for race in races])
    by_width = np.reshape(widths, (len(races), len(config.widths), -1))
    variables["seconds_width"] = (("problem", "width", "again"), by_width)
    notes = {letter: race["notes"] for letter, race in zip(config.problems, races, strict=True)}
    return xr.Dataset(
        variables,
        {"width": list(config.widths)},
        {
            "problems": config.problems,
            "forms": json.dumps(config.forms),
            "shrink": config.shrink,
            "notes": json.dumps(notes),
            "devices": notes[config.problems[0]]["sweep"],
        },
    )


def raced(letter: str, config: Config) -> dict[str, Any]:
    """One reference sweep: what each contender's turns took, for all runs, and what it computed."""
    problem = problems()[letter]
    runs = max(4, problem.runs // config.shrink)
    forms = [f for f in config.forms if available(f) and not (f == "func" and problem.sharpness)]
    wanted = {"sweep": "sweep", "again": "sweep", **{form: form for form in forms}}
    if letter in SHARES:
        wanted["peak"] = "peak"
    if problem.sharpness:  # what measuring costs: the same without it
        wanted |= {"plain": "sweep"} | ({"plain_eager": "eager"} if "eager" in forms else {})
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    first, last = {}, {}
    with ExitStack() as stack:
        racing = {}
        for name, form in wanted.items():
            on = "a" if name.startswith("plain") else letter
            racing[name] = stack.enter_context(Contender(form, on))
            first[name] = racing[name].turn(COMPARED, 4)
        for i in range(config.turns + 1):
            for name, form in wanted.items():
                few = 1 if form == "peak" else min(runs, FEWER.get(form, runs))
                steps = PRODUCTS if form == "peak" else problem.steps
                last[name] = racing[name].turn(steps, few)
                if i:  # the first turn compiles
                    seconds[name].append(last[name].seconds * (1 if form == "peak" else runs / few))
    reference = first["sweep"].records
    shifted = {"loss": [*reference["loss"][1:], reference["loss"][0]]}
    compared = {n: done.records for n, done in first.items() if "loss" in done.records}
    return {
        "runs": runs,
        "seconds": seconds,
        "notes": {name: done.note for name, done in last.items()},
        "differs": {
            name: difference(records["loss"], reference["loss"])
            for name, records in compared.items()
            if not name.startswith("plain")
        },
        "other_seed": difference(shifted["loss"], reference["loss"]),
        "eigsh": difference(compared["eager"]["sharpness"], reference["sharpness"])
        if problem.sharpness and "eager" in forms
        else math.nan,
        "chosen": int(last["sweep"].note.split()[-1]),
        "widths": timed_widths(letter, config, runs),
    }


def timed_widths(letter: str, config: Config, runs: int) -> dict[int, list[float]]:
    """Seconds of the engine by block width, turn about; widths that leave a core idle are left out.

    The first turn compiles, and is not counted.
    """
    widths = [width for width in config.widths if 2 * width <= runs]
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    with ExitStack() as stack:
        racing = {}
        for width in widths:
            contender = Contender("sweep", letter, layout={"width": width})
            racing[width] = stack.enter_context(contender)
            racing[width].turn(problems()[letter].steps, runs)
        for _ in range(config.turns):
            for width in widths:
                turn = racing[width].turn(problems()[letter].steps, runs)
                seconds[width].append(turn.seconds)
    return seconds


def difference(one: list[list[float]], other: list[list[float]]) -> float:
    """The largest relative difference, where the other is finite."""
    a, b = np.array(one), np.array(other)
    finite = np.isfinite(b)
    return float(np.max(np.abs(a[finite] - b[finite]) / np.abs(b[finite])))


def claims(data: xr.Dataset) -> list[Claim]:
    """The goals; what was not raced is inconclusive."""
    letters = list(data.problems)
    ratios = {form: ratio(data, form) for form in (*json.loads(data.forms), "again")}
    found = [agreement(data)]
    if "vmap" in ratios:
        found.append(
            times(
                "jit(vmap(scan)) takes at least twice as long (geometric mean over the sweeps)",
                np.exp(np.log(ratios["vmap"].values).mean(0)),
                ratios["again"].mean("problem").values,
                least=2.0,
            )
        )
        found += [
            times(
                f"({letter}) jit(vmap(scan)) is not faster",
                ratios["vmap"].isel(problem=i).values,
                ratios["again"].isel(problem=i).values,
                least=1.0,
            )
            for i, letter in enumerate(letters)
        ]
    if {"eager", "func"} & {*ratios}:
        torch = [ratios[form] for form in ("eager", "func") if form in ratios]
        best = xr.concat(torch, "form").min("form")
        found += [
            times(
                f"({letter}) the best of PyTorch's forms takes at least 3 times as long",
                best.isel(problem=i).values,
                ratios["again"].isel(problem=i).values,
                least=3.0,
            )
            for i, letter in enumerate(letters)
        ]
    if "eager" in ratios and "b" in letters:
        at = letters.index("b")
        found.append(
            times(
                "(b) eager PyTorch takes at least 20 times as long",
                ratios["eager"].isel(problem=at).values,
                ratios["again"].isel(problem=at).values,
                least=20.0,
            )
        )
    found += [share(data, letter, least) for letter, least in SHARES.items() if letter in letters]
    if data.sizes["width"]:
        found += [layout(data, i) for i in range(len(letters))]
    return [*found, *(measuring(data, letters.index("f")) if "f" in letters else [])]


def ratio(data: xr.Dataset, form: str) -> xr.DataArray:
    """Seconds of a form to those of the engine in the same turn."""
    return data[f"seconds_{form}"] / data.seconds_sweep


WALL = partial(claim, source="a goal set before tuning; measured side by side", seeds="turns")


def times(statement: str, values: np.ndarray, again: np.ndarray, *, least: float) -> Claim:
    """A claim that another form takes at least so many times as long as the engine."""
    ratio = partial(WALL, estimator="seconds of the form to seconds of the engine, same turn")
    control = ratio(
        "the engine in a second process takes as long as in the first",
        again,
        predicted=1.0,
        tolerance=(0.8, 1.25),
        why="the same work in the same turn; what remains is the machine's noise",
    )
    return ratio(
        statement,
        values,
        predicted=None,
        tolerance=(least, math.inf),
        why="the goal",
        control=control,
    )


def agreement(data: xr.Dataset) -> Claim:
    """All contenders compute the same losses."""
    differs = partial(
        claim,
        source="the same arithmetic; batches and initial weights are JAX's own in every form",
        estimator="largest relative difference of the loss over 50 steps of four runs",
        seeds="reference sweeps",
    )
    forms = [f"differs_{form}" for form in json.loads(data.forms)]
    return differs(
        "every contender computes the same losses",
        np.array(
            [np.nanmax([data[f].values[i] for f in forms]) for i in range(len(data.problems))]
        ),
        predicted=0.0,
        tolerance=(-1e-4, 1e-4),
        why="float32 sums in another order; below the edge such errors do not grow",
        control=differs(
            "another seed's losses differ",
            data.other_seed.values,
            predicted=None,
            tolerance=(1e-2, math.inf),
            why="a hundred times what would pass",
        ),
    )


def share(data: xr.Dataset, letter: str, least: float) -> Claim:
    """The share of the machine's sgemm peak that the engine reaches."""
    i, problem = data.problems.index(letter), problems()[letter]
    work = problem.flops * problem.steps * data.runs.values[i]
    peak = 2.0 * PEAK_SIZE**3 * PRODUCTS / data.seconds_peak.values[i]
    reaches = partial(
        WALL,
        estimator="matrix arithmetic a second, to that of products of 1024 x 1024 on all cores",
    )
    return reaches(
        f"({letter}) the engine reaches {least:.0%} of the sgemm peak",
        work / data.seconds_sweep.values[i] / peak,
        predicted=None,
        tolerance=(least, 1.0),
        why="the goal",
        control=reaches(
            "run after run does not",
            work / data.seconds_scan.values[i] / peak,
            predicted=None,
            tolerance=(0.0, least),
            why="one run at a time",
        )
        if "seconds_scan" in data
        else None,
    )


def layout(data: xr.Dataset, i: int) -> Claim:
    """The engine's choice of width, or the width timed that is nearest, against the best."""
    seconds = data.seconds_width[i].dropna("width", how="all")
    middle = seconds.median("again")
    best = seconds.isel(width=int(middle.values.argmin()))
    worst = seconds.isel(width=int(middle.values.argmax()))
    chosen = seconds.sel(width=data.chosen[i], method="nearest")
    timed = f"{int(data.chosen[i])}"
    if int(chosen.width) != int(data.chosen[i]):
        timed += f" (timed: {int(chosen.width)})"
    slower = partial(WALL, estimator="seconds at the width to those at the best, same turn")
    return slower(
        f"({data.problems[i]}) the width chosen, {timed}, is within 15% of the best, "
        f"{int(best.width)}",
        (chosen / best).values,
        predicted=None,
        tolerance=(0.85, 1.15),
        why="the goal; a choice as good as the best may be faster in some turns",
        control=slower(
            f"the worst, {int(worst.width)}, is not",
            (worst / best).values,
            predicted=None,
            tolerance=(1.15, math.inf),
            why="or there would be nothing to choose",
        ),
    )


def measuring(data: xr.Dataset, i: int) -> list[Claim]:
    """What sharpness every 50 steps costs."""
    slower = partial(WALL, estimator="seconds of (f) to seconds of (a), minus 1, same turn")
    cost = (data.seconds_sweep / data.seconds_plain - 1).values[i]
    return [
        slower(
            "sharpness every 50 steps slows (a) by at most a third",
            cost,
            predicted=None,
            tolerance=(-0.1, 1 / 3),
            why="the goal; noise may make it negative",
            control=slower(
                "eigsh in PyTorch slows it by more",
                (data.seconds_eager / data.seconds_plain_eager - 1).values[i],
                predicted=None,
                tolerance=(1 / 3, math.inf),
                why="the same measure as it is usually taken",
            )
            if "seconds_plain_eager" in data
            else None,
        )
    ]


def figure(data: xr.Dataset) -> Figure:
    """How many times as long each form takes, and the widths timed, the engine's choice marked."""
    with paper_style("neurips", columns=2, ratio=0.9):
        result, (left, right) = plt.subplots(1, 2)
        letters = list(data.problems)
        forms = [form for form in LABELS if f"seconds_{form}" in data]
        places = np.arange(len(letters))[::-1]
        for form, colour, offset in zip(
            forms, OKABE_ITO, np.linspace(0.3, -0.3, len(forms)), strict=False
        ):
            values = ratio(data, form)
            middle = values.median("turn")
            low, high = middle - values.min("turn"), values.max("turn") - middle
            left.errorbar(
                middle, places + offset, xerr=[low, high], fmt="o", ms=2.5, color=colour,
                elinewidth=0.8, label=LABELS[form],
            )  # fmt: skip
        left.set(
            xscale="log",
            xlabel="time / time of the engine (*: scaled from fewer runs)",
            yticks=places,
        )
        left.set_yticklabels([f"({letter})" for letter in letters])
        left.axvline(1, color="0.3", linewidth=0.8, linestyle=(0, (4, 2)))
        left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="x-small")
        for i, (letter, colour) in enumerate(zip(letters, OKABE_ITO, strict=False)):
            if not data.sizes["width"]:
                break
            middle = data.seconds_width[i].median("again")
            slower = middle / middle.min()
            right.plot(data.width, slower, color=colour, marker=".", ms=3, label=f"({letter})")
            chosen = slower.sel(width=data.chosen[i], method="nearest")
            right.plot(chosen.width, chosen, "o", ms=6, mfc="none", color=colour)
        theory_line(right, 1.15)
        right.set(
            xscale="log", xlabel="runs in a block (circle: nearest to choice)", ylabel="time / best"
        )
        right.set_xscale("log", base=2)
        right.legend(
            ncols=5,
            columnspacing=0.8,
            handlelength=1.0,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
        )
    return result


def tables(data: xr.Dataset) -> dict[str, Any]:
    """Medians for the json: seconds, by form and by width, and what each contender noted."""
    rows = list(data.problems)
    forms = [str(name) for name in data.data_vars if data[name].dims == ("problem", "turn")]
    return {
        "problems": {letter: problems()[letter].title for letter in rows},
        "median seconds": {
            letter: {f.removeprefix("seconds_"): float(data[f][i].median()) for f in forms}
            for i, letter in enumerate(rows)
        },
        "median seconds by width": {
            letter: dict(zip(map(str, data.width.values), medians, strict=True))
            for letter, medians in zip(
                rows, data.seconds_width.median("again").values.tolist(), strict=True
            )
        },
        "sharpness, largest difference from eigsh": dict(
            zip(rows, data.eigsh.values.tolist(), strict=True)
        ),
        "width chosen": dict(zip(rows, data.chosen.values.tolist(), strict=True)),
        "notes": json.loads(data.notes),
    }


if __name__ == "__main__":
    main(__name__)
