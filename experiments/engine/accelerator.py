"""On an accelerator a sweep is exact, survives a kill, and is never slower than jit(vmap(scan)).

Sections run in processes of their own and are kept as they finish; what did not fit into the time
is said to be not measured. (1) Objectives, curvature, optimisers and a closed form in float32 on
the device, against float64 on the host. (2) The edge of stability's quick preset. (3) Seconds of a
member's step of the reference sweeps (`lab.peers.problems`), from 1 to 65,536 runs: the engine,
jit(vmap(scan)), jit(scan), PyTorch eager, compiled and stacked, turn about, without compilation,
all in float32 without TF32; rivals under default options, the engine under deterministic ones.
(4) What sharpness every 50 steps costs. (5) A stored sweep, killed twice and resumed.

    python -m experiments accelerator          # quick: (a), (b); three minutes on a GPU
    python -m experiments accelerator paper    # (a) to (f); six minutes; writes figures/

Expect errors of some units of float32's epsilon (of optimisers a hundred), the same bytes after
kills, and 1,024 small networks at least 50 times as fast as one after another in eager PyTorch.

Needs JAX for the accelerator (pip install '.[cuda]'). On a CPU alone it runs at toy size, and
proves nothing. Goals were set before anything was timed; a turn is no random draw, so that
intervals over turns tell a difference from the machine's noise and no more.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.claims import NOTHING, Control, Expected, Measured, about, above, below, between
from lab.experiment import main
from lab.peers import check
from lab.plotting import STYLES, key, panels, theory_line
from lab.types import BadInput

TOLERANCES = {
    "objectives": (30.0, "sums of a thousand terms, exponentials and logarithms"),
    "curvature": (60.0, "twenty products with the Hessian, orthogonalised"),
    "optimisers": (1000.0, "Adam divides by gradients that vanish, 300 times"),
    "closed forms": (60.0, "300 steps, each of which forgets part of the last one's error"),
}
NAMES = {
    "sweep": "the engine", "vmap": "jit(vmap(scan))", "scan": "jit(scan), one by one",
    "func": "torch.func", "eager": "PyTorch eager, one by one",
    "compiled": "torch.compile, one by one",
}  # fmt: skip
SECTIONS = ("accuracy", "edge", "resumed")
MANY = 1024  # The runs at which single numbers are read off.


@dataclass(frozen=True)
class Config:
    """What is run."""

    problems: str = "abcdef"  # Reference sweeps; (f) is (a) with sharpness.
    runs: tuple[int, ...] = (1024, 128, 16, 8192, 1, 65536)  # In this order, while time lasts.
    together: int = 2  # How many of them compile at the same time.
    turns: int = 8  # How often each contender is timed.
    steps: int = 600  # At most, of a run that is timed.
    seeds: int = 8  # Draws that errors are measured on.
    edge: bool = True  # Whether the edge of stability is run.
    seconds: float = 330.0  # All that it may take.


PRESETS = {"quick": Config(problems="ab", runs=(1024, 128), seconds=170.0), "paper": Config()}
TOY = {"problems": "b", "runs": (1, 4), "steps": 20, "edge": False}


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Section by section; on a CPU alone at toy size.

    Raises:
        BadInput: the paper preset without an accelerator, whose figure it would overwrite.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the sections need it
    if jax.default_backend() == "cpu":
        if config == PRESETS["paper"]:
            raise BadInput("paper: JAX sees no accelerator; quick runs at toy size on a CPU")
        print("JAX sees no accelerator: a CPU alone, so at toy size")
        config = replace(config, **TOY)
    groups = [
        config.runs[i : i + config.together] for i in range(0, len(config.runs), config.together)
    ]
    rest = {n: getattr(config, n) for n in ("turns", "steps", "seeds", "seconds", "edge")}
    return check.datasets(check.rows(store, letters=config.problems, groups=groups, **rest))


def expected(config: Config) -> dict[str, Expected]:
    """Exact, safe, and never slower."""
    goal: dict[str, Any] = {"kind": "goal", "source": "a goal set before timing", "vary": "turns"}
    again = Control(
        "the engine again takes as long as itself",
        between(0.8, 1.25, why="the same work in the same turn: what remains is noise"),
    )
    ratio = "seconds of the form to those of the engine, a member's step, same turn"
    return {
        **{
            name: Expected(
                f"{name} in float32 err by at most {most:g} eps",
                below(most, why=why),
                Control("inputs of TF32's ten bits err by more", above(most, why="or both would")),
                kind="closed form",
                source="float64 on the host",
                estimator="largest relative error, in units of float32's epsilon",
                vary="draws of weights and data",
                scale="log",
            )
            for name, (most, why) in TOLERANCES.items()
        },
        "edge": Expected(
            "of the edge of stability's quick preset no claim fails",
            below(0.5, why="none is none"),
            Control("held against its controls' values one does", above(0.5, why="one or more")),
            kind="direction",
            source="experiments edge_of_stability",
            estimator="claims whose interval lies outside their band",
            vary=NOTHING,
        ),
        "resumed": Expected(
            "killed twice and resumed, a store holds the same bytes",
            about(0.0, within=0.5, why="bytes are the same or not"),
            Control("with other seeds they differ", above(0.5, why="one file or more")),
            kind="direction",
            source="the engine's contract",
            estimator="files that differ from those of a store never killed",
            vary=NOTHING,
        ),
        "eager": Expected(
            f"(b) {MANY:,} runs: eager PyTorch takes at least 50 times as long, one by one",
            above(50.0, why="the goal"), again, estimator=ratio, scale="log", **goal,
        ),
        **{
            f"vmap {letter}": Expected(
                f"({letter}) jit(vmap(scan)) is not faster, in the mean over numbers of runs",
                above(1.0, why="the goal"), again, scale="log",
                estimator=f"{ratio}; geometric mean", **goal,
            )
            for letter in config.problems
        },
        **{
            f"width {letter}": Expected(
                f"({letter}) all runs at once, as chosen, are within 15% of the best width",
                below(1.15, why="the goal"),
                Control("the fewest at once are not", above(1.15, why="or width would not matter")),
                estimator="seconds of a member's step at the width to those at the best, same turn",
                scale="log", **goal,
            )
            for letter in config.problems
        },
        **{
            "sharpness": Expected(
                f"sharpness every 50 steps slows (a) by at most a third at {MANY:,} runs",
                below(4 / 3, why="the goal"),
                Control("eigsh in PyTorch slows it by more", above(4 / 3, why="the usual measure")),
                estimator="seconds of (f) to those of (a), same turn", scale="log", **goal,
            )
            for _ in [0] if {*"af"} <= {*config.problems}
        },
    }  # fmt: skip


def measured(data: dict[str, xr.Dataset]) -> dict[str, Measured]:
    """One value a draw, a turn or a check."""
    accuracy, edge, resumed, seconds = (*(data[n] for n in SECTIONS), data["rates"].seconds)
    found: dict[str, Measured] = {
        str(name): (one.error, one.control)
        for name in accuracy.quantity.values
        for one in [accuracy.sel(quantity=name)]
    }
    if edge.fails.size:
        found["edge"] = ([float(edge.fails.sum())], [float(edge.control_fails.sum())])
    if resumed.differs.size:
        found["resumed"] = (resumed.differs, resumed.control)
    for letter in seconds.problem.values.tolist():
        engine, again, vmap = check.whole(seconds.sel(problem=letter), "sweep", "again", "vmap")
        if engine.runs.size:
            vmap, again = (np.exp(np.log(one / engine).mean("runs")) for one in (vmap, again))
            found[f"vmap {letter}"] = (vmap, again)
        if engine.runs.size > 1:
            slower = engine / engine.isel(runs=int(engine.mean("turn").argmin()))
            found[f"width {letter}"] = (slower.isel(runs=-1), slower.isel(runs=0))
    eager = seconds.sel(form="eager").dropna("runs", how="all")
    if MANY in seconds.runs:
        engine, again = (seconds.sel(form=form, runs=MANY) for form in ("sweep", "again"))
        if "b" in eager.problem and eager.runs.size:
            at = engine.sel(problem="b")
            found["eager"] = (eager.sel(problem="b", runs=1) / at, again.sel(problem="b") / at)
        if {*"af"} <= {*eager.problem.values} and eager.runs.size:
            one = eager.sel(runs=1)
            found["sharpness"] = (
                engine.sel(problem="f") / engine.sel(problem="a"),
                one.sel(problem="f") / one.sel(problem="a"),
            )
    return found


tables = check.tables


def figure(data: dict[str, xr.Dataset]) -> Figure:
    """Speed, against rivals and the peak, by number of runs; errors by quantity."""
    seconds = data["rates"].seconds
    first = "b" if "b" in seconds.problem else str(seconds.problem[0].values)
    many, styles = check.middle(seconds), dict(zip("abcdef", STYLES, strict=False))
    with panels(2, rows=2, ratio=0.72) as (result, (speed, rivals, share, errors)):
        for style, (form, label) in zip(STYLES, NAMES.items(), strict=False):
            drawn(speed, 1 / many.sel(problem=first, form=form), label=label, **style)
        speed.set(ylabel=f"({first}): member-steps / s")
        key(speed, fontsize=6)
        reached = check.peak_share(data)
        for letter in seconds.problem.values.tolist():
            at = many.sel(problem=letter)
            ratio = at.sel(form="vmap") / at.sel(form="sweep")
            drawn(rivals, ratio, label=f"({letter})", **styles[letter])
            drawn(share, reached.sel(problem=letter), label=f"({letter})", **styles[letter])
        theory_line(rivals, 1.0)
        rivals.set(ylabel="time of jit(vmap(scan)) / engine's")
        share.set(ylabel="share of the float32 peak")
        for axes in (rivals, share):
            key(axes, columns=6, fontsize=6)
        for axes in (speed, rivals, share):
            axes.set(xscale="log", yscale="log", xlabel="runs")
        one = data["accuracy"]
        places = np.arange(one.quantity.size)
        for name, label, style in (
            ("error", "float32", STYLES[0]),
            ("control", "TF32's inputs", STYLES[1]),
        ):
            errors.plot(
                places, one[name].values, style["marker"], color=style["color"], ms=3, mfc="none"
            )
            errors.plot(
                [], [], style["marker"], color=style["color"], ms=3, mfc="none", label=label
            )
        levels = [TOLERANCES[name][0] for name in one.quantity.values]
        errors.plot(places, levels, "k_", ms=14, label="tolerance")
        errors.set(yscale="log", ylabel="largest error / eps")
        errors.set_xticks(places, [str(n).replace(" ", "\n") for n in one.quantity.values])
        key(errors, columns=3, fontsize=6)
    return result


def drawn(axes: Axes, values: xr.DataArray, **style: Any) -> None:
    """A line where there are values."""
    kept = values.dropna("runs")
    axes.plot(kept.runs, kept, markersize=3, **style)


if __name__ == "__main__":
    main(__name__)
