"""Books: where the records of a part go, in memory or in a store, and how they are read back."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab.sweep.cadence import BEFORE, Cadence
from lab.sweep.layout import Layout
from lab.sweep.store import Last, Records, Saved, Store
from lab.sweep.trace import Process, plain
from lab.types import BadInput


class Table(NamedTuple):
    """The records of the runs asked for, up to the steps asked for: {name: (run, record, ...)}."""

    cadence: Cadence
    streams: Mapping[str, Sequence[str]]
    arrays: dict[str, np.ndarray]

    def put(
        self, runs: np.ndarray, slots: np.ndarray, before: int, step: int, new: Records
    ) -> None:
        """Records of steps (before, step], from slots of a dispatch to their runs."""
        for stream, names in self.streams.items():
            where = self.cadence.between(stream, before, step)
            for name in names:
                taken = new[name][slots, : where.stop - where.start]
                self.arrays[name][runs, where] = taken.view(self.arrays[name].dtype)


def table(process: Process, cadence: Cadence, runs: int) -> Table:
    """An empty table for so many runs."""
    arrays = {
        name: np.empty((runs, len(cadence.at[stream]), *leaf.shape), leaf.dtype)
        for stream, function in process.streams.items()
        for name, leaf in function.returns.items()
    }
    return Table(cadence, {s: [*f.returns] for s, f in process.streams.items()}, arrays)


class Book:
    """The one place that a part's records are written to and read from.

    Attributes:
        layout: of its dispatches.
        points: {hyperparameter: values by row}, padding included.
        store: where the records go, or None to keep them in memory.
        lease: in a worker, a file that is there as long as its coordinator is at work.
        programs: {device: what its layout was tried with}.
        held: {dispatch: those of the runs asked for that it holds}.
        told: told(dispatch, before, step, records), called when they have been taken.
    """

    def __init__(
        self,
        process: Process,
        cadence: Cadence,
        layout: Layout,
        names: Sequence[str],
        points: Mapping[str, np.ndarray],
        store: Store | None,
        lease: Path | None = None,
        programs: Mapping[Any, Any] | None = None,
    ):
        """A book for the runs of these names, whose hyperparameters are `points`."""
        self.process, self.cadence, self.layout = process, cadence, layout
        self.store, self.lease = store, lease
        self.programs = programs or {}
        self.told: Callable[[int, int, int, Records], None] | None = None
        if store is None:
            padded = np.arange(-(-len(names) // layout.runs) * layout.runs).clip(max=len(names) - 1)
            self.points = {name: values[padded] for name, values in points.items()}
            self.rows = np.arange(len(names))
            self.table = table(process, cadence, len(names))
        else:
            self.points, self.rows = store.points, store.rows(names)
        dispatches = self.rows // layout.runs
        order = np.argsort(dispatches, kind="stable")
        distinct, first = np.unique(dispatches[order], return_index=True)
        self.held = dict(zip(distinct.tolist(), np.split(order, first)[1:], strict=True))

    def real_runs(self) -> dict[int, int]:
        """{dispatch: how many of the runs asked for it holds}; its other slots are padding."""
        return {dispatch: len(runs) for dispatch, runs in self.held.items()}

    def point(self, dispatch: int) -> dict[str, np.ndarray]:
        """{hyperparameter: its value in each run of a dispatch}."""
        rows = slice(dispatch * self.layout.runs, (dispatch + 1) * self.layout.runs)
        return {name: values[rows] for name, values in self.points.items()}

    def reached(self, dispatch: int) -> int:
        """The step that a dispatch has been taken to, or BEFORE."""
        return self.store.reached(dispatch, self.cadence.steps) if self.store else BEFORE

    def load(self, dispatch: int) -> Saved | None:
        """A dispatch as it was saved, or None; its state is kept, if that was asked for since."""
        saved = self.store.load(dispatch) if self.store else None
        if saved and saved.step in self.cadence.kept and self.store:
            self.store.keep(dispatch, saved.step, saved.leaves)
        return saved

    def append(
        self,
        dispatch: int,
        before: int,
        step: int,
        records: Records,
        leaves: Sequence[Any],
        last: Last | None,
    ) -> Last | None:
        """Take the records of steps (before, step] and, in a store, the state after them.

        Raises:
            BadInput: the coordinator has ended, and the store may be another's by now.
        """
        if self.lease and not self.lease.exists():
            raise BadInput(
                f"store: {self.lease.parent}: the sweep that gave this job out has ended"
            )
        if self.store:
            held = [plain(leaf) for leaf in leaves]
            steps = {
                f"@{stream}": at[None, self.cadence.between(stream, before, step)]
                for stream, at in self.cadence.at.items()
            }
            kept = step in self.cadence.kept
            last = self.store.append(dispatch, last, step, {**records, **steps}, held, kept)
        else:
            self.table.put(*self.slots(dispatch), before, step, records)
        if self.told:
            self.told(dispatch, before, step, records)
        return last

    def recorded(self) -> dict[str, np.ndarray]:
        """{name: values by run and record} of the runs and steps asked for.

        Raises:
            BadInput: a file of the store is missing or damaged.
        """
        if not self.store:
            return self.table.arrays
        result = table(self.process, self.cadence, len(self.rows))
        for dispatch in self.real_runs():
            reached = BEFORE
            for before, step, records in self.store.segments(dispatch):
                reached = max(reached, step)
                self._refuse_short(dispatch, before, step, records)
                result.put(*self.slots(dispatch), before, step, records)
            if reached < self.cadence.steps:
                raise BadInput(
                    f"store: {self.store.path}: dispatch {dispatch} was not run to its end, though "
                    "whoever was to do so says it was; the same call goes on"
                )
        return result.arrays

    def slots(self, dispatch: int) -> tuple[np.ndarray, np.ndarray]:
        """The runs asked for in a dispatch, and their slots in it."""
        runs = self.held[dispatch]
        return runs, self.rows[runs] % self.layout.runs

    def _refuse_short(self, dispatch: int, before: int, step: int, records: Records) -> None:
        for stream, function in self.process.streams.items():
            where = self.cadence.between(stream, before, step)
            for name in function.returns:
                if name not in records or records[name].shape[1] < where.stop - where.start:
                    raise BadInput(
                        f"store: dispatch {dispatch} lacks records of {name!r} up to step {step}; "
                        "give another store, or remove this one"
                    )
