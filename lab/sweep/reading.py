"""Reading: what a store holds, finished or not, without the code that made it."""

import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab.sweep.about import leaf_count, rebuilt
from lab.sweep.axes import ALONE, Axis, exact, run_keys
from lab.sweep.cadence import BEFORE, Cadence
from lab.sweep.check import place
from lab.sweep.dataset import dataset
from lab.sweep.store import Store, folder, stored
from lab.sweep.trace import restored
from lab.types import BadInput, State

Placed: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Where runs are: their indices in a grid, and their rows in a part of a store."""


class Selected(NamedTuple):
    """Runs of one part of a store that a Dataset selects.

    Attributes:
        store: the part.
        rows: of the runs.
        dims: of the axes that they lie along.
        shape: how many there are along each.
    """

    store: Store
    rows: np.ndarray
    dims: list[str]
    shape: list[int]

    def leaves(self, who: str, step: int) -> list[np.ndarray]:
        """The leaves of the states at a step, each with the axes of `shape` in front.

        Args:
            who: asks for them.
            step: at which they were kept.

        Raises:
            BadInput: they were not, or a file is damaged.
        """
        dispatches, slots = np.divmod(self.rows, self.store.layout.runs)
        result = list[np.ndarray]()
        for dispatch in np.unique(dispatches).tolist():
            here = np.flatnonzero(dispatches == dispatch)
            held = kept(self.store, who, dispatch, step)
            result = result or [np.empty((len(self.rows), *a.shape[1:]), a.dtype) for a in held]
            for whole, leaf in zip(result, held, strict=True):
                whole[here] = leaf[slots[here]]
        return [leaf.reshape((*self.shape, *leaf.shape[1:])) for leaf in result]


def open(store: str | Path) -> xr.Dataset:
    """The Dataset of a store, finished or not, as its `sweep` would return it; runs no code of it.

    It has all runs and all steps that any run has reached. What a run has not reached yet, or what
    of the grid was never run, is NaN, for which records of ints and bools become float64 there;
    what is complete comes back bit for bit. Attributes are those that the call which made the store
    gave; the attribute `steps` is the step that the foremost run has reached. Values of an axis are
    in the order in which they came to the store, those of a static axis ascend.

    A store can be read while it is being written.

    Args:
        store: its folder.

    Returns:
        Dataset with dims (*axes, *static, "step" or "step_rare", *a record's own).

    Raises:
        BadInput: there is no store, it is damaged, or nothing is recorded in it yet.

    >>> import tempfile
    >>> from lab.sweep import sweep
    >>> from lab.types import Dynamics
    >>> def shrinking(lr):
    ...     return Dynamics(lambda: jnp.ones(()), lambda x, t: x - lr * x, lambda x, t: {"x": x})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = sweep(shrinking, {"lr": [0.5]}, steps=2, every=1, store=folder)
    ...     open(folder).x.sel(lr=0.5).values
    array([1.  , 0.5 , 0.25], dtype=float32)
    """
    root = _root("open", store)
    try:
        return _opened(root)
    except BadInput:  # a writer may just have tidied away what was looked for
        return _opened(root)


def _opened(root: Path) -> xr.Dataset:
    frame = _framed(root)
    last, steps = _steps(frame.parts)
    if not len(steps.get("step", [])):
        raise BadInput(f"store: {frame.root} has recorded nothing yet; sweep first")
    known = frame.parts[0].about
    tables = [_recorded(part, at, frame.runs, known, steps) for part, at in frame.points()]
    for stream, held in known["records"].items():
        if not all(filled[stream].all() for _, filled in tables):
            for arrays, filled in tables:
                for name in held:
                    arrays[name] = _with_gaps(name, arrays[name], filled[stream])
    own_dims = {n: one["dims"] for held in known["records"].values() for n, one in held.items()}
    streams = {stream: [*held] for stream, held in known["records"].items()}
    recorded, cadence = [arrays for arrays, _ in tables], Cadence(last, steps)
    data = dataset(recorded, streams, frame.grid, frame.fixed, cadence, own_dims, known["attrs"])
    return data.assign_attrs(frame.attrs(last))


def states(store: str | Path | xr.Dataset, step: int | None = None) -> State:
    """The states of all runs of a store at a step, as the pytree they were, without its code.

    Dicts, lists and tuples come back as themselves, random keys as keys, a NamedTuple as its class
    where that is lab's, optax's or loaded already, else as one of the same fields; any other
    container as a dict of its children by name. What else a state held is NumPy arrays.

    Args:
        store: its folder; or the Dataset of a stored sweep or of `open`, or any `.sel` of it, whose
            coordinates then say which run is which. A static axis must be selected down to one
            value.
        step: at which they were kept (`keep=` of `sweep`); None is the last one.

    Returns:
        The pytree with leaves (axes of the Dataset ..., *shape of the leaf).

    Raises:
        BadInput: the sweep was not stored, a run has no state of that step, or a file is damaged.

    >>> import tempfile
    >>> from lab.sweep import sweep
    >>> from lab.types import Dynamics
    >>> def shrinking(lr):
    ...     start = {"x": jnp.ones(())}
    ...     return Dynamics(lambda: start, lambda s, t: {"x": s["x"] - lr * s["x"]}, lambda s, t: s)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = sweep(shrinking, {"lr": [0.5, 1.0]}, steps=4, every=4, store=folder, keep=[1])
    ...     states(folder, 1), states(data.sel(lr=0.5))
    ({'x': array([0.5, 0. ], dtype=float32)}, {'x': array(0.0625, dtype=float32)})
    """
    data = store if isinstance(store, xr.Dataset) else coordinates("states", store)
    (one,) = selected("states", data)
    leaves = one.leaves("states", step_of("states", data, step))
    return rebuilt(one.store.about["state"], iter(leaves))


def final_states(data: xr.Dataset, like: State) -> State:
    """The final state of each run of a stored sweep, as the pytree that `like` is.

    As `states`, for containers that it cannot give back: Equinox modules, say.

    Args:
        data: the Dataset of a `sweep(..., store=...)`, or any `.sel` of it; a static axis must
            have been selected down to one value.
        like: a state of the same structure, such as `training(lr=0.1, seed=0).init()`, or its
            `jax.eval_shape`.

    Returns:
        The pytree with leaves (axes of `data` ..., *shape of the leaf).

    Raises:
        BadInput: the sweep was not stored, kept no states, went on to more steps since, or `like`
            has another structure.
    """
    (one,) = selected("final_states", data)
    likes, structure = jax.tree.flatten(like)
    likes = [_like(leaf) for leaf in likes]
    leaves = one.leaves("final_states", data.attrs["steps"])
    if len(leaves) != len(likes):
        raise BadInput(
            "final_states: the store has another structure; give the state that was swept"
        )
    for leaf, wanted in zip(leaves, [jax.eval_shape(_data, leaf) for leaf in likes], strict=True):
        shape = leaf.shape[len(one.shape) :]
        if shape != wanted.shape or leaf.dtype != wanted.dtype:
            raise BadInput(
                f"final_states: the store has {leaf.dtype}{list(shape)} where `like` has "
                f"{wanted.dtype}{list(wanted.shape)}; give the state that was swept"
            )
    held = [restored(leaf, like) for leaf, like in zip(leaves, likes, strict=True)]
    return jax.tree.unflatten(structure, held)


def selected(who: str, data: Any, apart: bool = False) -> list[Selected]:
    """The runs that a Dataset of a stored sweep selects, by part of the store.

    Args:
        who: asks for them.
        data: the Dataset.
        apart: whether there may be several static points, last axis fastest; else it is refused.

    Raises:
        BadInput: it was not stored, or is no selection of what was.
    """
    known = data.attrs if isinstance(data, xr.Dataset) else {}
    if not {"store", "static", "axes", "steps"} <= known.keys():
        raise BadInput(f"{who}: this Dataset was not stored; give sweep(..., store=path)")
    try:
        static, dims = json.loads(known["static"]), json.loads(known["axes"])
    except (TypeError, ValueError):
        static = dims = None
    root = place(known["store"])
    if not (isinstance(static, list) and isinstance(dims, dict) and root):
        raise BadInput(f"{who}: the Dataset's attributes were edited; give it as it was swept")
    for name in [*static, *(name for names in dims.values() for name in names)]:
        if name not in data.coords:
            raise BadInput(
                f"{who}: the Dataset has no {name!r} any more; give it as it was swept, or "
                "any .sel of it"
            )
    for dim, names in [*dims.items(), *((name, [name]) for name in static)]:
        for name in names:
            if data[name].dims not in ((), (dim,)):
                raise BadInput(
                    f"{who}: {name!r} lies along {', '.join(map(repr, data[name].dims))}; "
                    "give the Dataset as it was swept, or any .sel of it"
                )
    for name in static if not apart else ():
        if data[name].ndim:
            raise BadInput(f"{who}: {name!r} is a static axis; select one value of it first")
    lying = [dim for dim in dims if dim in data.dims]
    shape = [data.sizes[dim] for dim in lying]
    labels = [np.atleast_1d(data[name].values).tolist() for name in static]
    if not math.prod([*shape, *map(len, labels)]):
        raise BadInput(f"{who}: no run is selected; select at least one")
    axes = [
        Axis(dim, {name: np.atleast_1d(data[name].values) for name in names}, {})
        for dim, names in dims.items()
    ]
    names, found = run_keys(axes), []
    for point in itertools.product(*labels):
        path = folder(root, dict(zip(static, point, strict=True)))
        store = stored(path)
        if store is None:
            raise BadInput(f"{who}: {path} is no store any more; sweep again")
        found.append(Selected(store, store.rows(names), lying, shape))
    return found


class Frame(NamedTuple):
    """A store's parts and the grid that all its runs span.

    Attributes:
        root: its folder.
        parts: those that are there.
        placed: of each part, the index in the grid of each run, and its row.
        grid: the axes.
        fixed: the static axes, {name: {label: label}}.
    """

    root: Path
    parts: list[Store]
    placed: list[Placed]
    grid: list[Axis]
    fixed: dict[str, dict[Any, Any]]

    @property
    def runs(self) -> int:
        """How many points the grid has."""
        return math.prod(map(len, self.grid))

    def points(self) -> Iterator[tuple[Store | None, Placed]]:
        """Part and runs of each static point, last axis fastest; None where it was never run."""
        at = {json.dumps(part.about["static"]): i for i, part in enumerate(self.parts)}
        for point in itertools.product(*self.fixed.values()):
            i = at.get(json.dumps(dict(zip(self.fixed, point, strict=True))))
            none = np.zeros(0, int)
            yield (None, (none, none)) if i is None else (self.parts[i], self.placed[i])

    def attrs(self, steps: int) -> dict[str, Any]:
        """Attributes of its Dataset, so that its states can be found by it."""
        return {
            "axes": json.dumps({axis.dim: [*axis.labels] for axis in self.grid}),
            "static": json.dumps([*self.fixed]),
            "steps": steps,
            "layout": json.dumps([part.layout._asdict() for part in self.parts]),
            "store": str(self.root),
        }


def _framed(root: Path) -> Frame:
    """What there is in a folder.

    Raises:
        BadInput: no store, or several.
    """
    paths = [file.parent for file in sorted(root.glob("*/manifest.json"))]
    paths = [root] if (root / "manifest.json").exists() else paths
    parts = [part for part in map(stored, paths) if part]
    if not parts:
        raise BadInput(f"store: {root} is no store; give the folder of one")
    known = parts[0].about
    for part in parts:
        if part.path != folder(root, part.about["static"]):
            raise BadInput(f"store: {root} holds others; open one of them, such as {part.path}")
        if part.about["axes"] != known["axes"] or _forms(part) != _forms(parts[0]):
            raise BadInput(f"store: {part.path} has other axes or records than {parts[0].path}")
    axes = known["axes"]
    seen: dict[str, dict[Any, int]] = {dim: {} for dim in axes}
    rows, where = list[np.ndarray](), list[np.ndarray]()
    for part in parts:
        rows.append(np.flatnonzero([name != "" for name in part.names]))
        labels = [_labels(part.names[row]) for row in rows[-1]]
        found = [
            [seen[dim].setdefault(tuple(one[n] for n in names), len(seen[dim])) for one in labels]
            for dim, names in axes.items()
        ]
        where.append(np.array(found, int))
    if not all(seen.values()) or not any(map(len, rows)):
        raise BadInput(f"store: {root} has recorded nothing yet; sweep first")
    sizes = [len(entries) for entries in seen.values()]
    index = [np.ravel_multi_index((*at,), sizes) if sizes else np.zeros(1, int) for at in where]
    grid = [
        Axis(dim, dict(zip(names, map(np.array, zip(*seen[dim], strict=True)), strict=True)), {})
        for dim, names in axes.items()
    ]
    fixed = {name: {part.about["static"][name] for part in parts} for name in known["static"]}
    placed = [*zip(index, rows, strict=True)]
    return Frame(root, parts, placed, grid, {n: {v: v for v in sorted(fixed[n])} for n in fixed})


def _forms(part: Store) -> dict[str, dict[str, Any]]:
    """{stream: {record: dtype and shape}}."""
    return {
        stream: {name: (one["dtype"], one["shape"]) for name, one in held.items()}
        for stream, held in part.about["records"].items()
    }


def coordinates(who: str, store: str | Path) -> xr.Dataset:
    """The Dataset of a store less its records."""
    frame = _framed(_root(who, store))
    coords = {n: (axis.dim, labels) for axis in frame.grid for n, labels in axis.labels.items()}
    fixed = {name: [*labels] for name, labels in frame.fixed.items()}
    last = max(_furthest(part)[0] for part in frame.parts)
    return xr.Dataset(coords={**coords, **fixed}, attrs=frame.attrs(last))


def _root(who: str, store: Any) -> Path:
    root = place(store)
    if root is None:
        raise BadInput(f"{who}: None is no store; give the folder of one")
    return root


def _labels(run: str) -> dict[str, Any]:
    """The labels in the name of a run.

    >>> _labels('lr=0.1 mask="a b" seed=0')
    {'lr': 0.1, 'mask': 'a b', 'seed': 0}
    """
    if run == ALONE:
        return {}
    if '"' not in run:  # no label is a word, so that none holds a space
        return dict(map(_label, run.split(" ")))
    labels, at, decoder = dict[str, Any](), 0, json.JSONDecoder()
    while at < len(run):
        equals = run.index("=", at)
        value, end = decoder.raw_decode(run, equals + 1)
        labels[run[at:equals]] = value
        at = end + 1
    return labels


@functools.lru_cache(2**16)
def _label(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def _furthest(part: Store) -> tuple[int, int]:
    """The furthest step that a dispatch of a part has reached, and the dispatch."""
    count = len(part.names) // part.layout.runs
    return max(((part.reached(i), i) for i in range(count)), default=(BEFORE, 0))


def _steps(parts: Sequence[Store]) -> tuple[int, dict[str, np.ndarray]]:
    """The step that the foremost run has reached, and {stream: the steps recorded until then}."""
    found = [_furthest(part) for part in parts]
    i = max(range(len(parts)), key=lambda i: found[i])
    at: dict[str, list[np.ndarray]] = {stream: [] for stream in parts[i].about["records"]}
    for _, _, records in parts[i].segments(found[i][1]):
        for stream, steps in at.items():
            steps.append(records[f"@{stream}"][0])
    return found[i][0], {s: np.unique(np.concatenate(a)) for s, a in at.items() if a}


def _recorded(
    part: Store | None,
    placed: Placed,
    runs: int,
    about: Mapping[str, Any],
    steps: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """{name: records by run and step} of a part, and {stream: which of them there are}."""
    filled = {stream: np.zeros((runs, len(at)), bool) for stream, at in steps.items()}
    arrays = {
        name: np.zeros((runs, len(steps[stream]), *one["shape"]), jnp.dtype(one["dtype"]))
        for stream, held in about["records"].items()
        for name, one in held.items()
    }
    if part is None:
        return arrays, filled
    index, rows = placed
    dispatches, slots = np.divmod(rows, part.layout.runs)
    for dispatch in np.unique(dispatches).tolist():
        here = dispatches == dispatch
        for _, _, records in part.segments(dispatch):
            for stream, held in about["records"].items():
                at = np.searchsorted(steps[stream], records[f"@{stream}"][0])
                where = np.ix_(index[here], at)
                filled[stream][where] = True
                for name in held:
                    taken = records[name][slots[here], : len(at)]
                    arrays[name][where] = taken.view(arrays[name].dtype)
    return arrays, filled


def _with_gaps(name: str, records: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """Records with NaN where there are none; a run is finite as long as it is not known better."""
    if name == "finite":
        return records | ~filled
    wide = records if jnp.issubdtype(records.dtype, jnp.inexact) else records.astype(np.float64)
    wide[~filled] = np.nan
    return wide


def kept(store: Store, who: str, dispatch: int, step: int) -> list[np.ndarray]:
    """The leaves of a dispatch's states at a step."""
    held = store.at(dispatch, step)
    if held is None:
        reached = store.reached(dispatch)
        where = f"of step {reached}" if reached > BEFORE else "of no step yet"
        at = sorted(int(f.stem) for f in store.path.glob(f"kept/{dispatch:05d}/*.npz"))
        kept = f", kept are {', '.join(map(str, at))}" if at else ""
        advice = f"sweep to {reached} steps first" if reached > step else "sweep on first"
        raise BadInput(f"{who}: the store's states are {where}, not {step}{kept}; {advice}")
    if not held and leaf_count(store.about["state"]):
        raise BadInput(f"{who}: the store was run with keep=None; give one that keeps states")
    return held


def step_of(who: str, data: xr.Dataset, step: Any) -> int:
    """The step that is asked for, the last one where it is None."""
    if step is None:
        return int(data.attrs["steps"])
    if not isinstance(step, int | np.integer) or isinstance(step, bool) or step < 0:
        raise BadInput(f"{who}: step {step!r} is no step; give an int >= 0, or None for the last")
    return int(step)


def _like(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a leaf as a state has it, in JAX's precision."""
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        leaf = exact("final_states", "like", leaf)
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype, True))


def _data(leaf: Any) -> Any:
    """A leaf as the store has it: random keys as their data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf
