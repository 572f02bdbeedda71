"""Cadence: at which steps a run is recorded, and how its steps are cut into segments.

Each record belongs to a stream, named by its dimension in the Dataset: `step` (what `observe`
returns) and `step_rare` (`inspect`). A stream is any ascending steps. A segment is the steps
(first, stop] between two visits of the host; the first one holds the initial state too.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lab.types import BadInput

BEFORE = -1
"""Where a run is that has not been started: the record of step 0 is still to come."""


class Segment(NamedTuple):
    """One segment as the compiled program takes it.

    Attributes:
        stop: the step that it ends at.
        times: the step it starts from, then those to halt at, padded to the same length for all.
        halts: how many of them count.
        slots: {stream: at each halt, where its record goes}; one past the last, where it has none.
        taken: {stream: how many records}.
    """

    stop: int
    times: np.ndarray
    halts: int
    slots: dict[str, np.ndarray]
    taken: dict[str, int]


class Cadence(NamedTuple):
    """Steps of each run, and {stream: the steps at which it is recorded}, ascending.

    Where states are kept besides the final ones, at the steps `kept`, a segment ends.

    >>> cadence = Cadence(20, {"step": np.arange(0, 21, 5), "step_rare": np.array([0, 7])})
    >>> cadence.capacity(10)  # of a segment of 10 steps
    {'step': 3, 'step_rare': 2}
    >>> first = cadence.segment(BEFORE, 10)
    >>> first.times[: first.halts + 1], first.slots["step_rare"][: first.halts]
    (array([ 0,  0,  5,  7, 10], dtype=int32), array([0, 2, 1, 2], dtype=int32))
    """

    steps: int
    at: Mapping[str, np.ndarray]
    kept: Sequence[int] = ()

    def spacing(self, stream: str) -> int | list[int]:
        """Steps between two records of a stream, from step 0 to the last; else these steps.

        >>> Cadence(20, {"step": np.arange(0, 21, 5)}).spacing("step")
        5
        """
        at = self.at[stream]
        gap = int(at[1] - at[0]) if len(at) > 1 else self.steps
        return gap if np.array_equal(at, np.arange(0, self.steps + 1, gap)) else at.tolist()

    def between(self, stream: str, before: int, stop: int) -> slice:
        """Which records of the stream belong to steps (before, stop]."""
        low, high = np.searchsorted(self.at[stream], [before, stop], side="right")
        return slice(int(low), int(high))

    def even(self, most: int) -> int:
        """The longest segment, of at most so many steps, that makes all alike, if there is one.

        >>> Cadence(60, {"step": np.arange(0, 61, 5), "rare": np.arange(0, 61, 15)}).even(50)
        30
        """
        spacings = [np.unique(np.diff(steps)) for steps in self.at.values() if len(steps) > 1]
        period = int(np.lcm.reduce([s[0] if len(s) == 1 else self.steps for s in spacings]))
        finest = int(np.gcd.reduce(np.concatenate([*self.at.values(), [self.steps]])))
        lengths = np.arange(most - most % finest, 0, -finest)
        alike = (lengths % period == 0) | (period % lengths == 0)
        for good in (alike & (self.steps % lengths == 0), alike, lengths > 0):
            if len(found := lengths[good & (4 * lengths >= most)]):
                return int(found[0])
        return most

    def capacity(self, length: int) -> dict[str, int]:
        """{stream: the most records that a segment of so many steps holds}."""
        return {stream: _most(steps, length) for stream, steps in self.at.items()}

    def segment(self, reached: int, length: int) -> Segment:
        """The segment that follows step `reached`: to a multiple of `length` or a step kept."""
        start = max(reached, 0)
        ends = [(start // length + 1) * length, self.steps, *self.kept]
        stop = min(end for end in ends if end > reached)
        taken = {
            stream: steps[self.between(stream, reached, stop)] for stream, steps in self.at.items()
        }
        halts = np.unique(np.concatenate([*taken.values(), [stop]]))
        most = _most(np.unique(np.concatenate([*self.at.values()])), length) + 1
        capacity = self.capacity(length)

        def slots(stream: str) -> np.ndarray:
            slot = np.full(most, capacity[stream], np.int32)
            slot[np.searchsorted(halts, taken[stream])] = np.arange(len(taken[stream]))
            return slot

        times = np.full(most + 1, stop, np.int32)
        times[: len(halts) + 1] = [start, *halts]
        counts = {stream: len(steps) for stream, steps in taken.items()}
        return Segment(stop, times, len(halts), {stream: slots(stream) for stream in taken}, counts)


def kept_steps(keep: Any, steps: int) -> tuple[int, ...]:
    """The steps at which states are kept besides the final ones, as asked for by `keep`.

    Raises:
        BadInput: it is neither "final" nor None nor ascending steps of the run's.

    >>> kept_steps(range(0, 100, 40), 100), kept_steps("final", 100)
    ((0, 40, 80), ())
    """
    if keep is None or (isinstance(keep, str) and keep == "final"):
        return ()
    whole = isinstance(keep, np.ndarray) and keep.ndim == 1 and keep.dtype.kind in "iu"
    given = keep.tolist() if whole else keep
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise BadInput(f"keep: {keep!r} is neither 'final' nor None nor a sequence of steps")
    for step in given:
        if not isinstance(step, int | np.integer) or isinstance(step, bool):
            raise BadInput(f"keep: {step!r} is no step; give ints from 0 to steps={steps}")
        if not 0 <= step <= steps:
            raise BadInput(f"keep: {step} is no step of the run; give ints from 0 to {steps}")
    kept = tuple(map(int, given))
    for one, other in itertools.pairwise(kept):
        if one >= other:
            raise BadInput(f"keep: {other} follows {one}; give ascending steps, each once")
    return kept


def _most(steps: np.ndarray, length: int) -> int:
    return int(np.bincount(np.maximum(steps - 1, 0) // length).max())
