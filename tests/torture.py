"""Torture of the engine: kills, damaged files, odd calls; deterministic by seed.

    python -m tests.torture [--kills 200] [--flips 300] [--calls 1000] [--seed 0]

Allowed are the right result, one line of `BadInput`, or an error of the user's own function. A
wrong number, a hang, a traceback, or a file altered by a call that was refused is a finding: it is
printed with what replays it, and the exit status is 1.
"""

import argparse
import collections
import contextlib
import io
import itertools
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import lab.sweep  # noqa: I001  before JAX starts
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import lab.sweep.store as store_module
from lab.sweep import final_states, run, sweep
from lab.sweep.dataset import widened
from lab.sweep.trace import plain
from lab.types import BadInput, Dynamics
from tests.processes import digest, files

SECONDS = 20
"""What one call may take."""

MEGABYTES = 600
"""What one call may add to the memory of this process."""


class Outcome(NamedTuple):
    """How a case ended, and for a finding what was seen."""

    name: str
    seen: str = ""


class Hung(BaseException):
    """The call took too long."""


@contextlib.contextmanager
def limited(seconds: int = SECONDS) -> Iterator[None]:
    """Raise `Hung` in what takes longer."""

    def hung(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# -- Kills ------------------------------------------------------------------------------------


def wandering(lr, seed, size=3):
    """Noise that adds up, so that every run and every record differs."""
    key = jax.random.key(seed)

    def step(state, t):
        x, count = state
        return x + lr * jax.random.normal(jax.random.fold_in(key, t), (size,)), count + 1

    return Dynamics(
        init=lambda: (jnp.zeros(size), jnp.int32(0)),
        step=step,
        observe=lambda state, t: {"first": state[0][0], "moves": state[1]},
        inspect=lambda state, t: {"norm": jnp.sum(state[0] ** 2)},
    )


WANDERING = {
    "axes": {"lr": [0.1, 0.2, 0.3], "seed": [0, 1]},
    "steps": 120,
    "every": 1,
    "inspect_every": 4,
    "layout": {"width": 2, "blocks": 1, "segment": 4},
}
SHORTER, FEWER = {"steps": 46}, {"axes": {"lr": [0.1], "seed": [1]}}
KINDS = {
    "plain": ({}, None),
    "more steps": ({"inspect_every": 2}, SHORTER),
    "more seeds": ({}, FEWER),
    "both": ({"inspect_every": 2}, SHORTER | FEWER),
    "two static": ({"static": {"size": [2, 3]}, "steps": 60}, None),
    "workers": ({"steps": 60}, None),
}
"""{name: (what is asked for, what was done before)}."""


def spawning() -> ProcessPoolExecutor:
    """A pool as a user's script makes it."""
    import multiprocessing

    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def child(kind: str, store: str) -> None:
    """The sweep of one kind; what the killed processes run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    given = WANDERING | KINDS[kind][0]
    executor = spawning if kind == "workers" else None
    print(digest(sweep(wandering, store=store, executor=executor, **given)))


def begun(kind: str, store: Path) -> None:
    """The store before anything was killed."""
    if (before := KINDS[kind][1]) is not None:
        sweep(wandering, store=store, **WANDERING | KINDS[kind][0] | before)


def started(kind: str, store: Path) -> subprocess.Popen[str]:
    """A child in a process group of its own."""
    command = [sys.executable, "-m", "tests.torture", "--child", kind, str(store)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[1],
    )


def ended(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """What it printed; nothing of its group is left."""
    try:
        return process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def newest(store: Path) -> int:
    """When a file of the store was last written."""
    with contextlib.suppress(FileNotFoundError):  # renamed while we look
        return max((f.stat().st_mtime_ns for f in store.rglob("*.npz")), default=0)
    return -1


def killed(kind: str, kills: int, seed: int, whole: tuple[str, dict], folder: Path) -> Outcome:
    """A store killed so often and run again to its end."""
    chance, store, done = random.Random(seed), folder / f"{kind}-{seed}", 0
    begun(kind, store)
    for i in range(kills):
        process, before = started(kind, store), newest(store)
        early = chance.random() < 0.15
        until = time.monotonic() + (chance.uniform(0.5, 3) if early else 60)
        while process.poll() is None and time.monotonic() < until and newest(store) == before:
            time.sleep(0.001)
        time.sleep(0 if early else chance.uniform(0, 0.8) ** 2)
        how = signal.SIGINT if chance.random() < 0.2 else signal.SIGKILL
        if process.poll() is None:
            if how is signal.SIGKILL and chance.random() < 0.5:
                os.killpg(process.pid, how)  # its workers too
            else:
                process.send_signal(how)
        try:
            out, error = ended(process, 60)
        except subprocess.TimeoutExpired:
            return Outcome("HANG", f"workers outlived kill {i}")
        if process.returncode == 0:
            if out.split() != [whole[0]]:
                return Outcome("WRONG", f"other records before kill {i}")
            break
        if process.returncode not in (-how, 130) and "KeyboardInterrupt" not in error:
            return Outcome("TRACEBACK", error[-3000:])
        done += 1
    process = started(kind, store)
    try:
        out, error = ended(process, 120)
    except subprocess.TimeoutExpired:
        return Outcome("HANG", "the last call did not end")
    if process.returncode:
        return Outcome("TRACEBACK", error[-3000:])
    if out.split() != [whole[0]]:
        return Outcome("WRONG", "other records")
    if (now := files(store)) != whole[1]:
        names = sorted(n for n in now.keys() | whole[1].keys() if now.get(n) != whole[1].get(n))
        return Outcome("WRONG", f"other bytes in {names}")
    shutil.rmtree(store)
    return Outcome(str(done))


def kills(count: int, seed: int, folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Stores whose processes are killed until so many were."""
    wholes = {}
    for kind in KINDS:
        store = folder / kind
        begun(kind, store)
        data = sweep(wandering, store=store, **WANDERING | KINDS[kind][0])
        wholes[kind] = digest(data), files(store)
    if count:
        print(f"kills: {len(wholes)} kinds of stores", flush=True)
    total, numbers = 0, itertools.count(seed * 10**6)
    with ThreadPoolExecutor(2) as pool:
        running: dict[Future, tuple[str, int]] = {}
        while total < count:
            while len(running) < 2:
                number = next(numbers)
                kind, most = [*KINDS][number % len(KINDS)], min(5, count)
                job = pool.submit(killed, kind, most, number, wholes[kind], folder)
                running[job] = kind, number
            job = next(iter(running))
            kind, number = running.pop(job)
            outcome = job.result()
            if outcome.name.isdigit():
                total += int(outcome.name)
                yield f"{kind}", Outcome("killed, same bytes", outcome.name)
            else:
                yield f"killed({kind!r}, {most}, {number}, ...)", outcome
                return


# -- Damaged files ----------------------------------------------------------------------------


class Ended(BaseException):
    """The process ends here."""


TINY = {
    "axes": {"lr": [0.1, 0.2], "seed": [0, 1]},
    "steps": 9,
    "every": 1,
    "inspect_every": 3,
    "layout": {"width": 2, "blocks": 1, "segment": 4},
}
STATES = {
    "finished": (1000, None),
    "half done": (7, None),
    "extended": (1000, {"steps": 6}),
    "half extended": (5, {"steps": 6}),
    "two static": (1000, {"static": {"size": [2, 3]}}),
    "half of two": (12, {"static": {"size": [2, 3]}}),
}
"""{name: (after how many writes its process ended, what is otherwise)}."""
OTHERS = {"runs": {"axes": {"lr": [0.3, 0.2], "seed": [0, 5]}}, "cadence": {"inspect_every": 9}}


def made(name: str, store: Path, **other: Any) -> None:
    """A store as it is found."""
    writes, changed = STATES[name]
    changed = dict(changed or {})
    asked = TINY | {k: v for k, v in changed.items() if k == "static"} | other
    if "steps" in changed:
        sweep(wandering, store=store, **asked | changed)
    write, left = store_module._write, iter(range(writes))

    def ending(path: Path, content: bytes) -> None:
        if next(left, None) is None:
            raise Ended
        write(path, content)

    store_module._write = ending
    try:
        with contextlib.suppress(Ended):
            sweep(wandering, store=store, **asked)
    finally:
        store_module._write = write


def kept(store: Path) -> list[Path]:
    """Its files but the lock, in order."""
    return [f for f in sorted(store.rglob("*")) if f.is_file() and f.name != "lock"]


def kind_of(file: Path) -> str:
    """Manifest, runs, records or state."""
    return {"states": "state"}.get(file.parent.name, "record" if file.stem.isdigit() else file.name)


def damaged(store: Path, others: dict[str, Path], chance: random.Random) -> str:
    """Damage one file, or two, and say how."""
    all_files = kept(store)
    kinds = sorted({kind_of(f) for f in all_files})
    kind = chance.choice(kinds)
    file = chance.choice([f for f in all_files if kind_of(f) == kind])
    content, where = file.read_bytes(), file.relative_to(store)
    how = chance.choice(["flip"] * 6 + ["truncate", "empty", "delete", "append", "swap", "other"])
    if how == "flip":
        bit = chance.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        how = f"flip of bit {bit}"
    elif how == "truncate":
        file.write_bytes(content[: chance.randrange(len(content))])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "delete":
        file.unlink()
    elif how == "append":
        file.write_bytes(content + chance.randbytes(chance.choice([1, 100, 70_000])))
    elif how == "swap":
        alike = [f for f in all_files if kind_of(f) == kind and f != file]
        if alike:
            other = chance.choice(alike)
            file.write_bytes(other.read_bytes())
            other.write_bytes(content)
            how = f"swap with {other.relative_to(store)}"
    else:
        name = chance.choice([*others])
        alike = [f for f in kept(others[name]) if kind_of(f) == kind]
        same = others[name] / where
        from_other = same if same.exists() and chance.random() < 0.7 else chance.choice(alike)
        file.write_bytes(from_other.read_bytes())
        how = f"{from_other.relative_to(others[name])} of the store {name!r}"
    return f"{where}: {how}"


def alike(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether two Datasets are the same bit for bit; xarray takes no bfloat16 for the same."""
    if [*one.variables] != [*other.variables]:
        return False
    pairs = [(one[name].variable, other[name].variable) for name in one.variables]
    return all(
        (a.dims, a.dtype, a.shape, a.attrs) == (b.dims, b.dtype, b.shape, b.attrs)
        and a.values.tobytes() == b.values.tobytes()
        for a, b in pairs
        if a.dtype != object
    ) and all(a.values.tolist() == b.values.tolist() for a, b in pairs if a.dtype == object)


def same_states(one: Any, other: Any) -> bool:
    """Whether two states are the same bit for bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def called(function: Callable[[], Any]) -> tuple[Any, Outcome | None]:
    """What it returns, or how it failed."""
    try:
        with limited():
            return function(), None
    except BadInput as error:
        line = str(error)
        if "\n" in line or len(line) > 2000:
            return None, Outcome("NOT ONE LINE", line[:3000])
        if ": " not in line:
            return None, Outcome("NO FIELD", line)
        return None, Outcome("refused", line)
    except Hung:
        return None, Outcome("HANG")
    except (Exception, SystemExit) as error:
        if own(error):
            return None, Outcome("user's own error")
        return None, Outcome("TRACEBACK", traceback.format_exc()[-3000:])


def flips(count: int, seed: int, folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Stores with one damage each."""
    found, whole, others = {}, {}, {}
    for name, (_, changed) in STATES.items():
        made(name, folder / name)
        found[name] = folder / name
        static = {k: v for k, v in (changed or {}).items() if k == "static"}
        whole[name] = sweep(wandering, **TINY | static)
    for name, other in OTHERS.items():
        others[name] = folder / f"other {name}"
        sweep(wandering, store=others[name], **TINY | other)
    like, states, store = wandering(0.1, 0).init(), {}, folder / "store"
    for name, data in whole.items():
        shutil.copytree(found[name], store)
        static = {"static": {"size": [2, 3]}} if "two" in name else {}
        stored = sweep(wandering, store=store, **TINY | static)
        assert digest(stored) == digest(data)
        states[name] = final_states(stored.sel(size=3) if static else stored, like)
        whole[name] = stored
        shutil.rmtree(store)
    for i in range(count):
        chance = random.Random(f"{seed} {i}")
        name = chance.choice([*STATES])
        shutil.copytree(found[name], store)
        others_of = others | {"finished": found["finished"], "half done": found["half done"]}
        how = damaged(store, others_of, chance)
        yield f"flip {i} of seed {seed}: {name}: {how}", _flip(name, store, whole[name], states)
        shutil.rmtree(store)


def _flip(name: str, store: Path, whole: Any, states: dict[str, Any]) -> Outcome:
    static = {"static": {"size": [2, 3]}} if "two" in name else {}
    like = wandering(0.1, 0).init()
    data = whole.sel(size=3) if static else whole
    before = files(store)
    for_states, failed = called(lambda: final_states(data, like))
    if files(store) != before:
        return Outcome("FILES ALTERED", "by final_states")
    if failed and failed.name != "refused":
        return failed
    if not failed and not same_states(for_states, states[name]):
        return Outcome("WRONG", "final_states")
    again, failed = called(lambda: sweep(wandering, store=store, **TINY | static))
    if failed:
        if failed.name == "refused" and (now := files(store)) != before:
            lost = sorted(f for f in before if now.get(f) != before[f])
            if lost:
                return Outcome("FILES ALTERED", f"{lost} by a call refused: {failed.seen}")
            return Outcome("FILES ADDED", f"by a call refused: {failed.seen}")
        return failed
    if not alike(again, whole):
        return Outcome("WRONG", "Dataset")
    data = again.sel(size=3) if static else again
    for_states, failed = called(lambda: final_states(data, like))
    if failed:
        return Outcome("WRONG", f"finished, but final_states: {failed.seen}")
    if not same_states(for_states, states[name]):
        return Outcome("WRONG", "final_states after the call")
    return Outcome("right")


# -- Odd calls --------------------------------------------------------------------------------


class Own(Exception):
    """An error of the user's own."""


def raising(*_: Any, **__: Any) -> Any:
    """The user's own function fails."""
    raise Own


def total(*values: Any) -> jax.Array:
    """All numbers of the hyperparameters, so that none can go missing."""
    result = jnp.float32(0)
    for i, value in enumerate(values):
        if isinstance(value, bool | int | float | np.generic | np.ndarray | jax.Array):
            array = jnp.asarray(value)
            if jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool:
                result += (i + 1) * jnp.sum(jnp.real(array).astype(jnp.float32))
        elif isinstance(value, str):
            result += len(value)
    return result


def moving(lr=0.5, seed=0, **rest):
    """A process whose every record tells its hyperparameters."""
    start = total(*(rest[name] for name in sorted(rest)))
    return Dynamics(
        init=lambda: {"x": start + lr, "n": jnp.asarray(seed, jnp.int32)},
        step=lambda s, t: {"x": s["x"] + lr, "n": s["n"] + 1},
        observe=lambda s, t: {"x": s["x"], "v": jnp.stack([s["x"], lr * 1.0])},
        inspect=lambda s, t: {"m": s["n"] * jnp.ones((2, 3))},
    )


def state(make: Callable[[], Any]) -> Callable[..., Dynamics]:
    """A process that holds an odd state."""

    def process(lr=0.5, seed=0):
        return Dynamics(make, lambda s, t: s, lambda s, t: {"y": lr * jnp.ones(2)})

    return process


def stateful(make: Callable[[], Any]) -> Callable[..., Dynamics]:
    """A process whose odd state moves and is recorded."""

    def process(lr=0.5, seed=0):
        return Dynamics(make, lambda s, t: s + s, lambda s, t: {"y": s})

    return process


def record(name: Any, make: Callable[[], Any] = lambda: jnp.ones(())) -> Callable[..., Dynamics]:
    """A process with one odd record."""

    def process(lr=0.5, seed=0):
        made = moving(lr, seed)
        return made._replace(observe=lambda s, t: made.observe(s, t) | {name: make()})

    return process


def changed(**functions: Any) -> Callable[..., Any]:
    """A process of which some functions are others."""
    return lambda lr=0.5, seed=0: moving(lr, seed)._replace(**functions)


def shown(s: Any) -> Any:
    """Calls back to print."""
    jax.debug.print("{}", s["x"])
    return s


def calling(s: Any) -> Any:
    """Calls back to NumPy."""
    like = jax.ShapeDtypeStruct((), jnp.float32)
    x = jax.pure_callback(lambda x: np.asarray(x + 1), like, s["x"], vmap_method="sequential")
    return s | {"x": x}


class Idle:
    """No executor, though it takes jobs."""

    def __init__(self, result: Any = None, job: Any = None):
        self.result, self.job = result, job

    def submit(self, *_: Any) -> Any:
        if self.job is not None:
            return self.job
        done: Future = Future()
        done.set_result(self.result)
        return done


def shut() -> ThreadPoolExecutor:
    """An executor that takes no jobs any more."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    return pool


class Naughty:
    """An object whose every look fails."""

    def __len__(self) -> int:
        raise Own

    def __iter__(self) -> Iterator[Any]:
        raise Own


class Point(NamedTuple):
    """A tuple with names."""

    a: float
    b: float


VALUES = """
None | 0 | -1 | 1 | 2 | True | False | 3 | 2**31-1 | 2**31 | 2**63 | -2**63 | 10**20
0.0 | -0.0 | 0.5 | 1e-3 | 1e39 | 1e-50 | -1e300 | math.nan | math.inf | -math.inf | 1j | 2**24 + 1
'' | 'a' | 'nan' | '1' | ' ' | '/' | '..' | 'a/b' | 'a\\0' | 'a\\nb' | 'é' | '\\ud800' | 'x' * 300
b'' | b'a' | bytearray(b'ab') | memoryview(b'ab') | [] | () | {} | set() | [[]] | [[1], [1, 2]]
[1, 2] | (1, 2) | {1, 2} | {'a': 1} | {'a': [1.0, 2.0]} | {'a': 'b'} | [None] | ['a'] | [True, 1]
range(0) | range(3) | range(10**20) | itertools.count() | itertools.repeat(1) | iter([0.1, 0.2])
(i for i in range(2)) | map(str, [1, 2]) | zip([1, 2], [3, 4]) | lambda: 1 | lambda x: x | int
object() | object | Ellipsis | NotImplemented | print | math | Own | raising | Naughty()
Point(1, 2)
np.float32(0.1) | np.float64(0.1) | np.float16(0.1) | np.int8(3) | np.uint8(3) | np.int64(2**40)
np.bool_(True) | np.str_('a') | np.longdouble(0.1) | np.complex64(1) | np.datetime64('2020')
np.timedelta64(1, 's') | np.void(b'a') | np.nan | np.ma.masked | np.ones(()) | np.ones(0)
np.ones((0, 2)) | np.arange(2) | np.arange(3, dtype=np.uint8) | np.linspace(0, 1, 3)
np.ones((2, 2)) | np.array(['a', 'b']) | np.array([1, None]) | np.array([None, {}], object)
np.array([1, 2], 'm8[s]') | np.array([1, 2], 'M8[s]') | np.array([1.0], np.longdouble)
np.array([(1, 2.0)], [('a', int), ('b', float)]) | np.ma.array([1.0, 2.0], mask=[0, 1])
np.array([2**62, 1]) | np.array([True, False]) | np.array([0.1], np.float16) | np.array([1j])
np.array([np.nan, 1.0]) | np.rec.array([(1, 2)]) | np.matrix([[1.0, 2.0]]) | np.array([b'a'])
jnp.ones(()) | jnp.arange(2) | jnp.ones(2, jnp.bfloat16) | jnp.ones(2, jnp.float8_e5m2)
jnp.ones((2, 2)) | jnp.zeros(0) | jax.random.key(0) | jax.random.split(jax.random.key(0))
[2**53 + 1, 0.5] | [2**63, -1] | [2**70] | [0.1, np.float32(0.1)] | [-0.0, 0.0] | [1, 1.0]
[np.ma.masked, 1.0] | [jnp.float32(1), 2.0] | [decimal.Decimal('0.1')] | [fractions.Fraction(1, 2)]
xr.DataArray([0.1, 0.2]) | xr.Dataset({'a': ('a', [1])}) | enum.Enum('E', 'a b') | [[0.1, 0.2]]
collections.OrderedDict(a=1.0) | collections.deque([0.1, 0.2]) | collections.UserDict(a=1)
types.MappingProxyType({'a': 1.0}) | [(0.1, 3), (0.2, 4)] | np.array([[0.1, 3], [0.2, 4]])
['ab', 'cd'] | [b'ab', b'cd'] | [[0.1, [1]]] | [(0.1, [[1], [1, 2]])] | [Point(0.1, 3)]
[(0.1,)] | [(0.1, None)] | {(0.1, 3), (0.2, 4)} | [np.ones(())] | [np.array([0.1, 3])]
"""
WITH = {
    "dynamics": """
        V | lambda lr: V | lambda lr: Dynamics | lambda lr: moving | lambda **all: moving(**all)
        lambda *all: moving() | lambda lr, /: moving(lr) | functools.partial(moving) | type | dict
        Dynamics | raising | lambda lr: raising() | moving(0.1) | changed(init=raising)
        changed(init=V)
        changed(step=raising) | changed(observe=raising) | changed(inspect=raising)
        changed(init=lambda: V)
        changed(step=lambda s, t: V) | changed(observe=lambda s, t: V) | changed(step=lambda s: s)
        changed(inspect=lambda s, t: V) | changed(observe=lambda s, t: {})
        changed(inspect=lambda s, t: {})
        changed(step=lambda s, t: shown(s)) | changed(step=lambda s, t: calling(s))
        state(lambda: V)
        changed(observe=lambda s, t: {'y': calling(s)['x']}) | state(lambda: [V, jnp.ones(1)])
        stateful(lambda: V) | stateful(lambda: jnp.ones(2, D)) | state(lambda: jnp.ones(2, D))
        stateful(lambda: jnp.ones((0, 2), D)) | stateful(lambda: 2**31 - 1) | state(lambda: {})
        stateful(lambda: np.ones(2, D)) | state(lambda: {'a': {}, 'b': ()}) | state(lambda: 2**40)
        record(N) | record('y', lambda: V) | record('y', lambda: jnp.ones(2, D)) | record(V)
        record('y', lambda: jnp.zeros((0, 3), D)) | record('y', lambda: np.ones(2, D))
        record('v_0') | record('m') | record('v', lambda: jnp.ones(3))
        state(lambda: jax.random.key(1))
        changed(step=lambda s, t: s | {'x': s['x'] * 1e30}) | changed(step=lambda s, t: s
        {'x': s['x'] / 0})
        changed(step=lambda s, t: s | {'x': jnp.float32(t)}) | state(lambda: np.int64(2**40))
        state(lambda: np.float64(1e300)) | state(lambda: np.ma.array([1.0], mask=[1]))
        state(lambda: [jnp.ones(())] * 300)
        changed(observe=lambda s, t: {'y': t, 'z': s['x'] > 0})
    """,
    "axes": """
        V | {'lr': V} | {'lr': V} | {'lr': [V]} | {'lr': [0.5, V]} | {'seed': V} | {'other': V}
        {'other': [V, V]} | {'other': [V, 3]} | {('lr', 'other'): V} | {('lr', 'seed'): V}
        {('lr', 'other'): [(0.5, V)]} | {('lr', 'other'): [V]} | {('lr',): V} | {('lr',): [V]}
        {'lr': [0.5], 'mask': {'a': V}} | {'mask': {V: [1.0]}} | {'mask': {V: 1.0, V: 2.0}}
        {'mask': {'a': [1.0], V: [2.0]}} | {'mask': {'a': V, 'b': V}} | {V: [0.5]}
        {N: [0.5, 0.25]}
        {(N, 'lr'): [(1, 2)]} | {V: V} | {'lr': {V: 0.5, 2: 0.25}} | {'mask': {1: 2.0, 2.5: 1.0}}
        {('a', 'b'): [(1, 2)], 'a_b': [1]} | {('a', 'b_c'): [(1, 2)], ('a_b', 'c'): [(3, 4)]}
        {'lr': [0.5], 'x': [1]} | {'lr': [0.5], 'v_0': [1]} | {'diverged_at': [1]} | {'all': [1]}
        {'lr': range(300), 'seed': range(10**6)} | {'lr': {V: 0.5}, 'seed': {V: 3}} | {'rest': V}
    """,
    "steps": "V",
    "every": "V",
    "inspect_every": "V",
    "static": """
        V | {'other': V} | {'other': [V]} | {'other': {'a': V}} | {'other': {V: V}} | {V: [1]}
        {N: [1]}
        {'lr': V} | {'seed': V} | {'seed': [V]} | {'other': [1, 2.5]} | {'other': [V, 'b']}
        {'other': {'a\\0': 1, 'a': 2}} | {'other': [1, V]} | {'x': [1]} | {'v_1': [1, 2]}
        {'std': [1]}
    """,
    "shared": """
        V | {'other': V} | {'other': [V]} | {V: 1.0} | {N: 1.0} | {'lr': V} | {'lr': 1, 'seed': V}
    """,
    "dims": """
        V | {'v': V} | {'v': [V]} | {'v': (N,)} | {'m': ('a', N)} | {'m': ('a', 'a')} | {N: ('a',)}
        {V: V} | {'x': ()} | {'x': V} | {'v': ('lr',)} | {'v': ('x',)} | {'v': ('m_0',)}
        {'m': 'ab'}
        {'v': ('m_0',), 'm': ('b', 'c')} | {'v': ('lr_seed',)} | {'v': ('v',)} | {'v': ('step',)}
    """,
    "attrs": """
        V | {'lr': V} | {'x': V} | {'x': {'units': V}} | {'x': {V: 'm'}} | {V: {}} | {N: {'a': 'b'}}
        {'step': {'units': 's'}} | {'v': {'nested': {'a': [1]}}} | {'diverged_at': {'a': 1}}
    """,
    "layout": """
        V | {'width': V} | {'blocks': V} | {'segment': V} | {'devices': V} | {V: 1} | 'measure'
        {'width': 2**16} | {'blocks': 2**16} | {'segment': 10**12} | {'width': 10**9}
        Layout(width=V)
        {'width': 2, 'segment': 3, 'blocks': 2} | {'width': 2**16, 'blocks': 16}
        Layout(1, 2, 3, 4)
    """,
    "store": """
        V | tmp / 'a b' | tmp / 'é ☃' | tmp / 'a\\nb' | str(tmp / 'x') + '/' | tmp / ('a' * 300)
        tmp
        str(tmp) + '/\\ud800' | str(tmp) + '/\\0' | '/dev/null' | '/proc/none' | '/dev/null/x'
        bytes(tmp)
        '/sys/none' | str(tmp / 'a' / '..' / 'b') | str(tmp) + '/a' * 3000 | tmp / '%s {} $HOME'
    """,
    "executor": """
        V | Idle() | Idle(b'') | Idle(5) | Idle(job=5) | lambda: Idle() | lambda: V | shut() | shut
        ThreadPoolExecutor(1) | ThreadPoolExecutor | Idle | lambda: ThreadPoolExecutor(1) | raising
        ProcessPoolExecutor(1) | Executor() | Idle(job=Future) | Idle(pickle.dumps(V))
    """,
    "keep": "V | 'final' | 'Final' | 'all' | [0, 3] | range(5) | [V]",
    "on_segment": "5 | 'x' | [] | print | repr | lambda: None | lambda reached: V",
    "feed": """
        V | Feed | Feed(lambda *_: {}, V) | Feed(lambda *_: V, 2) | Feed(5, 2)
        Feed(lambda *_: {}, 5) | Feed(lambda *_: {}, 2)
    """,
    "progress": "V",
}
"""{argument: odd ones}, where V stands for any of VALUES, N for a name, D for a dtype."""

NAMES = """
'v_0' | 'a/b' | 'a.b' | 'a b' | 'a\\0' | 'a\\nb' | '' | ' ' | '.' | '..' | 'é' | '☃' | 'step'
'finite' | 'lr' | 'x'
'v' | 'std' | 'data_vars' | '1a' | '_a' | 'None' | 'lambda' | 'step_rare' | 'diverged_at' | 'a'
'ﬁ' | 'dims'
'digest' | 'names' | 'm' | 'm_0' | 'attrs' | 'of/a' | 'n' | 'self' | 'before' | 'file'
"""
DTYPES = """
    bool int8 int16 int32 int64 uint8 uint32 uint64 float16 float32 float64 bfloat16 complex64
    complex128 float8_e5m2 float8_e4m3fn float8_e4m3b11fnuz int4 uint4 int2 float4_e2m1fn"""
GOOD = {
    "dynamics": "moving",
    "axes": "{'lr': [0.5, 0.25], 'seed': [3, 1]}",
    "steps": "4",
    "every": "2",
}


def listed(text: str) -> list[str]:
    """The entries of such a table."""
    return [one.strip() for line in text.strip().splitlines() for one in line.split(" | ")]


def filled(text: str, chance: random.Random) -> str:
    """An entry with its letters replaced."""
    for letter, make in (
        ("V", lambda: f"({chance.choice(listed(VALUES))})"),
        ("D", lambda: f"jnp.{chance.choice(DTYPES.split())}"),
        ("N", lambda: chance.choice(listed(NAMES))),
    ):
        text = re.sub(rf"\b{letter}\b", lambda _, make=make: make(), text)
    return text


def case(chance: random.Random) -> dict[str, str]:
    """One odd call: {argument: Python expression}."""

    given = dict(GOOD)
    for name in chance.sample([*WITH], chance.choice([1, 1, 1, 2])):
        given[name] = filled(chance.choice(listed(WITH[name])), chance)
    if "store" not in given and (chance.random() < 0.4 or "executor" in given):
        given["store"] = "tmp / 'store'"
    if "inspect_every" not in given and chance.random() < 0.9:
        given["inspect_every"] = "2"
    return given


ODD_DATA = """
V | data | one | data.mean() | data.drop_vars('step') | data.transpose() | data.reset_coords()
data.rename(lr='rate') | data.assign_attrs(steps=1) | data.assign_attrs(store='/none') | data['x']
data.assign_attrs(store=V) | data.assign_attrs(axes=V) | data.assign_attrs(static=V) | one.load()
data.isel(step=0) | data.drop_attrs() | data.assign_coords(lr=('lr', data.lr.values + 1))
data.isel(lr=[]) | data.stack(run=('lr', 'seed')) | data.expand_dims('k') | data.to_dataframe()
data.assign_coords(seed=data.seed.values.astype(str)) | data.isel(lr=[0, 0]) | data.to_array()
"""


def evaluated(given: dict[str, str], tmp: Path, more: Any = None) -> dict[str, Any]:
    """The arguments of an odd call, made anew."""
    modules = ("decimal", "enum", "fractions", "functools", "pickle", "types")
    known = {name: __import__(name) for name in modules}
    known |= (
        globals()
        | (more or {})
        | {"tmp": tmp, "xr": xr, "Executor": Executor}
        | {"Layout": lab.sweep.Layout, "Feed": lab.sweep.Feed}
    )
    return {name: eval(compile(text, "<odd>", "eval"), known) for name, text in given.items()}


def own(error: BaseException) -> bool:
    """Whether a function or an object of the user's raised it."""
    frames = [f.filename for f in traceback.extract_tb(error.__traceback__)]
    engine = [i for i, f in enumerate(frames) if "/lab/sweep/" in f]
    users = [i for i, f in enumerate(frames) if f in (__file__, "<odd>")]
    notes = "".join(getattr(error, "__notes__", ()))
    return bool(engine and users[-1] > engine[0]) or isinstance(error, Own) or "<odd>" in notes


def bare(value: Any) -> Any:
    """A label as Python has it."""
    return value.item() if hasattr(value, "item") else value


def entries(name: Any, values: Any) -> tuple[dict[str, list], list[dict[str, Any]]]:
    """Labels of an axis, and what its runs receive; by the plainest reading."""
    if isinstance(values, collections.abc.Mapping):
        return {name: [bare(v) for v in values]}, [{name: np.asarray(v)} for v in values.values()]
    names = name if isinstance(name, tuple) else (name,)
    rows = [row if isinstance(name, tuple) else (row,) for row in values]
    columns = [np.asarray([bare(row[i]) for row in rows]) for i in range(len(names))]
    labels = {n: [bare(row[i]) for row in rows] for i, n in enumerate(names)}
    return labels, [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def jax_array(value: Any) -> Any:
    """A number in JAX's precision; whatever else as it is."""
    if isinstance(value, jax.Array):
        return value
    array = np.asarray(value)
    return jnp.asarray(array.astype(np.int32) if array.dtype.kind in "iuO" else array)


def same(got: Any, wanted: Any) -> bool:
    """Whether two arrays hold the same numbers, but for rounding."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    wide = np.complex128
    return np.allclose(got.astype(wide), wanted.astype(wide), rtol=1e-5, atol=1e-6, equal_nan=True)


def disagreement(data: Any, asked: dict[str, Any], chance: random.Random, like: list) -> str:
    """Where a Dataset differs from a plain loop, or nothing."""
    made = [(entries(n, v), isinstance(n, tuple)) for n, v in asked["axes"].items()]
    dims, labels = ["_".join(one) for (one, _), _ in made], {}
    for (one, _), _ in made:
        labels |= one
    points = [rows for (_, rows), _ in made]
    for name, values in (asked.get("static") or {}).items():
        mapped = isinstance(values, collections.abc.Mapping)
        labels[name] = [bare(v) for v in values]
        dims.append(name)
        given = [*values.values()] if mapped else labels[name]
        points.append([{name: Static(v)} for v in given])
    for name, wanted in labels.items():
        if data[name].values.tolist() != wanted:
            return f"coordinate {name}: {data[name].values.tolist()} is not {wanted}"
    steps, every, rare = asked["steps"], asked["every"], asked.get("inspect_every")
    at = {
        stream: [*map(int, given)] if np.iterable(given) else [*range(0, steps + 1, given)]
        for stream, given in (("step", every), ("step_rare", rare))
        if given is not None
    }
    for name, wanted in at.items():
        if data[name].values.tolist() != wanted:
            return f"coordinate {name}"
    for name, said in (asked.get("attrs") or {}).items():
        if {**data[name].attrs, **said} != data[name].attrs:
            return f"attrs of {name}"
    sizes = [len(rows) for rows in points]
    if [data.diverged_at.sizes[d] for d in dims] != sizes or [*data.diverged_at.dims] != dims:
        return f"dims {data.diverged_at.sizes} are not {dims}"
    indices = [*itertools.islice(itertools.product(*map(range, sizes)), 1000)]
    for index in chance.sample(indices, min(4, len(indices))):
        point = {k: v for rows, i in zip(points, index, strict=True) for k, v in rows[i].items()}
        one = data.isel(dict(zip(dims, index, strict=True)))
        if wrong := _run_differs(one, asked, point, at, like):
            return f"{wrong} at {point}"
        like.append(dict(zip(dims, index, strict=True)))
    return ""


class Static(NamedTuple):
    """A value that stays as it is."""

    value: Any


def _run_differs(one: Any, asked: dict, point: dict, at: dict, like: list) -> str:
    shared = {name: jax_array(v) for name, v in (asked.get("shared") or {}).items()}
    values = {k: v.value if isinstance(v, Static) else jax_array(v) for k, v in point.items()}
    process = asked["dynamics"](**shared, **values)
    now, seen, bad = jax.tree.map(jnp.asarray, process.init()), collections.defaultdict(list), []
    for t in range(asked["steps"] + 1):
        for stream, function in (("step", process.observe), ("step_rare", process.inspect)):
            if t in at.get(stream, ()):
                for name, value in function(now, jnp.int32(t)).items():
                    seen[name].append(np.asarray(jnp.asarray(value)))
        if t in at["step"]:
            inexact = [x for x in jax.tree.leaves(now) if jnp.issubdtype(x.dtype, jnp.inexact)]
            if not all(np.isfinite(np.asarray(x).astype(complex)).all() for x in inexact):
                bad.append(t)
        if t < asked["steps"]:
            now = process.step(now, jnp.int32(t))
    like[:] = [process.init(), now]
    wanted = float(bad[0]) if bad else math.nan
    if not np.array_equal(float(one.diverged_at), wanted, equal_nan=True):
        return f"diverged_at is {float(one.diverged_at)}, not {wanted}"
    names = {*one.data_vars} - {"diverged_at"}
    if names != {*seen}:
        return f"records {names} are not {[*seen]}"
    for name, records in seen.items():
        stream = "step" if name in process.observe(now, jnp.int32(0)) else "step_rare"
        own_dims = (asked.get("dims") or {}).get(name)
        own_dims = own_dims or [f"{name}_{i}" for i in range(records[0].ndim)]
        if [*one[name].dims] != [stream, *own_dims]:
            return f"dims of {name}: {one[name].dims}"
        if not same(one[name].values, widened(np.stack(records))):
            return f"{name} is {one[name].values}, not {np.stack(records)}"
    return ""


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """A memory that ends before the machine's does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 6 * 2**30, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def odd_call(given: dict[str, str], tmp: Path, chance: random.Random) -> Outcome:
    """One odd call, judged."""
    compiled, program = [], run.program

    def noted(*arguments: Any, **settings: Any) -> Any:
        compiled.append(True)
        return program(*arguments, **settings)

    try:
        asked = evaluated(given, tmp)
    except Exception:  # such as an unhashable name
        return Outcome("no call")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.program = noted
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            spared(),
        ):
            warnings.simplefilter("ignore")
            data, failed = called(lambda: sweep(**asked))
            outcome = failed or _judged(data, given, tmp, chance)
    finally:
        run.program = program
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > MEGABYTES * 1000:
        return Outcome("MEMORY", f"more than {MEGABYTES} MB, then {outcome}")
    if outcome.name == "refused" and compiled:
        return outcome._replace(name="refused late")
    return outcome


def _judged(data: Any, given: dict[str, str], tmp: Path, chance: random.Random) -> Outcome:
    """What was returned, held against a plain loop; and its store."""
    like: list = []
    wrong, failed = called(lambda: disagreement(data, evaluated(given, tmp), chance, like))
    if failed or wrong:
        return Outcome("WRONG", wrong or f"the plain loop fails: {failed}")
    if "store" not in data.attrs:
        return Outcome("right")
    again, failed = called(lambda: sweep(**evaluated(given, tmp)))
    if failed or not alike(again, data):
        return Outcome("WRONG", f"called again: {failed or 'another Dataset'}")
    init, last, index = like
    one = again.isel(index)
    held, failed = called(lambda: final_states(one, init))
    if failed and "keep" not in given:
        return Outcome("WRONG", f"final_states: {failed}")
    for ours, theirs in zip(jax.tree.leaves(held), jax.tree.leaves(last), strict=True):
        if not same(*(plain(x) for x in (ours, theirs))):
            return Outcome("WRONG", f"final_states: {ours} is not {theirs}")
    known = {"data": data, "one": one, "init": init}
    text = {"data": chance.choice(listed(ODD_DATA)), "like": chance.choice(["init", "V", "[V]"])}
    text = {name: filled(t, chance) for name, t in text.items()}
    with contextlib.suppress(Exception):  # xarray's own
        odd = evaluated(text, tmp, known)
        _, failed = called(lambda: final_states(odd["data"], odd["like"]))
        if failed and failed.name.isupper():
            return failed._replace(seen=f"final_states of {text}: {failed.seen}")
    return Outcome("right, stored")


def calls(count: int, seed: int, folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Odd calls."""
    for i in range(count):
        for j in itertools.count():
            chance = random.Random(f"{seed} {i} {j}")
            given, tmp = case(chance), folder / f"call-{i}-{j}"
            tmp.mkdir()
            outcome = odd_call(given, tmp, chance)
            shutil.rmtree(tmp, ignore_errors=True)
            if outcome.name != "no call":
                break
        yield (
            f"call {i} of seed {seed}: sweep({', '.join(f'{k}={v}' for k, v in given.items())})",
            outcome,
        )


# -- All --------------------------------------------------------------------------------------

PARTS = {"calls": calls, "flips": flips, "kills": kills}


def tortured(counts: dict[str, int], seed: int, most: int = 1) -> tuple[str, list[str]]:
    """A table of outcomes, and the findings; a part ends at so many of them."""
    rows, findings = [], []
    for part, function in PARTS.items():
        if not counts[part]:
            continue
        begun_at, seen = time.monotonic(), collections.Counter()
        with tempfile.TemporaryDirectory() as folder:
            for what, outcome in function(counts[part], seed, Path(folder)):
                seen[outcome.name] += (
                    int(outcome.seen) if part == "kills" and outcome.seen.isdigit() else 1
                )
                if outcome.name.isupper():
                    findings.append(f"{what}\n  {outcome.name}: {outcome.seen}")
                    print(findings[-1], flush=True)
                    if sum(n for name, n in seen.items() if name.isupper()) >= most:
                        break
        took = f"{time.monotonic() - begun_at:.0f} s"
        rows += [f"{part:6} {name:24} {n:6}" for name, n in sorted(seen.items())]
        rows.append(f"{part:6} {'(time)':24} {took:>6}")
    return "\n".join(rows), findings


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for part, size in (("kills", 200), ("flips", 300), ("calls", 1000), ("seed", 0)):
        parser.add_argument(f"--{part}", type=int, default=size)
    parser.add_argument("--findings", type=int, default=1, help="how many before a part ends")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return 0
    counts = {part: getattr(given, part) for part in PARTS}
    table, findings = tortured(counts, given.seed, given.findings)
    print(f"\n{table}\n{len(findings)} findings")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
