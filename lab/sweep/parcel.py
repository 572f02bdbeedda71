"""Parcels: a function with all that it closes over as bytes, and the JAX settings around it.

Closures, lambdas and what is defined in `__main__` travel by value; what a worker can import
travels by name. Arrays and random keys pickle by themselves; two things of JAX's own need help.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import cloudpickle
import jax

CONTEXTS = (
    "default_matmul_precision",
    "default_prng_impl",
    "enable_x64",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
    "threefry_partitionable",
)
"""Settings that change what a traced function computes or whether it traces."""

CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
"""Settings that spare a worker its compilations."""


class Settings(NamedTuple):
    """Settings of one thread or process, to be those of another."""

    contexts: Mapping[str, Any]
    cache: Mapping[str, Any]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """These settings in this thread, as long as the context lasts."""
        for name, value in self.cache.items():
            if getattr(jax.config, name) != value:
                jax.config.update(name, value)
        with contextlib.ExitStack() as stack:
            for name, value in self.contexts.items():
                stack.enter_context(getattr(jax, name)(value))
            yield


def settings() -> Settings:
    """The settings of this thread."""
    return Settings(
        {name: getattr(jax.config, f"jax_{name}") for name in CONTEXTS},
        {name: getattr(jax.config, name) for name in CACHE},
    )


class Parcel(NamedTuple):
    """A pickled function and the settings to unpickle, trace and call it under."""

    settings: Settings
    content: bytes


def packed(function: Callable[..., Any]) -> Parcel:
    """`function` as a parcel.

    Raises:
        TypeError, pickle.PicklingError, ...: it closes over what cannot be pickled.

    >>> bias = jax.numpy.ones(2)
    >>> cloudpickle.loads(packed(lambda x: x + bias).content)(1.0)
    Array([2., 2.], dtype=float32)
    """
    buffer = io.BytesIO()
    _Pickler(buffer).dump(function)
    return Parcel(settings(), buffer.getvalue())


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        # Caches inside jax.checkpoint's wrapper: by name, for there is one in each process.
        if type(obj).__name__ == "WeakrefLRUCache":
            for name, module in [*sys.modules.items()]:
                for key, value in [*vars(module).items()] if name.startswith("jax") else ():
                    if value is obj:
                        return getattr, (module, key)
        # Its __new__ takes arguments that pickle does not know of (until jax 0.11).
        if isinstance(obj, jax.custom_vjp):
            return _bare, (type(obj), vars(obj))
        return super().reducer_override(obj)


def _bare(kind: type, attributes: Mapping[str, Any]) -> Any:
    made: Any = object.__new__(kind)
    vars(made).update(attributes)
    return made
