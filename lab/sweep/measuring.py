"""Measuring: new records of states that a store kept, without training again."""

import hashlib
import inspect
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jax.sharding import SingleDeviceSharding

from lab.sweep import check, linalg
from lab.sweep.about import rebuilt
from lab.sweep.dataset import widened
from lab.sweep.identity import surroundings
from lab.sweep.layout import available, devices
from lab.sweep.precision import exact_products
from lab.sweep.program import over_runs
from lab.sweep.progress import progress_line
from lab.sweep.reading import Selected, coordinates, kept, selected, step_of
from lab.sweep.run import Advanced, Segments, Waiting, by_devices
from lab.sweep.store import locked
from lab.sweep.trace import CALLBACKS, RESERVED, Function, _function, _record
from lab.types import BadInput, Record


class Measure(NamedTuple):
    """A measure of the states of one part of a store, traced.

    Attributes:
        of: the runs that are asked for.
        function: of (hyperparameters, {}, state) -> {name: array}, of one run.
        point: {hyperparameter: its value by row} of those that it takes.
        arguments: of the function, their shapes alone.
        key: what results are kept under: a hash of the computation and of all around it.
    """

    of: Selected
    function: Function
    point: dict[str, np.ndarray]
    arguments: tuple[Any, Any]
    key: str

    @property
    def dispatches(self) -> list[int]:
        """Those that hold the runs asked for."""
        return np.unique(self.of.rows // self.of.store.layout.runs).tolist()


def measured(
    store: str | Path | xr.Dataset,
    measure: Callable[..., Record],
    *,
    step: int | Sequence[int] | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """What `measure` says of the states that a store kept: a new idea costs no new training.

    Runs are measured as they were swept: blocks of runs side by side, on all cores. What is
    measured is kept in the store, under a hash of the traced computation: a call that was killed
    goes on, the same call again only reads, and runs that came later are measured alone.

    Args:
        store: its folder; or the Dataset of a stored sweep or of `open`, or any `.sel` of it.
        measure: measure(state, **hyperparameters) -> {name: array} of ONE run, under the rules of
            an `observe`; it is given those of the axes that it names, and of a static axis the
            label. Its state is that of `states`.
        step: at which states were kept, or ascending such steps; None is the last one.
        progress: as `sweep`'s.

    Returns:
        Dataset with dims (*axes, *static, "step" if several are asked for, *a record's own).

    Raises:
        BadInput: a run has no state of a step, the measure cannot be traced or gives no flat dict
            of arrays, or the store is damaged or being written.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from lab.sweep import sweep
    >>> from lab.types import Dynamics
    >>> def shrinking(lr):
    ...     return Dynamics(lambda: jnp.ones(2), lambda x, t: x - lr * x, lambda x, t: {"x": x})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = sweep(shrinking, {"lr": [0.5, 1.0]}, steps=4, every=4, store=folder, keep=[1])
    ...     data = measured(folder, lambda x, lr: {"norm": lr * jnp.sum(x)}, step=[1, 4])
    >>> data.norm.sel(lr=0.5).values
    array([0.5   , 0.0625], dtype=float32)
    """
    data = store if isinstance(store, xr.Dataset) else coordinates("measured", store)
    asked = selected("measured", data, apart=True)
    steps = _steps(data, step)
    takes = _taken(measure)
    measures = [_traced(measure, takes, one, steps[0], [*data.coords]) for one in asked]
    first = measures[0].function.returns
    for one in measures:
        if (other := one.function.returns) != first:
            static = one.of.store.about["static"]
            raise BadInput(
                f"measure: records {_shapes(other)} at {static}, but {_shapes(first)} elsewhere; "
                "record the same at each"
            )
    own_dims = check.own_dims(None, first, {*data.coords, *RESERVED})
    root = check.place(data.attrs["store"])
    assert root
    with locked(root):
        _run(measures, steps, progress)
    dims = [*asked[0].dims, *(n for n in json.loads(data.attrs["static"]) if n in data.dims)]
    shape = [data.sizes[dim] for dim in dims]
    tables = [_gathered(one, steps) for one in measures]
    several = not (step is None or isinstance(step, int | np.integer))
    variables = {}
    for name, leaf in first.items():
        runs = np.stack([table[name] for table in tables], 1)
        grid = widened(runs.reshape((*shape, len(steps), *leaf.shape)))
        where = [*dims, *(["step"] if several else []), *own_dims[name]]
        variables[name] = (where, grid if several else grid[(slice(None),) * len(dims) + (0,)])
    axes = json.loads(data.attrs["axes"]).values()
    names = [*(n for held in axes for n in held), *json.loads(data.attrs["static"])]
    coords = {name: data[name].variable for name in names}
    return xr.Dataset(variables, {**coords, "step": steps if several else steps[0]}, data.attrs)


def _steps(data: xr.Dataset, step: Any) -> list[int]:
    if not isinstance(step, Sequence | np.ndarray) or isinstance(step, str):
        return [step_of("measured", data, step)]
    steps = [step_of("measured", data, one) for one in step]
    if not steps or any(one >= other for one, other in itertools.pairwise(steps)):
        raise BadInput(f"measured: step {step!r} does not ascend; give one or more ascending steps")
    return steps


def _taken(measure: Any) -> Callable[[str], bool]:
    """Whether the measure takes a hyperparameter of this name."""
    if not callable(measure):
        raise BadInput(f"measure: {measure!r} is no function of a state; give one")
    try:
        takes = inspect.signature(measure).parameters
    except (TypeError, ValueError):
        raise BadInput(f"measure: {measure!r} does not say what it takes; wrap it") from None
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    return lambda name: open_ended or name in [*takes][1:]


@exact_products
def _traced(
    measure: Callable[..., Record],
    takes: Callable[[str], bool],
    of: Selected,
    step: int,
    taken: Sequence[str],
) -> Measure:
    """The measure of one part's runs, checked as an `observe` is."""
    store = of.store
    point = {name: values for name, values in store.points.items() if takes(name)}
    static = {name: label for name, label in store.about["static"].items() if takes(name)}
    try:
        inspect.signature(measure).bind(None, **point, **static)
    except TypeError as error:
        names = ", ".join(["state", *store.points, *store.about["static"]])
        raise BadInput(f"measure: {error}; let it take some of ({names})") from None
    one = {n: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for n, v in point.items()}
    whole = _state(of, int(of.rows[0]) // store.layout.runs, step)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), whole)
    for leaf in jax.tree.leaves(like):
        if leaf.dtype != jax.dtypes.canonicalize_dtype(leaf.dtype, True):
            raise BadInput(f"measured: the states hold {leaf.dtype}; enable x64, as when swept")

    def measure_(point: Any, shared: Any, state: Any) -> Any:
        return _record("measure", measure(state, **point, **static), taken)

    measure_.__name__ = "measure"
    function = _function(measure_, one, {}, like)
    if linalg.primitives(function.jaxpr.jaxpr) & CALLBACKS:
        raise BadInput(
            "measure: calls back to Python (jax.debug.print, pure_callback, ...), which cannot be "
            "told from another computation; leave that out"
        )
    known = [surroundings(), function.digest(), _shapes(function.returns), [*one]]
    key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    return Measure(of, function, point, (one, like), key)


def _state(of: Selected, dispatch: int, step: int) -> Any:
    """The states of a dispatch's runs, padding included."""
    return rebuilt(of.store.about["state"], iter(kept(of.store, "measured", dispatch, step)))


def _run(measures: Sequence[Measure], steps: Sequence[int], progress: bool | None) -> None:
    """Measure what is not yet, each dispatch by one core, block after block."""
    left = list[tuple[Measure, list[int]]]()
    for one in measures:
        store = one.of.store
        for dispatch, step in itertools.product(one.dispatches, steps):
            if not (store.keeps(dispatch, step) or store.reached(dispatch) == step):
                kept(store, "measured", dispatch, step)  # raises, and says what there is
        new = [
            dispatch
            for dispatch in one.dispatches
            if not all(store.has_measured(one.key, dispatch, step) for step in steps)
        ]
        left += [(one, new)] if new else []
    runs = [one.of.store.layout.runs * len(new) for one, new in left]
    placed = devices(min(available(), sum(len(new) for _, new in left)))
    waiting = deque[Waiting]()
    for one, new in left:
        segments = {device: _segments(one, steps, device) for device in {*placed}}
        waiting.extend((segments, dispatch, one.of.store.layout.runs) for dispatch in new)
    if waiting:
        line = progress_line(runs=sum(runs), steps=len(steps), done=0, shown=progress)
        with line as advance:
            by_devices(placed, waiting, advance)


def _segments(one: Measure, steps: Sequence[int], device: jax.Device) -> Segments:
    """`Segments` of a measure, compiled for a device: each of the steps is one."""
    store, (point, state) = one.of.store, one.arguments
    size, where = store.layout.runs, SingleDeviceSharding(device)

    def by_run(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype, sharding=where)

    over = over_runs(lambda point, state: one.function(point, {}, state), store.layout, per_run=2)
    compiled = over.lower(*jax.tree.map(by_run, (point, state))).compile()

    def segments(dispatch: int) -> Iterator[Advanced]:
        rows = slice(dispatch * size, (dispatch + 1) * size)
        values = {name: array[rows] for name, array in one.point.items()}
        for i, step in enumerate(steps):
            if not store.has_measured(one.key, dispatch, step):
                given = jax.device_put((values, _state(one.of, dispatch, step)), device)
                records = {name: np.asarray(array) for name, array in compiled(*given).items()}
                store.keep_measured(one.key, dispatch, step, records)
            yield Advanced(1, i + 1 == len(steps), step)

    return segments


def _gathered(one: Measure, steps: Sequence[int]) -> dict[str, np.ndarray]:
    """{name: values by run and step}, as they are kept."""
    store, rows = one.of.store, one.of.rows
    dispatches, slots = np.divmod(rows, store.layout.runs)
    result = {
        name: np.empty((len(rows), len(steps), *leaf.shape), leaf.dtype)
        for name, leaf in one.function.returns.items()
    }
    for dispatch, (i, step) in itertools.product(one.dispatches, enumerate(steps)):
        here, held = dispatches == dispatch, store.measured(one.key, dispatch, step)
        assert held is not None
        for name, array in result.items():
            array[here, i] = held[name][slots[here]].view(array.dtype)
    return result


def _shapes(returns: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in returns.items()}
