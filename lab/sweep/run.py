"""Running: each dispatch to its last step, in this process or by the workers of an executor."""

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lab.sweep import jobs
from lab.sweep.book import Book
from lab.sweep.cadence import BEFORE, Segment
from lab.sweep.feed import fed
from lab.sweep.fit import exhausted, too_wide
from lab.sweep.layout import Layout, cores, devices
from lab.sweep.parcel import settings
from lab.sweep.parts import Part
from lab.sweep.program import Program, ahead, fetched, plan, program
from lab.sweep.progress import Advance
from lab.sweep.store import Saved, joined
from lab.sweep.trace import Process, restored
from lab.sweep.wide import compiled
from lab.types import BadInput


class Advanced(NamedTuple):
    """What a segment has done: steps taken, whether they were the last, and the step reached."""

    steps: int
    finished: bool
    step: int


Segments = Callable[[int], Iterator[Advanced]]
"""segments(dispatch): takes it from where it is to its last step, a segment at a time."""

Waiting: TypeAlias = tuple[Mapping[jax.Device, Segments], int, int]
"""A dispatch whose turn comes: how each device takes it, its number, its real runs."""


def run_here(parts: Sequence[Part], books: Sequence[Book], keep: bool, advance: Advance) -> None:
    """Take each dispatch that is not finished to its last step, in this process.

    Each device takes one dispatch after another. While the first part runs, the programs of the
    others compile; what is done lets go of its program and of its copy of shared arrays.
    """
    compilers = ThreadPoolExecutor(cores())
    placed = devices(max(book.layout.devices or 1 for book in books))
    waiting: deque[Waiting] = deque()
    try:
        for part, book in zip(parts, books, strict=True):
            if left := unfinished(book, advance):
                segments = {d: compiling(part, book, d, keep, compilers) for d in {*placed}}
                waiting.extend((segments, dispatch, real) for dispatch, real in left.items())
                del segments
        by_devices(placed, waiting, advance)
    finally:
        compilers.shutdown(wait=False, cancel_futures=True)


def by_devices(placed: Sequence[jax.Device], waiting: deque[Waiting], advance: Advance) -> None:
    """Take the dispatches to their last steps: a thread a device, each one after another."""
    around, ended = settings(), threading.Event()

    def work(device: jax.Device) -> None:
        with around.applied():
            while not ended.is_set():
                try:
                    segments, dispatch, real = waiting.popleft()
                except IndexError:
                    return
                for done in segments[device](dispatch):
                    advance(done.steps * real, real * done.finished, done.step)
                    if ended.is_set():
                        return

    with ThreadPoolExecutor(len(placed), thread_name_prefix="device") as workers:
        try:
            working = [workers.submit(work, device) for device in placed]
            wait(working, return_when=FIRST_EXCEPTION)
        finally:
            ended.set()
    for one in working:
        one.result()


def run_by(
    executor: Any, parts: Sequence[Part], books: Sequence[Book], keep: bool, advance: Advance
) -> None:
    """Take each dispatch that is not finished to its last step, as jobs of an executor."""
    with contextlib.ExitStack() as leases:
        runs: dict[jobs.Task, tuple[Book, int]] = {}
        for part, book in zip(parts, books, strict=True):
            assert book.store
            if left := unfinished(book, advance):
                make = functools.partial(_worker, part, book.store.path, keep)
                lease = leases.enter_context(jobs.leased(book.store.path, make))
                runs |= {(lease, dispatch): (book, real) for dispatch, real in left.items()}
        reached = {task: book.reached(task[1]) for task, (book, _) in runs.items()}

        def look() -> Mapping[jobs.Task, int]:
            for task, (book, real) in runs.items():
                before, last = reached[task], book.cadence.steps
                if before < last and before != (now := book.reached(task[1])):
                    advance(real * (now - max(before, 0)), real * (now >= last), now)
                    reached[task] = now
            return reached

        jobs.given_out(executor, [*runs], look)


def unfinished(book: Book, advance: Advance) -> dict[int, int]:
    """{dispatch: its real runs} of those not at their last step; the others are told finished."""
    left = {}
    for dispatch, real in book.real_runs().items():
        if book.reached(dispatch) < book.cadence.steps:
            left[dispatch] = real
        else:
            advance(0, real, book.cadence.steps)
    return left


def _worker(part: Part, path: Path, keep: bool, lease: Path) -> Callable[[int], None]:
    """In a worker: the function that takes one dispatch of a stored part to its last step."""
    process = part.process()
    store = joined(path, part.identity(process))
    book = Book(process, part.cadence, store.layout, [], {}, store, lease)
    segments = compiling(part, book, devices(1)[0], keep, None)

    def run(dispatch: int) -> None:
        for _ in segments(dispatch):
            pass

    return run


def compiling(
    part: Part, book: Book, device: jax.Device, keep: bool, pool: Executor | None
) -> Segments:
    """`Segments` on a device, whose programs compile in the pool from now on.

    Without a pool they compile when they are first called.
    """
    cadence, layout, process = part.cadence, book.layout, book.process
    assert layout.segment
    always = functools.cache(lambda: jax.device_put(dict(part.shared), device))
    shared = fed(part.feed, always, cadence.steps, device)
    if layout.backend == "wide":
        made = book.programs.get(device) or compiled(part, process, layout, device, pool)
        return lambda dispatch: _segments(book, dispatch, made.program(), shared, device, keep)
    capacity = cadence.capacity(layout.segment)
    if pool is None:
        programs = program(process, layout, capacity)
    else:
        programs = ahead(
            process,
            layout,
            capacity,
            part.one,
            dict(part.shared),
            cadence.segment(BEFORE, layout.segment),
            device=device,
            starts=any(book.reached(dispatch) == BEFORE for dispatch in book.real_runs()),
            pool=pool,
        )
    return lambda dispatch: _segments(book, dispatch, programs, shared, device, keep)


def _segments(
    book: Book,
    dispatch: int,
    programs: Program,
    shared: Callable[[int], Any],
    device: jax.Device,
    keep: bool,
) -> Iterator[Advanced]:
    """A dispatch from where it is to its last step; yields after each segment is committed.

    Of a wide block the next segment is under way while one is committed.
    """
    cadence, length = book.cadence, book.layout.segment
    assert length
    point, saved = jax.device_put(book.point(dispatch), device), book.load(dispatch)
    if saved is None:
        state, step, last = programs.start(point, shared(BEFORE)), BEFORE, None
    else:
        step, last = saved.step, saved.last
        state = _revived(saved, book.process, device) if step < cadence.steps else None
    at_once = 2 if book.layout.backend == "wide" else 1
    under_way: deque[tuple[int, Segment, Any, Any]] = deque()
    with _within_memory(book.layout):
        while step < cadence.steps or under_way:
            if step < cadence.steps:
                segment = cadence.segment(step, length)
                state, new = programs.advance(state, point, shared(step), *plan(segment))
                leaves = jax.tree.leaves(state) if keep or segment.stop < cadence.steps else []
                if at_once > 1:  # the next segment takes the state for itself
                    leaves = _on_the_way(leaves) if book.store else []
                under_way.append((step, segment, new, leaves))
                step = segment.stop
            if len(under_way) == at_once or step == cadence.steps:
                before, segment, new, leaves = under_way.popleft()
                records, stop = fetched(new, segment), segment.stop
                last = book.append(dispatch, before, stop, records, leaves, last)
                yield Advanced(stop - max(before, 0), stop == cadence.steps, stop)


def _on_the_way(leaves: list[Any]) -> list[Any]:
    """Copies, on their way to the host."""
    copies = [leaf.copy() for leaf in leaves]
    for leaf in copies:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf.copy_to_host_async()
    return copies


@contextlib.contextmanager
def _within_memory(layout: Layout) -> Iterator[None]:
    """Trouble with a device's memory, as one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if layout.backend == "wide" and exhausted(error):
            raise BadInput(too_wide(layout)) from error
        raise


def _revived(saved: Saved, process: Process, device: jax.Device) -> Any:
    """The state of a dispatch as it was saved, back on its device."""
    likes, structure = jax.tree.flatten(process.init.returns)
    leaves = [restored(leaf, like) for leaf, like in zip(saved.leaves, likes, strict=True)]
    return jax.device_put(jax.tree.unflatten(structure, leaves), device)
