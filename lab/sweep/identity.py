"""Identity: all that must be the same for a stored trajectory to go on bit for bit."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from lab.sweep.layout import cores, options
from lab.sweep.precision import matmul_precision
from lab.sweep.trace import Process, plain
from lab.types import BadInput

Identity = dict[str, dict[str, Any]]
"""{section: {name: value}}."""

VARIABLES = (
    "LIBTPU_INIT_ARGS",
    "NVIDIA_TF32_OVERRIDE",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "XLA_FLAGS",
)
"""Environment variables that change what is compiled, or the LAPACK that it calls."""

HARMLESS_FLAGS = re.compile(
    r"--xla_(dump|force_host_platform_device_count|hlo_profile|log)\w*=?\S*"
)

HARMLESS = re.compile(
    "cache|log_|logging|debug|dump|trac|pprint|guard|check|captured|device|platform|topology|transfer|cross"
    "|mtls|preemption|rank_promotion|dtype_promotion|color|url|regex|collectives|pgle_|distributed"
    "|recoverability|export|jax2tf|pallas|mosaic|profile|backend|mock|proxy|bwd|error|async"
)
"""JAX's settings that leave the bits alone; all others count, those to come included."""

LATE = False
"""Whether JAX had started before the engine could ask for single-threaded devices."""


def identity(
    process: Process, config: Mapping[str, Any], shared: Mapping[str, PyTree[jax.Array]]
) -> Identity:
    """What a store of this process is, here and now.

    Args:
        process: one run, traced.
        config: cadence and names of axes.
        shared: arrays that every run reads, or pytrees of them.

    Raises:
        BadInput: the process calls back to Python, which no hash can tell from another.
    """
    for name in process.callbacks():
        raise BadInput(
            f"store: {name} calls back to Python (jax.debug.print, pure_callback, ...), which "
            "cannot be told from another computation; leave that out, or the store "
            "(sweep(on_segment=...) is called on the host with what is recorded)"
        )
    return {
        **surroundings(),
        "config": dict(config),
        "arrays": {
            jax.tree_util.keystr(path, simple=True, separator="/"): _hash(plain(array).tobytes())
            for path, array in jax.tree_util.tree_leaves_with_path(dict(shared))
        },
        "computation": process.digests(),
        "names": process.names(),
    }


def surroundings() -> Identity:
    """Versions, machine and settings, here and now, on which the bits of a computation depend."""
    device = jax.devices()[0]
    processor: dict[str, Any] = {"processor": _processor(), "threads": cores() if LATE else 1}
    if device.platform != "cpu":
        runtime = device.client.platform_version
        processor = {"processor": device.device_kind, "runtime": runtime}
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "scipy")},
        "machine": {"platform": device.platform, **processor, **_environment()},
        "settings": {**_settings(), "options": options(device.platform)},
    }


def refuse_other(
    path: Path,
    stored: Identity,
    given: Identity,
    advice: str = "give another store, or remove this one",
) -> None:
    """Raise unless both are the same, naming the first difference.

    Raises:
        BadInput: they differ.
    """
    given = json.loads(json.dumps(given))
    for section, entries in given.items():
        old = stored.get(section, {})
        for name in sorted(old.keys() | entries.keys()):
            if old.get(name) != entries.get(name):
                what = {
                    "computation": f"{name} computes something else (its code or data differ)",
                    "arrays": f"array {name!r} has other values",
                    "names": f"{name} gave {old.get(name)!r} and now {entries.get(name)!r}",
                }.get(section, f"{name} was {old.get(name)!r} and is now {entries.get(name)!r}")
                raise BadInput(f"store: {path}: {what}; {advice}")


def _environment() -> dict[str, str]:
    values = {name: HARMLESS_FLAGS.sub("", os.environ.get(name, "")) for name in VARIABLES}
    return {name: " ".join(sorted(value.split())) for name, value in values.items()}


def _settings() -> dict[str, str]:
    held = sorted(jax.config.values.items())
    kept = {n.removeprefix("jax_"): str(value) for n, value in held if not HARMLESS.search(n)}
    return {**kept, "default_matmul_precision": matmul_precision()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    keys = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")
    seen = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(seen[key] for key in keys if key in seen)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
