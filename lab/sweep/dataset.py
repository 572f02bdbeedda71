"""What a sweep gives: its records as an xarray.Dataset, and its stored final states."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab.sweep.axes import Axis, exact, run_name
from lab.sweep.cadence import Cadence
from lab.sweep.check import place
from lab.sweep.store import Saved, folder, stored
from lab.sweep.trace import Process, restored
from lab.types import BadInput, State

ATTRS: dict[str, dict[str, Any]] = {
    "lr": {"long_name": "learning rate"},
    "seed": {"long_name": "seed"},
    "step": {"long_name": "step", "units": "steps"},
    "step_rare": {"long_name": "step", "units": "steps"},
    "diverged_at": {"long_name": "first recorded step with a non-finite state", "units": "steps"},
}


def dataset(
    recorded: Sequence[Mapping[str, np.ndarray]],
    process: Process,
    grid: Sequence[Axis],
    fixed: Mapping[str, Mapping[Any, Any]],
    cadence: Cadence,
    own_dims: Mapping[str, Sequence[str]],
    attrs: Mapping[str, Mapping[str, Any]],
) -> xr.Dataset:
    """The records of each static point, by run, as one Dataset on the grid of all axes.

    Args:
        recorded: of each static point, {name: values by run and record}.
        process: of any of them.
        grid: the axes.
        fixed: the static axes, {name: {label: value}}.
        cadence: when it was recorded.
        own_dims: {record: names of its own axes}.
        attrs: what is to be said of coordinates and records.
    """
    dims = [*(axis.dim for axis in grid), *fixed]
    sizes = [*(len(axis) for axis in grid), *(len(values) for values in fixed.values())]

    def gridded(name: str) -> np.ndarray:
        runs = [part[name] for part in recorded]
        stacked = np.stack(runs, axis=1) if len(runs) > 1 else runs[0]
        return stacked.reshape(*sizes, *runs[0].shape[1:])

    finite = gridded("finite")
    first_bad = cadence.at["step"][finite.argmin(-1)].astype(float)
    variables: dict[str, Any] = {"diverged_at": (dims, np.where(finite.all(-1), np.nan, first_bad))}
    for stream, function in process.streams.items():
        for name in function.returns:
            if name != "finite":
                variables[name] = ([*dims, stream, *own_dims[name]], gridded(name))
    coords: dict[str, Any] = dict(cadence.at)
    for axis in grid:
        coords |= {name: (axis.dim, labels) for name, labels in axis.labels.items()}
    coords |= {name: [*values] for name, values in fixed.items()}
    data = xr.Dataset(variables, coords)
    for name, said in [*ATTRS.items(), *attrs.items()]:
        if name in data.variables:
            data[name].attrs |= dict(said)
    return data


def final_states(data: xr.Dataset, like: State) -> State:
    """The final state of each run of a stored sweep, as the pytree it was.

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
    known = data.attrs if isinstance(data, xr.Dataset) else {}
    if not {"store", "static", "axes", "steps"} <= known.keys():
        raise BadInput("final_states: this Dataset was not stored; give sweep(..., store=path)")
    try:
        static, dims = json.loads(known["static"]), json.loads(known["axes"])
    except (TypeError, ValueError):
        static = dims = None
    root = place(known["store"])
    if not (isinstance(static, list) and isinstance(dims, dict) and root):
        raise BadInput(
            "final_states: the Dataset's attributes were edited; give it as it was swept"
        )
    for name in [*static, *(name for names in dims.values() for name in names)]:
        if name not in data.coords:
            raise BadInput(
                f"final_states: the Dataset has no {name!r} any more; give it as it was swept, or "
                "any .sel of it"
            )
    for dim, names in dims.items():
        for name in names:
            if data[name].dims not in ((), (dim,)):
                raise BadInput(
                    f"final_states: {name!r} lies along {', '.join(map(repr, data[name].dims))}; "
                    "give the Dataset as it was swept, or any .sel of it"
                )
    for name in static:
        if data[name].ndim:
            raise BadInput(f"final_states: {name!r} is a static axis; select one value of it first")
    path = folder(root, {name: data[name].item() for name in static})
    store = stored(path)
    if store is None:
        raise BadInput(f"final_states: {path} is no store any more; sweep again")
    kept = [dim for dim in dims if dim in data.dims]
    shape = [data.sizes[dim] for dim in kept]
    if not math.prod(shape):
        raise BadInput("final_states: no run is selected; select at least one")
    names = [name for names in dims.values() for name in names]
    selected = (
        data.isel(dict(zip(kept, entry, strict=True)))
        for entry in itertools.product(*(range(n) for n in shape))
    )
    rows = store.rows([run_name({n: one[n].item() for n in names}) for one in selected])
    dispatches, slots = rows // store.layout.runs, rows % store.layout.runs
    saved = {int(d): store.load(int(d)) for d in np.unique(dispatches)}
    leaves, structure = jax.tree.flatten(like)
    likes = [_like(x) for x in leaves]
    for held in saved.values():
        _refuse_other_states(held, likes, data.attrs["steps"])

    def leaf(i: int) -> Any:
        picked = [saved[d].leaves[i][s] for d, s in zip(dispatches, slots, strict=True)]  # type: ignore[union-attr]
        wanted = jax.eval_shape(_data, likes[i])
        for one in picked:
            if one.shape != wanted.shape or one.dtype != wanted.dtype:
                raise BadInput(
                    f"final_states: the store has {one.dtype}{list(one.shape)} where `like` has "
                    f"{wanted.dtype}{list(wanted.shape)}; give the state that was swept"
                )
        stacked = np.stack(picked)
        return restored(stacked.reshape((*shape, *stacked.shape[1:])), likes[i])

    return jax.tree.unflatten(structure, [leaf(i) for i in range(len(likes))])


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


def _refuse_other_states(saved: Saved | None, likes: Sequence[Any], steps: int) -> None:
    if saved is None or saved.step != steps:
        step = saved.step if saved else "none"
        raise BadInput(
            f"final_states: the store's states are of step {step}, not {steps}; sweep to {step} "
            "steps first"
        )
    if len(saved.leaves) != len(likes):
        kept_none = "has another structure" if saved.leaves else "was run with keep=None"
        raise BadInput(f"final_states: the store {kept_none}; give the state that was swept")
