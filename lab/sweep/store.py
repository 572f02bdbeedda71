"""A store: a sweep on disk that survives kill -9 and grows by more runs or more steps.

    store/lock              held by the one coordinator; the operating system lets go when it dies
    store/[width=32/]       one part a static point
        manifest.json       what computes it, and its layout; never changed
        runs.npz            name and hyperparameters of each run, by row
        records/00003/0000000140.npz    dispatch 3, the records of a segment that ends at step 140
        states/00003.npz    dispatch 3: its state, its step, its last file of records
    kept/00003/0000000140.npz       dispatch 3: its state at step 140, where that is kept
        measured/KEY/00003/0000000140.npz   what a measure gave of that state: see `measuring`
    lease-*.pkl         while an executor's workers write here too: see `jobs`

A segment's records are written first, then a kept state, then its dispatch's state is renamed into
place. That rename is the commit: what lies past it is ignored and written again, to the same bytes.

Nothing is read on trust. The manifest, the runs and each state hold a digest of themselves; a state
holds the digest of its last file of records, which holds that of the file before, and so on; and a
state names the manifest and the runs that it belongs to.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import itertools
import json
import math
import os
import struct
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import jax.numpy as jnp
import numpy as np

from lab.sweep.cadence import BEFORE
from lab.sweep.identity import Identity, refuse_other
from lab.sweep.layout import Layout
from lab.types import BadInput

Records = Mapping[str, np.ndarray]
"""{name: values}, with leading axes (run of the dispatch, record); in a store also the steps of
its records, {"@STREAM": [[step, ...]]}."""

_SIZES = struct.Struct("<HH")
"""Of a zip member's name and extra field, in its own header."""

AGAIN = "remove it and call again, or give another store"


class Last(NamedTuple):
    """The last file of a dispatch's records: the step it ends at and its digest."""

    step: int
    digest: str


class Saved(NamedTuple):
    """A dispatch as last saved: its step, the leaves of its state, its last file of records."""

    step: int
    leaves: list[np.ndarray]
    last: Last


class Store(NamedTuple):
    """One part of a store, as it was when it was opened.

    Attributes:
        path: its folder.
        layout: of the whole part; `devices` is not kept, for nothing depends on it.
        origin: a digest of the manifest.
        names: the name of each row's run, empty where the row is padding.
        points: {hyperparameter: values by row}.
        seen: {dispatch: the step that it was last found at}, which only grows.
        about: what it says of itself; see `lab.sweep.about`.
    """

    path: Path
    layout: Layout
    origin: str
    names: list[str]
    points: dict[str, np.ndarray]
    seen: dict[int, int]
    about: Mapping[str, Any] = {}

    def found(self, names: Sequence[str]) -> np.ndarray:
        """The row of each run, -1 where the store does not have it."""
        if self.names[: len(names)] == [*names]:  # the same call again
            return np.arange(len(names))
        row = {name: i for i, name in enumerate(self.names)}
        return np.array([row.get(name, -1) for name in names], int)

    def rows(self, names: Sequence[str]) -> np.ndarray:
        """The row of each run, all of which must be there."""
        rows = self.found(names)
        for i in np.flatnonzero(rows < 0).tolist():
            raise BadInput(f"store: {self.path} has no run {names[i]}; sweep it first")
        return rows

    def dispatches(self, names: Sequence[str]) -> list[int]:
        """The dispatches that hold those of the runs that the store knows."""
        rows = self.found(names)
        return np.unique(rows[rows >= 0] // self.layout.runs).tolist()

    def reached(self, dispatch: int, enough: float = math.inf) -> int:
        """The step that a dispatch is saved at, or BEFORE. Read often: not checked.

        Args:
            dispatch: its number.
            enough: where it was found at this step or beyond, it is not looked at again.
        """
        if self.seen.get(dispatch, BEFORE) >= enough:
            return self.seen[dispatch]
        file = self._state(dispatch)
        with _reading(file):
            if not file.exists():
                return BEFORE
            with file.open("rb") as opened, np.load(opened) as held:
                self.seen[dispatch] = int(held["step"])
        return self.seen[dispatch]

    def load(self, dispatch: int) -> Saved | None:
        """The dispatch as last saved, or None if it has not been started.

        Raises:
            BadInput: its file is damaged, or is of other runs or another store.
        """
        held = self._held(dispatch)
        return Saved(int(held["step"]), _leaves(held), _last(held)) if held else None

    def _held(self, dispatch: int) -> dict[str, np.ndarray] | None:
        """What a dispatch's state file holds, checked, or None."""
        held = self._owned(self._state(dispatch), dispatch)
        if held:
            self.seen[dispatch] = int(held["step"])
        return held

    def _owned(
        self, file: Path, dispatch: int, step: int | None = None
    ) -> dict[str, np.ndarray] | None:
        """What a file holds, if it is this dispatch's, and of this step; None if there is none."""
        with _reading(file):
            held = _unsealed(file.read_bytes()) if file.exists() else None
        if held and str(held["belongs"]) != self._belongs(dispatch):
            raise BadInput(f"store: {file} belongs to other runs or another store; {AGAIN}")
        if held and step is not None and int(held["step"]) != step:
            raise BadInput(f"store: {file} is of step {held['step']}; {AGAIN}")
        return held

    def keeps(self, dispatch: int, step: int) -> bool:
        """Whether a dispatch's state at this step has a file of its own."""
        return self._kept(dispatch, step).exists()

    def keep(self, dispatch: int, step: int, leaves: Sequence[Any]) -> None:
        """Give a dispatch's state at this step a file of its own."""
        with _writing(self.path):
            content = {"step": step, "belongs": self._belongs(dispatch), **_named(leaves)}
            _write(self._kept(dispatch, step), _sealed(content))

    def at(self, dispatch: int, step: int) -> list[np.ndarray] | None:
        """The leaves of a dispatch's state at this step, or None where it was not kept.

        Raises:
            BadInput: its file is damaged, or is of other runs, another step or another store.
        """
        file = self._kept(dispatch, step)
        held = self._owned(file, dispatch, step)
        if held is None:
            saved = self.load(dispatch)
            return saved.leaves if saved and saved.step == step else None
        return _leaves(held)

    def has_measured(self, key: str, dispatch: int, step: int) -> bool:
        """Whether a measure of a dispatch's state at this step is kept under this key."""
        return self._measured(key, dispatch, step).exists()

    def measured(self, key: str, dispatch: int, step: int) -> Records | None:
        """{name: values by run} that a measure gave of a dispatch's state, or None.

        Raises:
            BadInput: the file is damaged, or is of other runs, another step or another store.
        """
        held = self._owned(self._measured(key, dispatch, step), dispatch, step)
        return held and {n.removeprefix("of/"): a for n, a in held.items() if n.startswith("of/")}

    def keep_measured(self, key: str, dispatch: int, step: int, records: Records) -> None:
        """Keep what a measure gave of a dispatch's state at this step."""
        head = {"step": step, "belongs": self._belongs(dispatch)}
        values = {f"of/{name}": _storable(array) for name, array in records.items()}
        with _writing(self.path):
            _write(self._measured(key, dispatch, step), _sealed({**head, **values}))

    def append(
        self,
        dispatch: int,
        last: Last | None,
        step: int,
        records: Records,
        leaves: Sequence[Any],
        kept: bool = False,
    ) -> Last:
        """Commit a segment: its records, then the state that they lead to.

        Args:
            dispatch: its number.
            last: what the segment follows.
            step: that it ends at.
            records: of the segment.
            leaves: of the state, or none to keep none.
            kept: whether the state gets a file of its own too.
        """
        records, before = {name: _storable(array) for name, array in records.items()}, last
        if last and self._within(last.step):
            start, before = self._segment(dispatch, last)
            records = {name: np.concatenate([start[name], records[name]], 1) for name in records}
        records = {name: np.ascontiguousarray(array) for name, array in records.items()}
        link = np.array([str(before.step), before.digest] if before else [str(BEFORE), ""])
        content = _npz({**{f"of/{n}": array for n, array in records.items()}, "before": link})
        with _writing(self.path):
            _write(self._file(dispatch, step), content)
            if kept:
                self.keep(dispatch, step, leaves)
            last = Last(step, _digest(content))
            head = {"step": step, "last": last.digest, "belongs": self._belongs(dispatch)}
            _write(self._state(dispatch), _sealed({**head, **_named(leaves)}))
        self.seen[dispatch] = step
        return last

    def segments(self, dispatch: int) -> Iterator[tuple[int, int, Records]]:
        """(step before, last step, records) of each segment on disk, the last one first.

        Raises:
            BadInput: a file is missing, damaged, or not the one that was committed.
        """
        held = self._held(dispatch)
        last = _last(held) if held else None
        while last:
            records, before = self._segment(dispatch, last)
            yield before.step if before else BEFORE, last.step, records
            last = before

    def tidy(self) -> None:
        """Remove what killed writers and shorter runs left; for the coordinator alone."""
        left = [
            file
            for pattern in ("*.new", "lease-*.pkl", "states/*.new", "*/*/*.new", "*/*/*/*.new")
            for file in self.path.glob(pattern)
        ]
        for folder in self.path.glob("records/*"):
            left += self._left(int(folder.name), [*folder.glob("*.npz")], self._within)
        for folder in self.path.glob("kept/*"):
            left += self._left(int(folder.name), [*folder.glob("*.npz")], lambda _: False)
        with _writing(self.path):
            for file in left:
                file.unlink(missing_ok=True)

    def _within(self, step: int) -> bool:
        """Whether a segment that ends there is a part of one, to be joined to the next."""
        return step == 0 or step % (self.layout.segment or 1) > 0

    def _left(
        self, dispatch: int, files: Sequence[Path], passing: Callable[[int], bool]
    ) -> list[Path]:
        """Of a dispatch's files of records or states, those that its state does not lead to.

        Args:
            dispatch: its number.
            files: named by the steps that they end at.
            passing: passing(step) -> whether such a file is needed until another is reached only.
        """
        ends = {file: int(file.stem) for file in files}

        def left(reached: int) -> list[Path]:
            return [f for f, t in ends.items() if t > reached or (t < reached and passing(t))]

        try:
            if not left(self.reached(dispatch, BEFORE + 1)):
                return []
            saved = self.load(dispatch)  # nothing is removed at the word of a damaged state
        except BadInput:
            return []
        return left(saved.step if saved else BEFORE)

    def _segment(self, dispatch: int, last: Last) -> tuple[Records, Last | None]:
        """A file of records, and the one before it."""
        file = self._file(dispatch, last.step)
        with _reading(file):
            content = file.read_bytes()
            if _digest(content) != last.digest:
                raise BadInput(f"store: {file} is not what was written there; {AGAIN}")
            held = _arrays(content)
        step, digest = (str(x) for x in held.pop("before"))
        before = Last(int(step), digest) if digest else None
        return {name.removeprefix("of/"): array for name, array in held.items()}, before

    def _belongs(self, dispatch: int) -> str:
        size = self.layout.runs
        rows = slice(dispatch * size, (dispatch + 1) * size)
        values = [self.points[name][rows].tobytes() for name in sorted(self.points)]
        text = json.dumps([self.origin, self.names[rows]])
        return _digest(text.encode(), *values)

    def _state(self, dispatch: int) -> Path:
        return self.path / "states" / f"{dispatch:05d}.npz"

    def _measured(self, key: str, dispatch: int, step: int) -> Path:
        return self.path / "measured" / key / f"{dispatch:05d}" / f"{step:010d}.npz"

    def _kept(self, dispatch: int, step: int) -> Path:
        return self.path / "kept" / f"{dispatch:05d}" / f"{step:010d}.npz"

    def _file(self, dispatch: int, step: int) -> Path:
        return self.path / "records" / f"{dispatch:05d}" / f"{step:010d}.npz"


def stored(path: Path) -> Store | None:
    """The part of a store in a folder, or None where there is none.

    Raises:
        BadInput: its files are damaged, or some are missing.
    """
    manifest, runs = path / "manifest.json", path / "runs.npz"
    with _reading(manifest):
        if not manifest.exists():
            if any(path.glob("states/*")) or any(path.glob("records/*")):
                raise BadInput(f"store: {path} has records but no manifest.json; {AGAIN}")
            return None
        held = _manifest(path)
    layout = Layout(**held["layout"])
    with _reading(runs):
        if not runs.exists():
            if any(path.glob("states/*")):
                raise BadInput(f"store: {path} has states but no runs.npz; {AGAIN}")
            return Store(path, layout, held["digest"], [], {}, {}, held["about"])
        arrays = _unsealed(runs.read_bytes())
    names = arrays.pop("names").tobytes().decode().split("\n")
    points = {name.removeprefix("of/"): values.copy() for name, values in arrays.items()}
    return Store(path, layout, held["digest"], names, points, {}, held["about"])


def agreed(
    path: Path,
    identity: Identity,
    asked: Layout,
    names: Sequence[str],
    points: Mapping[str, np.ndarray],
) -> Store | None:
    """The part of a store in a folder, which can be gone on with, or None. Writes nothing.

    Args:
        path: its folder.
        identity: what must agree with a store that is there.
        asked: what the caller insisted on; must agree with the store.
        names: of the runs asked for.
        points: {hyperparameter: its value in each of these runs}.

    Raises:
        BadInput: the store is another's or damaged, or a run's values differ.
    """
    store = stored(path)
    if store is not None:
        refuse_other(path, _manifest(path)["identity"], identity)
        _refuse_layout(path, store.layout, asked)
        _refuse_other_points(store, names, points)
    return store


def opened(
    path: Path,
    store: Store | None,
    identity: Identity,
    layout: Layout,
    names: Sequence[str],
    points: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
) -> Store:
    """A part that was agreed on, made or extended as the runs asked for need.

    Args:
        path: its folder.
        store: what is there.
        identity: of a new store.
        layout: of a new store.
        names: of the runs asked for.
        points: {hyperparameter: its value in each of these runs}.
        about: what a new store says of itself.
    """
    if store is None:
        kept = {"identity": identity, "layout": layout._replace(devices=None)._asdict()}
        kept["about"] = dict(about)
        manifest = {**kept, "digest": _digest(json.dumps(kept).encode())}
        with _writing(path):
            _write(path / "manifest.json", json.dumps(manifest, indent=1).encode())
        store = stored(path)
        assert store is not None
    new = np.flatnonzero(store.found(names) < 0).tolist()
    return _extended(store, new, names, points) if new else store


def joined(path: Path, identity: Identity) -> Store:
    """The part of a store as a worker sees it, which must be like its coordinator.

    Raises:
        BadInput: the worker's machine, versions or computation are others.
    """
    store = stored(path)
    if store is None:
        raise BadInput(f"store: {path} has no manifest.json; give a folder that all workers share")
    refuse_other(path, _manifest(path)["identity"], identity, "give workers like this process")
    return store


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the store for this process alone; the lock dies with the process.

    Where nothing can be written there is nothing to hold: what is there can be read.

    Raises:
        BadInput: another process holds it, or it is no folder.
    """
    try:
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / "lock").open("w")
    except BadInput:
        if not os.path.isdir(path) or not any(path.rglob("manifest.json")):  # noqa: PTH112
            raise
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"store: {path} is being written by another process; wait for it, or give another"
            ) from None
        yield


def folder(store: Path, static: Mapping[str, Any]) -> Path:
    """The folder of one static point.

    >>> folder(Path("store"), {"width": 32, "data": "a/b"}).name
    'width=32,data=a%2Fb'
    """
    return store / ",".join(
        f"{name}={quote(str(label), safe=' ')}" for name, label in static.items()
    )


def _extended(
    store: Store, new: Sequence[int], names: Sequence[str], points: Mapping[str, np.ndarray]
) -> Store:
    """The store with dispatches of the new runs, the last one padded by repetition."""
    size = store.layout.runs
    slots = len(new) + -len(new) % size
    index = np.array([*new, *itertools.repeat(new[-1], slots - len(new))], int)
    added = {name: values[index] for name, values in points.items()}
    if store.names:
        added = {n: np.concatenate([store.points[n], values]) for n, values in added.items()}
    held = [*store.names, *(names[i] for i in new), *itertools.repeat("", slots - len(new))]
    text = np.frombuffer("\n".join(held).encode(), np.uint8)
    values = {f"of/{name}": array for name, array in added.items()}
    with _writing(store.path):
        _write(store.path / "runs.npz", _sealed({"names": text, **values}))
    return store._replace(names=held, points=added)


def _refuse_other_points(
    store: Store, names: Sequence[str], points: Mapping[str, np.ndarray]
) -> None:
    """Raise if a run's label now stands for another value, as of an edited mask."""
    rows = store.found(names)
    asked = np.flatnonzero(rows >= 0)
    for name, values in points.items() if len(asked) else ():
        old, now = store.points[name][rows[asked]], values[asked]
        same = (_bytes(old) == _bytes(now)).all(1) if old.shape == now.shape else False
        if not np.all(same):
            run = names[asked[int(np.argmin(same))]]
            raise BadInput(
                f"store: {store.path}: {name!r} has other values in the run {run}; "
                "give another store, or remove this one"
            )


def _bytes(values: np.ndarray) -> np.ndarray:
    """The bytes of each entry: NaN is NaN, and -0 is not 0."""
    return _flat(values).reshape(len(values), values[0].nbytes)


def _refuse_layout(path: Path, held: Layout, asked: Layout) -> None:
    for name in ("width", "segment", "blocks", "backend"):
        old, new = getattr(held, name), getattr(asked, name)
        if new is not None and new != old:
            raise BadInput(
                f"store: {path}: {name} was {old} and is now {new}; leave the layout out to go on "
                "as stored, or give another store"
            )


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    with _reading(file):
        held = json.loads(file.read_text())
        kept = {name: value for name, value in held.items() if name != "digest"}
        if held["digest"] != _digest(json.dumps(kept).encode()):
            raise ValueError
        if "about" not in held:
            raise BadInput(f"store: {path} was made before stores said what they hold; {AGAIN}")
    return held


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Trouble with reading a file, as one line."""
    try:
        yield
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(f"store: {file} is missing; {AGAIN}") from None
    except OSError as error:
        raise BadInput(f"store: {file}: {error.strerror or error}; nothing was changed") from error
    except Exception as error:  # whatever a damaged file makes a parser raise
        raise BadInput(f"store: {file} is damaged; {AGAIN}") from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Trouble with writing a file, as one line."""
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise BadInput(f"store: {path} is or goes through a file; give a folder") from None
    except OSError as error:
        raise BadInput(
            f"store: {path}: {error.strerror or error}; what was saved is kept, and the same call "
            "goes on from it"
        ) from error


def _sealed(arrays: Mapping[str, Any]) -> bytes:
    """The arrays and a digest of them."""
    given = {name: np.asarray(array) for name, array in arrays.items()}
    return _npz({**given, "digest": np.array(_seal(given))})


def _unsealed(content: bytes) -> dict[str, np.ndarray]:
    """The inverse of `_sealed`.

    Raises:
        ValueError: the digest is of others.
    """
    arrays = _arrays(content)
    if str(arrays.pop("digest")) != _seal(arrays):
        raise ValueError("damaged")
    return arrays


def foreign(dtype: Any) -> bool:
    """Whether a dtype is none of NumPy's own: bfloat16, float8 and their like."""
    return np.dtype(dtype).isbuiltin == 2


def _storable(array: np.ndarray) -> np.ndarray:
    """The array as NumPy's files have it: bfloat16, float8 and their like as so many bytes."""
    return array.view(f"V{array.dtype.itemsize}") if foreign(array.dtype) else array


def _seal(arrays: Mapping[str, np.ndarray]) -> str:
    items = sorted(arrays.items())
    form = [[name, a.dtype.kind, a.dtype.itemsize, a.shape] for name, a in items]
    return _digest(json.dumps(form).encode(), *(_flat(a).data for _, a in items))


def _named(leaves: Sequence[Any]) -> dict[str, Any]:
    """The leaves of a state as entries of a file, with the dtypes that NumPy's lack: bfloat16."""
    named = {f"leaf{i:04d}": _storable(leaf) for i, leaf in enumerate(leaves)}
    return {**named, "dtypes": np.array([leaf.dtype.name for leaf in leaves], str)}


def _leaves(held: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The inverse of `_named`."""
    dtypes = held["dtypes"]
    return [held[f"leaf{i:04d}"].copy().view(jnp.dtype(str(n))) for i, n in enumerate(dtypes)]


def _last(held: Mapping[str, np.ndarray]) -> Last:
    return Last(int(held["step"]), str(held["last"]))


def _flat(array: np.ndarray) -> np.ndarray:
    """Its bytes in C's order, not copied if they lie so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _digest(*contents: bytes | memoryview) -> str:
    total = hashlib.sha256()
    for content in contents:
        total.update(content)
    return total.hexdigest()[:32]


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file of NumPy's, as views of its content; `np.load` copies each twice.

    The zip's own checksums are not looked at: whoever calls compares a digest.

    Raises:
        ValueError: it is compressed, of another byte order, or damaged.
    """
    held = {}
    with zipfile.ZipFile(io.BytesIO(content)) as members:
        for member in members.infolist():
            start = member.header_offset
            start += 30 + sum(_SIZES.unpack_from(content, start + 26))
            data = start + 10 + int.from_bytes(content[start + 8 : start + 10], "little")
            if member.compress_type:
                raise ValueError("no file of a store's")
            shape, columns, dtype = _form(content[start + 6 : data])
            if dtype.hasobject or not dtype.isnative:
                raise ValueError("no file of a store's")
            order: Literal["F", "C"] = "F" if columns else "C"
            array = np.ndarray(shape, dtype, content, data, order=order)
            if data + array.nbytes != start + member.file_size:
                raise ValueError("damaged")
            held[member.filename.removesuffix(".npy")] = array
    return held


@functools.lru_cache(4096)
def _form(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and dtype, by an array's header."""
    if header[:2] != b"\1\0":
        raise ValueError("another version of NumPy's format")
    return np.lib.format.read_array_header_1_0(io.BytesIO(header[2:]))


def _write(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a crash, sees all of the old or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")  # a job may be in two hands
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:  # room for others, on a full disk
        new.unlink(missing_ok=True)
        raise
