"""On an accelerator a sweep is exact, survives a kill, and is never slower than jit(vmap(scan)).

Sections run in processes of their own and are kept as they finish; what did not fit into the time
is said to be not measured. (1) Objectives, curvature, optimisers and a closed form in float32 on
the device, against float64 on the host. (2) The edge of stability's quick preset. (3) Seconds of a
member's step of the reference sweeps (`peers.problems`), from 1 to 65,536 runs: the engine,
jit(vmap(scan)), jit(scan), PyTorch eager, compiled and stacked, turn about, without compilation,
all in float32 without TF32; rivals under default options, the engine under deterministic ones,
and jit(vmap(scan)) under these as well ("alike").
(4) What sharpness every 50 steps costs. (5) A stored sweep, killed twice and resumed.

    python -m experiments accelerator          # quick: (a), (b); three minutes on a GPU
    python -m experiments accelerator paper    # (a) to (f); six minutes; writes figures/

Expect errors of some units of float32's epsilon (of optimisers a hundred), the same bytes after
kills, and 1,024 small networks at least 50 times as fast as one after another in eager PyTorch.

Needs JAX for the accelerator (pip install '.[cuda]'). On a CPU alone it runs at toy size, and
proves nothing. Goals were set before anything was timed; a turn is no random draw, so that
intervals over turns tell a difference from the machine's noise and no more. More
than 200 lines because the five sections are one command, whose figure is of one machine.
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

from experiments.engine.peers import check
from lab.claims import NOTHING, Band, Control, Expected, Measured, about, above, below, between
from lab.experiment import main
from lab.plotting import STYLES, key, panels, theory_line
from lab.types import BadInput

TOLERANCES = {
    "objectives": (30.0, "sums of a thousand terms, exponentials and logarithms"),
    "curvature": (60.0, "twenty products with the Hessian, orthogonalised"),
    "optimisers": (1000.0, "Adam divides by gradients that vanish, 300 times"),
    "closed forms": (60.0, "300 steps, each of which forgets part of the last one's error"),
}
NAMES = {
    "sweep": "the engine",
    "vmap": "jit(vmap(scan))",
    "alike": "as deterministic",
    "func": "torch.func",
    "scan": "jit(scan)*",
    "eager": "PyTorch eager*",
    "compiled": "torch.compile*",
}
MANY = 1024  # The runs at which single numbers are read off.


@dataclass(frozen=True)
class Config:
    """What is run."""

    problems: str = "abcdef"  # Reference sweeps; (f) is (a) with sharpness.
    runs: tuple[int, ...] = (1024, 128, 16, 1, 8192, 65536)  # In this order, while time lasts.
    together: int = 4  # How many of the first compile at the same time; the others one by one.
    turns: int = 4  # How often each contender is timed.
    steps: int = 600  # At most, of a run that is timed.
    draws: int = 8  # Draws that errors are measured on.
    edge: bool = True  # Whether the edge of stability is run.
    seconds: float = 345.0  # All that it may take.


PRESETS = {"quick": Config(problems="ab", runs=(1024, 128), seconds=170.0), "paper": Config()}
TOY: dict[str, Any] = {"problems": "b", "runs": (1, 4), "steps": 20, "edge": False}


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Section by section; on a CPU alone at toy size.

    Raises:
        BadInput: the paper preset without an accelerator, whose figure it would overwrite.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the sections need it
    if jax.default_backend() == "cpu":
        if config == PRESETS["paper"]:
            raise BadInput("paper: JAX sees no accelerator; quick runs at toy size on a CPU")
        config = replace(config, **TOY)
    rest = {n: getattr(config, n) for n in ("turns", "steps", "draws", "seconds", "edge")}
    first, others = config.runs[: config.together], config.runs[config.together :]
    groups = [first, *((runs,) for runs in others)]
    return check.datasets(check.rows(store, letters=config.problems, groups=groups, **rest))


def expected(config: Config) -> dict[str, Expected]:
    """Exact, safe, and never slower."""
    again = Control(
        "the engine again takes as long as itself",
        between(0.8, 1.25, why="the same work in the same turn: what remains is noise"),
    )
    fewest = Control("the fewest at once are not", above(1.15, why="or width would not matter"))
    eigsh = Control("eigsh in PyTorch slows it by more", above(4 / 3, why="the usual measure"))
    of_form = "seconds of the form to those of the engine, a member's step, same turn"
    sharpness = {*"af"} <= {*config.problems}
    return {
        **{name: exact(name, *tolerance) for name, tolerance in TOLERANCES.items()},
        "edge": certain(
            "of the edge of stability's quick preset no claim fails",
            "held against its controls' values one does",
            "claims whose interval lies outside their band",
        ),
        "resumed": certain(
            "killed twice and resumed, a store holds the same bytes",
            "with other seeds it does not",
            "files that differ from those of a store never killed",
        ),
        "eager": goal(
            f"(b) {MANY:,} runs: eager PyTorch takes at least 50 times as long, one by one",
            above(50.0, why="the goal"),
            again,
            of_form,
        ),
        **{
            f"vmap {letter}": goal(
                f"({letter}) jit(vmap(scan)) is not faster, in the mean over numbers of runs",
                above(1.0, why="the goal"),
                again,
                f"{of_form}; geometric mean",
            )
            for letter in config.problems
        },
        **{
            f"alike {letter}": goal(
                f"({letter}) nor is it under the engine's own, deterministic options",
                above(1.0, why="or the engine itself costs something"),
                again,
                f"{of_form}; geometric mean",
            )
            for letter in config.problems
        },
        **{
            f"width {letter}": goal(
                f"({letter}) all runs at once, as chosen, are within 15% of the best width",
                below(1.15, why="the goal"),
                fewest,
                "seconds of a member's step to those at the best other width, same turn",
            )
            for letter in config.problems
        },
        **{
            f"sharpness {letter}": goal(
                f"sharpness every 50 steps slows (a) by at most a third at {MANY:,} runs",
                below(4 / 3, why="the goal"),
                eigsh,
                "seconds of (f) to those of (a), same turn",
            )
            for letter in "f" * sharpness
        },
    }


def exact(name: str, most: float, why: str) -> Expected:
    """A claim of accuracy."""
    return Expected(
        f"{name} in float32 err by at most {most:g} eps",
        below(most, why=why),
        Control("inputs of TF32's ten bits err by more", above(most, why="or both would pass")),
        kind="closed form",
        source="float64 on the host",
        estimator="largest relative error, in units of float32's epsilon",
        vary="draws of weights and data",
        scale="log",
    )


def certain(statement: str, control: str, estimator: str) -> Expected:
    """A claim that nothing is wrong, by counting."""
    wrong = Control(control, above(0.5, why="one or more"))
    none, source = about(0.0, within=0.5, why="none is none"), "the engine's contract"
    return Expected(statement, none, wrong, "direction", source, estimator, NOTHING)


def goal(statement: str, band: Band, control: Control, estimator: str) -> Expected:
    """A claim of speed."""
    source = "a goal set before timing"
    return Expected(statement, band, control, "goal", source, estimator, "turns", scale="log")


def measured(data: dict[str, xr.Dataset]) -> dict[str, Measured]:
    """One value a draw, a turn or a check; says so where all of it is at toy size."""
    if data["rates"].attrs["devices"] == "cpu":
        print("JAX saw no accelerator, a CPU alone: all is at toy size, and proves nothing")
    accuracy, edge, resumed = (data[name] for name in ("accuracy", "edge", "resumed"))
    seconds = data["rates"].seconds
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
        forms = ("sweep", "again", "vmap", "alike")
        engine, again, *rivals = check.whole(seconds.sel(problem=letter), *forms)
        if engine.runs.size:
            for form, rival in zip(forms[2:], rivals, strict=True):
                found[f"{form} {letter}"] = (check.mean(rival / engine), check.mean(again / engine))
        if engine.runs.size > 1:
            found[f"width {letter}"] = (check.to_best(engine, -1), check.to_best(engine, 0))
    if MANY in seconds.runs:
        engine, again = (seconds.sel(form=form, runs=MANY) for form in ("sweep", "again"))
        eager = seconds.sel(form="eager", runs=1) if 1 in seconds.runs else engine * np.nan
        why = "not timed, or PyTorch is not installed"
        timed = {str(one.values) for one in eager.problem if eager.sel(problem=one).notnull().all()}
        at_b = [one.sel(problem="b") / engine.sel(problem="b") for one in (eager, again)]
        found["eager"] = (at_b[0], at_b[1]) if "b" in timed else why
        if {*"af"} <= {*seconds.problem.values.tolist()}:
            costs = [one.sel(problem="f") / one.sel(problem="a") for one in (engine, eager)]
            found["sharpness f"] = (costs[0], costs[1]) if {*"af"} <= timed else why
    return found


tables = check.tables


def figure(data: dict[str, xr.Dataset]) -> Figure:
    """Speed, against rivals and the peak, by number of runs; errors by quantity."""
    many, one = check.middle(data["rates"].seconds), data["accuracy"]
    letters, reached = many.problem.values.tolist(), check.peak_share(data)
    first = "b" if "b" in letters else "".join(letters[:1])
    with panels(2, rows=2, ratio=0.95) as (result, (speed, rivals, share, errors)):
        named = NAMES.items() if letters else ()
        for style, (form, label) in zip(STYLES, named, strict=False):
            drawn(speed, 1 / many.sel(problem=first, form=form), label=label, **style)
        for style, letter in zip(STYLES, letters, strict=False):
            at = many.sel(problem=letter)
            ratio = at.sel(form="vmap") / at.sel(form="sweep")
            drawn(rivals, ratio, label=f"({letter})", **style)
            drawn(share, reached.sel(problem=letter), label=f"({letter})", **style)
        theory_line(rivals, 1.0)
        for axes, said in (
            (speed, f"({first}): steps of runs / s"),
            (rivals, "jit(vmap(scan)): time / engine's"),
            (share, "engine: share of float32 peak"),
        ):
            axes.set(xscale="log", yscale="log", xlabel="runs", ylabel=said)
            key(axes, columns=2 if axes is speed else 3)
        speed.set(xlabel="runs (*: one by one)")
        places = np.arange(one.quantity.size)
        kinds = {"error": "float32", "control": "inputs of ten bits"} if places.size else {}
        for style, (name, label) in zip(STYLES, kinds.items(), strict=False):
            middle = one[name].median("seed")
            bars = (middle - one[name].min("seed"), one[name].max("seed") - middle)
            style = {**style, "linestyle": "none", "markersize": 3, "capsize": 2}
            errors.errorbar(places, middle, bars, label=label, **style)
        levels = [TOLERANCES[str(name)][0] for name in one.quantity.values]
        errors.plot(places, levels, "k_", ms=14, label="tolerance")
        errors.set(yscale="log", ylabel="largest error / eps", xlim=(-0.5, len(places) - 0.5))
        errors.set_xticks(places, [str(name).replace(" ", "\n") for name in one.quantity.values])
        key(errors)
    return result


def drawn(axes: Axes, values: xr.DataArray, **style: Any) -> None:
    """A line where there are values."""
    kept = values.dropna("runs")
    axes.plot(kept.runs, kept, markersize=3, **style)


if __name__ == "__main__":
    main(__name__)
