"""The engine: `sweep` runs a `Dynamics` over axes, in parallel, and returns an xarray.Dataset.

Importing this package asks XLA for single-threaded computations on a CPU: the engine runs one
dispatch a core, each in its core's cache, with no thread pool to fight over (measured 2 to 3 times
faster than one multi-threaded computation). Where JAX has started already it is used as it is.
"""

import os
import warnings

import jax

from lab.sweep import identity as _identity
from lab.sweep.engine import sweep
from lab.sweep.feed import Feed
from lab.sweep.layout import Layout, cores
from lab.sweep.live import Reached
from lab.sweep.measuring import measured
from lab.sweep.reading import final_states, open, states

__all__ = ["Feed", "Layout", "Reached", "final_states", "measured", "open", "states", "sweep"]


def _single_threaded() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # LAPACK, once for each dispatch
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" in flags:
        return
    if not _started():
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
        return
    _identity.LATE = True
    if cores() > 1 and jax.default_backend() == "cpu":
        warnings.warn(
            "lab.sweep was imported after JAX had started: the runs' threads will fight over the "
            "cores. Import lab.sweep before any JAX computation.",
            stacklevel=3,
        )


def _started() -> bool:
    """Whether JAX has chosen its devices: then their number can no longer be set."""
    given = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    try:
        jax.config.update("jax_num_cpu_devices", max(given, 0) + 1)
        jax.config.update("jax_num_cpu_devices", given)
    except RuntimeError:
        return True
    return False


_single_threaded()
