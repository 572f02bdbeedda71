"""The engine against jit(vmap(scan)), jit(scan), jitted loops and PyTorch on six reference sweeps.

Real training problems on real data, from a tiny minibatch MLP to a wide one (`peers.problems`); (f)
measures sharpness on the way. All contenders do the same arithmetic: their losses are compared
before anything is timed. Each has a process of its own, under the flags that are fastest for it,
and they take turns, so that a noisy machine hits all alike.

    python -m experiments throughput          # quick: (a), (b), contenders in JAX; 2 minutes
    python -m experiments throughput paper    # (a) to (f); 20 quiet minutes; writes figures/

PyTorch comes with `pip install -e '.[peers]'`; absent, its claims are inconclusive.

Timed is the work alone, without tracing and compilation; forms that go run after run are timed on
a few runs and scaled. The engine has two processes: a ratio is another form's time to the geometric
mean of theirs in the same turn, its control the one's time to the other's. A turn is no random
draw: intervals over turns tell a difference from the machine's noise, no more.

Goals were set before the engine was tuned: geometric mean of the ratio to `jit(vmap(scan))` at
least 2, none below 1.4; at least twice the best of PyTorch's forms, and 20 times eager PyTorch on
(b); at least 80% of the machine's sgemm peak on (a) and (c); the layout chosen within 15% of the
best found by timing; sharpness every 50 steps slows (a) by at most a third.

What came out, on two cores: `jit(vmap(scan))` takes 2.12 times as long in the mean, from 1.59 (c)
and 1.7 (f) to 2.5 (d) and 2.8 (e). PyTorch's best takes 2.2 (d), 2.8 (c), 3.4 (a), 5.4 (b), 5.8 (e)
and 7.7 (f) times as long, eager 49 times on (b). 71% of the peak on (a): MISSED; 79.5% [78, 81] on
(c): inconclusive. The width chosen is within 15% of the best on (a) to (e); on (f) no width is
worse than another, so that there was nothing to choose. Sharpness every 50 steps slows (a) by half:
MISSED.

Where the time goes, by `jax.profiler`, as shares of a step. (c): 81% in five large products at 234
to 240 of 245 GFLOP/s a core, 5% in turning a gradient, 8% in tanh: no more is to be had from
products. (a): three quarters in products; the rest is tanh and copies. (d): a quarter in products
of 9 and 8 columns, which are bound by memory, an eighth in gathering shifted images, the rest in
other products, pooling, ReLU and their gradients. (e): about a third in products, a tenth in
softmax's gradient, the largest kernel; the others are some sixty kernels of 5 to 70 us. What
helped: gradients by weights as products that YNNPACK takes (`lab.sweep.linalg`), 1.05 (c), 1.1 (a),
1.3 (e); XLA's optimisation level 1 instead of 3, 1.1 (d, e) and 1.2 (b), at half of the compilation
time. Left out: YNNPACK off (0.6 on e, 0.9 on d), other widths (1.02 at best).

More than 200 lines because six kinds of goals belong to one race of one machine.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.engine.peers.problems import problems
from experiments.engine.peers.race import PEAK_SIZE
from experiments.engine.peers.turns import PRODUCTS, raced, racing_of
from lab.claims import Band, Control, Expected, Measured, above, below, between
from lab.experiment import main
from lab.plotting import STYLES, key, panels, points, theory_line
from lab.types import BadInput

LETTERS = "abcdef"
FORMS = {
    "vmap": "jit(vmap(scan))",
    "scan": "jit(scan)*",
    "loop": "loop, jitted step*",
    "eager": "PyTorch eager*",
    "func": "torch.func*",
}
SHARES = {"a": 0.8, "c": 0.8}
"""Of the machine's sgemm peak, wanted where arithmetic is all."""


@dataclass(frozen=True)
class Config:
    """What is raced."""

    problems: str = LETTERS
    """Letters of the reference sweeps; f is (a) with sharpness."""
    forms: tuple[str, ...] = ("vmap", "scan", "loop", "eager", "func")
    """What the engine is raced against."""
    turns: int = 10
    """How often each contender is timed."""
    widths: tuple[int, ...] = (1, 4, 16, 64)
    """Block widths that are timed to judge the engine's choice."""
    shrink: int = 1
    """Divides the number of runs, for a trial."""

    def __post_init__(self) -> None:
        """Refuses no problem, an unknown problem or form, and no turn."""
        for name, given, known in (
            ("problems", self.problems, LETTERS),
            ("forms", self.forms, FORMS),
        ):
            for one in set(given) - set(known):
                raise BadInput(f"{name}: {one!r} is not one of {', '.join(sorted(known))}")
        if not self.problems:
            raise BadInput(f"problems: none given; give some of {', '.join(LETTERS)}")
        for name, value in (("turns", self.turns), ("shrink", self.shrink)):
            if value < 1:
                raise BadInput(f"{name}: {value} is not a positive int")


PRESETS = {
    "quick": Config(problems="ab", forms=("vmap", "scan"), turns=5, widths=(), shrink=4),
    "paper": Config(),
}


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Race by race; one that is in the store is not run again.

    Raises:
        BadInput: a store of races of another kind.
    """
    store.mkdir(parents=True, exist_ok=True)
    kind = json.loads(json.dumps(asdict(config) | {"problems": ""}))
    races: dict[str, dict[str, Any]] = {}
    for letter in config.problems:
        file = store / f"{letter}.json"
        if not file.exists():
            asked = {name: value for name, value in asdict(config).items() if name != "problems"}
            file.write_text(json.dumps({"config": kind, **raced(letter, **asked)}))
        races[letter] = json.loads(file.read_text())
        if races[letter]["config"] != kind:
            raise BadInput(f"store: {file} is a race of another config; start over")
    names = dict.fromkeys(name for race in races.values() for name in race["seconds"])
    absent = [math.nan] * config.turns
    seconds = [[race["seconds"].get(name, absent) for name in names] for race in races.values()]
    differs = [[race["differs"].get(name, math.nan) for name in names] for race in races.values()]
    single = {
        name: ("problem", [race[name] for race in races.values()])
        for name in ("runs", "chosen", "other_seed")
    }
    eigsh = [math.nan if race["eigsh"] is None else race["eigsh"] for race in races.values()]
    data = xr.Dataset(
        {
            "seconds": (("problem", "form", "turn"), seconds),
            "differs": (("problem", "form"), differs),
            "eigsh": ("problem", eigsh),
            **single,
        },
        {"problem": [*races], "form": [*names]},
        {
            "notes": json.dumps({letter: race["notes"] for letter, race in races.items()}),
            "devices": next(iter(races.values()))["notes"]["sweep"],
        },
    )
    return {"races": data}


def expected(config: Config) -> dict[str, Expected]:
    """The goals, as far as what they speak of is raced."""
    letters, forms = config.problems, {*config.forms}
    torch = bool({"eager", "func"} & forms)
    of_form = "seconds of the form to those of the engine, same turn"
    again = Control(
        "one process of the engine takes as long as the other",
        between(0.8, 1.25, why="the same work in the same turn: what remains is noise"),
    )

    def slower(said: str, least: float, estimator: str = of_form) -> Expected:
        return goal(said, above(least, why="the goal"), again, estimator)

    losses = Expected(
        "every contender computes the same losses",
        below(1e-4, why="float32 sums in another order; such errors do not grow"),
        Control("another seed's losses differ", above(1e-2, why="a hundred times as much")),
        kind="goal",
        source="the same arithmetic; batches and initial weights are JAX's own in every form",
        estimator="largest relative difference of the loss over 50 steps of four runs",
        vary="reference sweeps",
        scale="log",
    )
    twice = "jit(vmap(scan)) takes at least twice as long, in the mean over the sweeps"
    eager = slower("(b) eager PyTorch takes at least 20 times as long", 20.0)
    sharpness = goal(
        "sharpness every 50 steps slows (a) by at most a third",
        below(4 / 3, why="the goal"),
        Control("eigsh in PyTorch slows it by more", above(4 / 3, why="the usual way")),
        "seconds of (f) to those of as many runs and steps of (a), same turn",
    )
    rows = [
        (True, "agreement", losses),
        ("vmap" in forms, "vmap", slower(twice, 2.0, f"{of_form}; geometric mean")),
        ("eager" in forms and "b" in letters, "eager", eager),
        ("eager" in forms and "f" in letters, "sharpness", sharpness),
    ]
    for at in letters:
        vmap = slower(f"({at}) jit(vmap(scan)) takes at least 1.4 times as long", 1.4)
        best = slower(f"({at}) the best of PyTorch's forms takes at least twice as long", 2.0)
        share = SHARES.get(at, 1.0)
        peak = goal(
            f"({at}) the engine reaches {share:.0%} of the sgemm peak",
            between(share, 1.0, why="the goal"),
            Control("run after run does not", below(share, why="one at a time")),
            "matrix arithmetic a second, to that of products of 1024 x 1024 on all cores",
        )
        width = goal(
            f"({at}) the width chosen is within 15% of the best",
            below(1.15, why="the goal"),
            Control("the worst is not", above(1.15, why="or nothing is there to choose")),
            "seconds at the width to those at the best, which is told by the other turns",
        )
        rows += [
            ("vmap" in forms, f"vmap {at}", vmap),
            (torch, f"torch {at}", best),
            (at in SHARES and "scan" in forms, f"peak {at}", peak),
            (bool(config.widths), f"width {at}", width),
        ]
    return {name: one for wanted, name, one in rows if wanted}


def goal(statement: str, band: Band, control: Control, estimator: str) -> Expected:
    """A claim of speed."""
    source = "a goal set before tuning"
    return Expected(statement, band, control, "goal", source, estimator, "turns", scale="log")


def engine(races: xr.Dataset) -> xr.DataArray:
    """Seconds of the engine: the geometric mean of its two processes, by problem and turn."""
    both = races.seconds.sel(form=["sweep", "again"])
    return both.prod("form") ** 0.5


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """One value a turn; a form that is not installed has none."""
    races = data["races"]
    seconds, own = races.seconds, engine(races)
    forms, letters = races.form.values.tolist(), races.problem.values.tolist()
    again = seconds.sel(form="again") / seconds.sel(form="sweep")
    compared = races.differs.sel(form=racing_of(forms))
    found: dict[str, Measured] = {"agreement": (compared.max("form"), races.other_seed)}
    if "vmap" in forms:
        ratio = seconds.sel(form="vmap") / own
        found["vmap"] = (mean(ratio), mean(again))
        found |= {f"vmap {at}": (ratio.sel(problem=at), again.sel(problem=at)) for at in letters}
    if torch := [form for form in ("eager", "func") if form in forms]:
        best = seconds.sel(form=torch).min("form") / own
        found |= {f"torch {at}": (best.sel(problem=at), again.sel(problem=at)) for at in letters}
    if "eager" in forms and "b" in letters:
        ratio = seconds.sel(form="eager") / own
        found["eager"] = (ratio.sel(problem="b"), again.sel(problem="b"))
    for at in {*SHARES} & {*letters} if "scan" in forms else ():
        one, problem = races.sel(problem=at), problems()[at]
        work = problem.flops * problem.steps * one.runs
        peak = 2.0 * PEAK_SIZE**3 * PRODUCTS / one.seconds.sel(form="peak")
        alone = work / one.seconds.sel(form="scan") / peak
        found[f"peak {at}"] = (work / own.sel(problem=at) / peak, alone)
    if any(form.startswith("width") for form in forms):
        found |= {f"width {at}": to_best(races.sel(problem=at)) for at in letters}
    if {"plain", "plain_eager"} <= {*forms}:
        one = seconds.sel(problem="f")
        eager = one.sel(form="eager") / one.sel(form="plain_eager")
        found["sharpness"] = (one.sel(form="sweep") / one.sel(form="plain"), eager)
    return found


def mean(ratios: xr.DataArray) -> xr.DataArray:
    """Geometric, over the sweeps."""
    return ratios.prod("problem") ** (1 / ratios.sizes["problem"])


def by_width(race: xr.Dataset) -> xr.DataArray:
    """Seconds of the widths that were timed, by width and turn; of the chosen, the second process.

    The first process is what the choice is judged by.
    """
    names = [str(name) for name in race.form.values if str(name).startswith("width")]
    widths = {int(name.split()[1]): race.seconds.sel(form=name) for name in names}
    widths[int(race.chosen)] = race.seconds.sel(form="again")
    timed = [widths[width].values for width in sorted(widths)]
    found = xr.DataArray(timed, {"width": sorted(widths)}, ("width", "turn"))
    return found.dropna("width")


def to_best(race: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The chosen width and the worst against the best, which the other turns tell, by turn."""
    timed, chosen = by_width(race), race.seconds.sel(form="sweep").values
    ratios = []
    for turn in range(timed.sizes["turn"]):
        others = timed.drop_isel(turn=turn).median("turn").values
        now = timed.isel(turn=turn).values
        best, worst = now[others.argmin()], now[others.argmax()]
        ratios.append((chosen[turn] / best, worst / best))
    of_chosen, of_worst = np.transpose(ratios)
    return of_chosen, of_worst


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """How many times as long each form takes; time by width, the engine's choice marked."""
    races = data["races"]
    letters, places = races.problem.values.tolist(), np.arange(races.sizes["problem"])
    own, forms = engine(races), [form for form in FORMS if form in races.form]
    with panels(2, ratio=0.9) as (result, (rivals, widths)):
        offsets = np.linspace(-0.3, 0.3, len(forms))
        for form, offset, style in zip(forms, offsets, STYLES, strict=False):
            ratio = (races.seconds.sel(form=form) / own).rename(turn="seed").dropna("problem")
            at = ratio.assign_coords(problem=places[np.isin(letters, ratio.problem)] + offset)
            points(rivals, at, log=True, label=FORMS[form], **{**style, "linestyle": "none"})
        theory_line(rivals, 1.0)
        rivals.set(yscale="log", ylabel="time / time of the engine", xlabel="reference sweep")
        rivals.set_xticks(places, labels=[f"({at})" for at in letters])
        ticks = [1, 2, 5, 10, 20, 50, 100]
        rivals.set_yticks(ticks, labels=map(str, ticks))
        rivals.minorticks_off()
        key(rivals, columns=2, title="*: scaled from fewer runs")
        for at, style in zip(letters, STYLES, strict=False):
            timed = by_width(races.sel(problem=at))
            slower = (timed / timed.median("turn").min()).rename(turn="seed")
            points(widths, slower, log=True, label=f"({at})", **style)
            chosen = slower.sel(width=int(races.chosen.sel(problem=at))).median()
            x = int(races.chosen.sel(problem=at))
            widths.plot(x, chosen, "o", ms=8, mfc="none", color=style["color"])
        theory_line(widths, 1.15)
        widths.set_xscale("log", base=2)
        widths.set(xlabel="runs in a block", ylabel="time / best width's")
        key(widths, columns=3, title="circle: the engine's choice")
    return result


def tables(data: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Medians for the json, and what each contender noted."""
    races = data["races"]
    median = races.seconds.median("turn").to_pandas().T
    return {
        "problems": {letter: problems()[letter].title for letter in races.problem.values.tolist()},
        "median seconds": {at: median[at].dropna().to_dict() for at in median},
        "sharpness, largest difference from eigsh": races.eigsh.to_series().dropna().to_dict(),
        "notes": json.loads(races.notes),
    }


if __name__ == "__main__":
    main(__name__)
