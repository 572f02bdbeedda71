"""Jobs: dispatches given out to the workers of an executor, and given out again where one dies.

What the workers need is written into the store once, as `lease-*.pkl`. It is there as long as its
coordinator is at work, and a worker without it writes nothing more; so what an ended coordinator
left running cannot touch a store that has gone to another.
"""

import contextlib
import functools
import inspect
import multiprocessing
import os
import pickle
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle

from lab.sweep.parcel import Parcel, packed
from lab.types import BadInput

Task = tuple[str, int]
"""A lease's path and the number of a dispatch."""

TRIES = 3
"""How often a job may be lost with nothing saved in between."""

POLL_SECONDS, LOOK_SECONDS = 0.02, 0.5
"""Between two looks at the jobs, and at what is on disk."""


@contextlib.contextmanager
def leased(folder: Path, make: Callable[[Path], Callable[[int], None]]) -> Iterator[str]:
    """The path of a lease in `folder`, there while the context lasts.

    Args:
        folder: of a store, seen by all workers.
        make: make(lease) -> run, where run(dispatch) runs a dispatch to its end in the worker.

    Raises:
        BadInput: `make` closes over what cannot be pickled.
    """
    try:
        content = pickle.dumps(packed(make))
    except Exception as error:  # whatever an object's own pickling raises
        raise BadInput(
            f"dynamics: cannot be sent to workers ({str(error).splitlines()[0]}); close over "
            "arrays, numbers and functions only"
        ) from error
    lease = folder / f"lease-{uuid.uuid4().hex}.pkl"
    try:
        lease.write_bytes(content)
        yield str(lease)
    finally:
        lease.unlink(missing_ok=True)


def work(lease: str, dispatch: int, attempt: int) -> bytes | None:
    """Run one dispatch; what a worker is asked to do.

    Args:
        lease: path of the lease.
        dispatch: its number.
        attempt: another for each call, since dask takes equal calls for one.

    Returns:
        None, or the exception that the work itself raised, pickled: so what `result()` raises is
        the executor's own trouble.
    """
    _end_with_parent()
    try:
        parcel, run = _opened(lease)
        with parcel.settings.applied():
            run(dispatch)
    except Exception as error:
        return _pickled(error)
    return None


@functools.cache
def _end_with_parent() -> None:
    """End this process when the one that spawned it ends, which a killed pool's workers do not."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent
        parent.join()
        os._exit(1)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


@functools.lru_cache(maxsize=1)
def _opened(lease: str) -> tuple[Parcel, Callable[[int], None]]:
    """The lease as read, traced and opened: once for all dispatches that a worker is given."""
    try:
        parcel = pickle.loads(Path(lease).read_bytes())
    except FileNotFoundError:
        raise BadInput(
            f"store: a worker does not see {Path(lease).parent}; give a folder that all share"
        ) from None
    with parcel.settings.applied():
        return parcel, pickle.loads(parcel.content)(Path(lease))


def _pickled(error: Exception) -> bytes:
    if not isinstance(error, BadInput):
        error.add_note(f"In a worker:\n{''.join(traceback.format_exception(error))}")
    try:
        content = cloudpickle.dumps(error)
        pickle.loads(content)
    except Exception:  # a class of the user's whose pickling fails
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.__notes__ = error.__notes__
        content = cloudpickle.dumps(plain)
    return content


def _settled(outcome: bytes | None) -> None:
    """Raise what the work itself raised, if anything."""
    if outcome is None:
        return
    try:
        error = pickle.loads(outcome)
        assert isinstance(error, Exception)
    except Exception:
        raise BadInput(
            f"executor: a job came back as {outcome!r}, which `work` never returns; give an "
            "executor that runs what is submitted"
        ) from None
    raise error from None


def refuse(executor: Any) -> None:
    """Raise unless jobs can be submitted to `executor`, or it is a function that makes one.

    Raises:
        BadInput: it has no `submit`, or its processes would be forks of this one.
    """
    if not (callable(executor) or hasattr(executor, "submit")):
        raise BadInput(
            f"executor: {executor!r} has no submit(); give a concurrent.futures executor, or a "
            "function of no arguments that makes one"
        )
    if makes(executor):
        try:
            inspect.signature(executor).bind()
        except TypeError as error:
            raise BadInput(
                f"executor: {executor!r} makes none without arguments ({error}); give one, or a "
                "function of no arguments that makes one"
            ) from None
        except ValueError:  # of some callables written in C
            pass
    if isinstance(executor, ProcessPoolExecutor):
        context, size = executor._mp_context, getattr(executor, "_max_workers", 2)
        if context is not None and context.get_start_method() == "fork":
            raise BadInput(
                "executor: forked processes deadlock in JAX; give ProcessPoolExecutor"
                f'({size}, mp_context=multiprocessing.get_context("spawn"))'
            )


def makes(executor: Any) -> bool:
    """Whether it is a function that makes an executor, not one itself."""
    return isinstance(executor, type) or not hasattr(executor, "submit")


def given_out(executor: Any, tasks: list[Task], look: Callable[[], Mapping[Task, int]]) -> None:
    """Have all tasks done by the executor's workers.

    A task whose worker died is given out again; a pool that broke is made anew where `executor`
    is a function, else the rest is done here.

    Args:
        executor: anything with submit(function, *arguments) -> job with done() and result(), or a
            function that makes one.
        tasks: what is to be done.
        look: look() -> {task: records on disk}, called while waiting and at the end.

    Raises:
        Exception: what the work itself raised; BadInput after TRIES losses in turn.
    """
    make = executor if makes(executor) else None
    left, running, lost = dict.fromkeys(tasks), dict[Task, Any](), dict[Any, tuple[int, int]]()
    attempt = 0
    pool: Any = None
    try:
        while left:
            if pool is None:
                pool = make() if make else executor
                if make and makes(pool):
                    raise BadInput(f"executor: {make!r} made {pool!r}, which has no submit()")
                refuse(pool)
            try:
                if new := [task for task in left if task not in running]:
                    with getattr(pool, "batch", contextlib.nullcontext)():  # submitit: a job array
                        for task in new:
                            attempt += 1
                            running[task] = _submitted(pool, task, attempt)
                for task in _done(running, look):
                    try:
                        outcome = running.pop(task).result()
                    except BrokenExecutor:
                        raise
                    except Exception as error:
                        _again(lost, task, look()[task], error)
                        continue
                    _settled(outcome)
                    del left[task]
            except BrokenExecutor as error:
                running.clear()
                pool.shutdown(True)  # until its other workers have ended too
                if make:
                    _again(lost, "pool", sum(look().values()), error)
                    pool = None
                    continue
                warnings.warn(
                    f"executor: a worker died and its pool with it; the other {len(left)} blocks "
                    "run in this process (give a function that makes the pool to have it replaced)",
                    stacklevel=3,
                )
                for task in left:
                    _settled(work(*task, 0))
                    look()
                left.clear()
        look()
    finally:
        for job in running.values():
            if not job.done():
                job.cancel()
        if make and hasattr(pool, "shutdown"):
            pool.shutdown(False)


def _submitted(pool: Any, task: Task, attempt: int) -> Any:
    try:
        job = pool.submit(work, *task, attempt)
    except BrokenExecutor:
        raise
    except Exception as error:
        raise BadInput(
            f"executor: takes no jobs ({error}); give another, and the same call goes on"
        ) from error
    if isinstance(job, type) or not (hasattr(job, "done") and hasattr(job, "result")):
        raise BadInput(f"executor: submit() gave {job!r}, which has no done() and result()")
    return job


def _done(running: Mapping[Task, Any], look: Callable[[], Any]) -> list[Task]:
    """The tasks that have ended, once there are any."""
    due = time.monotonic()
    while not (done := [task for task, job in running.items() if job.done()]):
        time.sleep(POLL_SECONDS)
        if (now := time.monotonic()) >= due:
            look()
            due = now + max(LOOK_SECONDS, 10 * (time.monotonic() - now))
    return done


def _again(lost: dict[Any, tuple[int, int]], key: Any, saved: int, error: Exception) -> None:
    """Count a loss; raise at the last of TRIES between which nothing was saved."""
    times, before = lost.get(key, (0, saved))
    lost[key] = (times + 1 if saved == before else 1), saved
    if lost[key][0] == TRIES:
        raise BadInput(
            f"executor: lost {TRIES} times in turn ({type(error).__name__}: {error}); the same "
            "call goes on from what is stored"
        ) from error
