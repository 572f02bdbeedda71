"""One reference sweep raced: every contender takes its turn, again and again.

Compared are losses, before anything is timed; timed is the work alone.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from experiments.engine.peers.problems import problems
from experiments.engine.peers.race import Contender, available

FEWER = {"scan": 8, "loop": 4, "eager": 4, "func": 64}
"""Slow forms are timed on so many runs, and scaled; all but the last go run after run."""
COMPARED = 50
"""Steps over which losses are compared, of four runs."""
PRODUCTS = 100
"""Products of 1024 x 1024 matrices in a turn of the machine's peak."""


def raced(
    letter: str, *, forms: Sequence[str], widths: Sequence[int], turns: int, shrink: int
) -> dict[str, Any]:
    """What each contender's turns took and what it computed, ready for json.

    Args:
        letter: of the reference sweep.
        forms: what the engine is raced against; those that are not installed are left out.
        widths: of blocks, for the engine; those that leave a core idle are left out.
        turns: how often each is timed, after one turn that does not count.
        shrink: divides the number of runs.

    Returns:
        {"seconds": {contender: [turn]}, for all runs, but of "peak" for its products;
        "differs": {contender: largest relative difference of its losses from the engine's};
        "other_seed", "eigsh": those of other seeds, and of sharpness by SciPy's eigsh;
        "runs": their number; "chosen": width; "notes": {contender: what it says}}
    """
    problem = problems()[letter]
    runs = max(4, problem.runs // shrink)
    named: dict[str, tuple[str, str, dict[str, Any]]] = {
        "sweep": ("sweep", letter, {}),
        "again": ("sweep", letter, {}),
    }
    for form in forms:
        if available(form) and not (form == "func" and problem.sharpness):
            named[form] = (form, letter, {})
    for width in widths:
        if 2 * width <= runs:
            named[f"width {width}"] = ("sweep", letter, {"layout": {"width": width}})
    if letter in "ac":
        named["peak"] = ("peak", letter, {})
    if problem.sharpness:  # what measuring costs: the same without it
        named["plain"] = ("sweep", "a", {})
        if "eager" in named:
            named["plain_eager"] = ("eager", "a", {})
    seconds: dict[str, list[float]] = {name: [] for name in named}
    first, last = {}, {}
    with ExitStack() as stack:
        racing = {
            name: stack.enter_context(Contender(form, on, **settings))
            for name, (form, on, settings) in named.items()
        }
        for name, child in racing.items():
            first[name] = child.turn(COMPARED, 4)
        for i in range(turns + 1):
            for name, child in racing.items():
                form, peak = named[name][0], name == "peak"
                few = 1 if peak else min(runs, FEWER.get(form, runs))
                last[name] = child.turn(PRODUCTS if peak else problem.steps, few)
                if i:
                    seconds[name].append(last[name].seconds * (1 if peak else runs / few))
    loss = first["sweep"].records["loss"]
    eager = first["eager"].records if problem.sharpness and "eager" in first else None
    return {
        "runs": runs,
        "seconds": seconds,
        "notes": {name: done.note for name, done in last.items()},
        "differs": {
            form: difference(first[form].records["loss"], loss) for form in racing_of(first)
        },
        "other_seed": difference([*loss[1:], loss[0]], loss),
        "eigsh": difference(eager["sharpness"], first["sweep"].records["sharpness"])
        if eager
        else None,
        "chosen": int(last["sweep"].note.split()[-1]),
    }


def racing_of(named: Sequence[str] | dict[str, Any]) -> list[str]:
    """Those whose losses are to be the engine's.

    >>> racing_of(["sweep", "again", "vmap", "width 4", "peak", "plain"])
    ['again', 'vmap', 'width 4']
    """
    return [name for name in named if not name.startswith(("sweep", "peak", "plain"))]


def difference(one: list[list[float]], other: list[list[float]]) -> float:
    """The largest relative difference, where the other is finite.

    >>> difference([[1.0, 9.0]], [[2.0, float("inf")]])
    0.5
    """
    a, b = np.array(one), np.array(other)
    finite = np.isfinite(b)
    return float(np.max(np.abs(a[finite] - b[finite]) / np.abs(b[finite])))
