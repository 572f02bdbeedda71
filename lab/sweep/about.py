"""About: what a part of a store says of itself, so that it can be read without the code."""

import functools
import importlib
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab.sweep.axes import Axis
from lab.sweep.trace import Process

IMPORTED = ("lab", "optax")
"""Packages that a file's word is enough to import from; others' classes must be loaded already."""


def about(
    grid: Sequence[Axis],
    static: Mapping[str, Any],
    process: Process,
    own_dims: Mapping[str, Sequence[str]],
    attrs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What the manifest of a part holds for whoever reads it.

    Args:
        grid: the axes.
        static: {name: label} of the part.
        process: one run, traced.
        own_dims: {record: names of its own axes}.
        attrs: what is to be said of coordinates and records.
    """
    return {
        "axes": {axis.dim: [*axis.labels] for axis in grid},
        "static": dict(static),
        "records": {
            stream: {
                name: {
                    "dtype": leaf.dtype.name,
                    "shape": leaf.shape,
                    "dims": [*own_dims.get(name, [])],
                }
                for name, leaf in function.returns.items()
            }
            for stream, function in process.streams.items()
        },
        "attrs": {name: dict(said) for name, said in attrs.items()},
        "state": described(process.init.returns),
    }


def described(tree: Any) -> Any:
    """A pytree's structure as lists and words: [kind, *what it holds].

    >>> described({"w": np.ones(2), "of": (np.ones(2), None)})
    ['dict', ['of', ['tuple', ['leaf'], ['none']]], ['w', ['leaf']]]
    """
    if tree is None:
        return ["none"]
    if jax.tree_util.all_leaves([tree]):
        random = jnp.issubdtype(tree.dtype, jax.dtypes.prng_key)
        return ["leaf", str(_impl(tree.dtype))] if random else ["leaf"]
    held, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    children = [described(child) for _, child in held]
    if type(tree) in (list, tuple):
        return [type(tree).__name__, *children]
    named = [[_name(path[-1]), child] for (path, _), child in zip(held, children, strict=True)]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return ["namedtuple", type(tree).__module__, type(tree).__qualname__, *named]
    return ["dict", *named]


def rebuilt(structure: Any, leaves: Iterator[np.ndarray]) -> Any:
    """A pytree of this structure, with these leaves.

    >>> rebuilt(["dict", ["of", ["tuple", ["leaf"], ["none"]]]], iter([1.0]))
    {'of': (1.0, None)}
    """
    kind, *held = structure
    if kind == "leaf":
        leaf = next(leaves)
        return jax.random.wrap_key_data(jnp.asarray(leaf), impl=held[0]) if held else leaf
    if kind == "dict":
        return {name: rebuilt(child, leaves) for name, child in held}
    if kind == "namedtuple":
        module, name, *fields = held
        kind_of = _namedtuple(module, name, tuple(name for name, _ in fields))
        return kind_of(*(rebuilt(child, leaves) for _, child in fields))
    children = [rebuilt(child, leaves) for child in held]
    if kind == "none":
        return None
    return children if kind == "list" else tuple(children)


def leaf_count(structure: Any) -> int:
    """How many leaves a pytree of this structure has.

    >>> leaf_count(["dict", ["of", ["tuple", ["leaf"], ["none"]]]])
    1
    """
    kind, *held = structure
    if kind in ("leaf", "none"):
        return int(kind == "leaf")
    children = held[2:] if kind == "namedtuple" else held
    return sum(
        leaf_count(child[1] if kind in ("dict", "namedtuple") else child) for child in children
    )


@functools.lru_cache
def _namedtuple(module: str, name: str, fields: tuple[str, ...]) -> Callable[..., Any]:
    """The class of that name, or one of the same fields where it cannot be had."""
    try:
        trusted = module.split(".")[0] in IMPORTED
        where = importlib.import_module(module) if trusted else sys.modules[module]
        found = functools.reduce(getattr, name.split("."), where)
    except (ImportError, KeyError, AttributeError):
        found = None
    if isinstance(found, type) and getattr(found, "_fields", None) == fields:
        return found
    return namedtuple(name.split(".")[-1], fields)


def _impl(dtype: Any) -> Any:
    return jax.random.key_impl(jnp.empty((0,), dtype))


def _name(key: Any) -> Any:
    """What a pytree's own key calls a child."""
    for kind in ("key", "name", "idx"):
        if hasattr(key, kind):
            name = getattr(key, kind)
            return name if isinstance(name, str | int) else str(name)
    return str(key)
