"""Live: what a sweep has reached, told on the host after each segment, while it goes on."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from lab.sweep.axes import Axis, grid_labels
from lab.sweep.book import Book
from lab.sweep.dataset import widened
from lab.types import BadInput


class Reached(NamedTuple):
    """A segment of some runs, as a sweep's `on_segment` is told of it.

    Attributes:
        step: that these runs have reached.
        steps: of each run.
        runs: {axis or static axis: its value in each of the runs}.
        at: {"step" or "step_rare": the steps of the segment at which records were taken}.
        records: {name: array (run, record, *a record's own)} of the segment.
    """

    step: int
    steps: int
    runs: dict[str, np.ndarray]
    at: dict[str, np.ndarray]
    records: dict[str, np.ndarray]


OnSegment = Callable[[Reached], Any]
"""Called on the host, by one thread at a time."""


def refuse(on_segment: Any, executor: Any) -> None:
    """Raise unless it is None or can be called after each segment, in this process.

    Raises:
        BadInput: it is no function, or the segments are run by others.
    """
    if on_segment is None:
        return
    if not callable(on_segment):
        raise BadInput(f"on_segment: {on_segment!r} is no function of what is reached; give one")
    try:
        inspect.signature(on_segment).bind(None)
    except TypeError:
        takes = inspect.signature(on_segment)
        raise BadInput(f"on_segment: takes {takes}; let it take (reached)") from None
    except ValueError:  # of some callables written in C
        pass
    if executor is not None:
        raise BadInput(
            "on_segment: is called where a segment is run, which an executor's workers do in other "
            "processes; leave one of the two out, and read the store by `open` meanwhile"
        )


def watched(
    books: Sequence[Book],
    grid: Sequence[Axis],
    static: Sequence[Mapping[str, Any]],
    on_segment: OnSegment,
) -> None:
    """Have each segment told once it is committed; none after one at which that raised.

    Args:
        books: where the records of each part go.
        grid: the axes.
        static: {name: label} of each part.
        on_segment: whom to tell.
    """
    labels = grid_labels(grid)
    lock, ended = Lock(), list[bool]()

    for book, point in zip(books, static, strict=True):

        def told(
            dispatch: int,
            before: int,
            step: int,
            records: Mapping[str, np.ndarray],
            book: Book = book,
            point: Mapping[str, Any] = point,
        ) -> None:
            runs, slots = book.slots(dispatch)
            where = {name: values[runs] for name, values in labels.items()}
            where |= {name: np.full(len(runs), label) for name, label in point.items()}
            cadence = book.cadence
            at = {s: a[cadence.between(s, before, step)].copy() for s, a in cadence.at.items()}
            held = {n: widened(a[slots]) for n, a in records.items() if n != "finite"}
            with lock:
                if not ended:
                    ended.append(True)
                    on_segment(Reached(step, book.cadence.steps, where, at, held))
                    ended.clear()

        book.told = told
