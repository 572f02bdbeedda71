"""Strictness for every test: warnings and silent promotions are errors, shapes are checked."""

import gc
import os
from pathlib import Path
from typing import Any

# Tests share one compilation cache; subprocesses inherit it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

from jaxtyping import install_import_hook

# The engine checks its own input, in words; everything else has its shapes checked here.
CHECKED = ("claims", "data", "dynamics", "measures", "models", "numerics", "objectives")
CHECKED += ("plotting", "theory")
install_import_hook([f"lab.{room}" for room in CHECKED], "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src import compiler  # noqa: E402  no public switch does it

import lab.sweep  # noqa: E402, F401  one device a core, before JAX starts

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")

OPTIMISED = {"bad_input", "damage", "executor", "feed", "identity", "layer_norm", "layout"}
OPTIMISED |= {"linalg", "measured", "states", "store", "sweep", "torture", "wide"}
"""Files whose programs are compiled as a user's are: bits are their subject, or much arithmetic."""


gc.set_threshold(200_000, 50, 50)
"""Tracing makes many objects and drops few; looking for those took a tenth of a toy's time."""

LESS = (("xla_cpu_use_fusion_emitters", False), ("xla_cpu_parallel_codegen_split_count", 1))
"""Of XLA where optimisations are not wanted: no fusions, a program in one piece."""

options_of = compiler.get_compile_options


def hurried(*given: Any, **settings: Any) -> Any:
    """JAX's options of a compilation, with `LESS` where optimisations are not wanted.

    A quarter of the whole suite's time.
    """
    options = options_of(*given, **settings)
    if jax.config.read("jax_disable_most_optimizations"):
        options.env_option_overrides = [*options.env_option_overrides, *LESS]
    return options


if jax.__version_info__ < (0, 11):  # later ones have no such switch
    compiler.get_compile_options = hurried


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Most of a test's time is XLA's optimising of programs that run for a moment."""
    wanted = item.path.stem.removeprefix("test_") in OPTIMISED
    jax.config.update("jax_disable_most_optimizations", not wanted)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two workers one takes a file's tests: they share fixtures and compiled programs."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
