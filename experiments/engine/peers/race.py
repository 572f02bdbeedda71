"""Contenders side by side: each in a process of its own, taking turns.

A child holds its compiled program and waits; only the one whose turn it is works.

A child reads lines of "STEPS RUNS" and answers in json:

    python -m experiments.engine.peers.race FORM PROBLEM
"""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

PEAK_SIZE = 1024


class Turn(NamedTuple):
    """What one turn of a contender took.

    Attributes:
        seconds: of work, without compilation.
        records: {"loss": [run, record], ...} as lists, of the first four runs.
        note: such as how many threads it chose.
    """

    seconds: float
    records: dict[str, list[list[float]]]
    note: str


class Contender:
    """A child process, ready to run."""

    def __init__(self, form: str, problem: str, **settings: Any):
        """Start it.

        Args:
            form: "sweep", "vmap", "scan" or "loop" (see `jax_forms`), "eager" or "func" (see
                `torch_forms`), or "peak": products of 1024 x 1024 matrices, whatever the problem.
            problem: a letter of `experiments.engine.peers.problems`.
            settings: of the form, such as `layout` of "sweep".
        """
        command = [
            sys.executable,
            "-m",
            "experiments.engine.peers.race",
            form,
            problem,
            json.dumps(settings),
        ]
        pipe, env = subprocess.PIPE, environment()
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        self.name = f"{form} on ({problem})"

    def turn(self, steps: int, runs: int) -> Turn:
        """Run it once, while everybody else waits.

        Raises:
            RuntimeError: the child died; what it said is on standard error.
        """
        assert self.child.stdin and self.child.stdout
        print(steps, runs, file=self.child.stdin, flush=True)
        answer = self.child.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name}: ended with {self.child.wait()}")
        return Turn(**json.loads(answer))

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *error: object) -> None:
        """Let the child end."""
        self.child.communicate()


def environment() -> dict[str, str]:
    """A child's: without the lab's flags, with the cache of compilations."""
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    if folder := jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        clean |= {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    return clean


def available(form: str) -> bool:
    """Whether what the form needs is installed."""
    from importlib.util import find_spec

    return form not in ("eager", "func") or find_spec("torch") is not None


def main(form: str, problem: str, settings: Mapping[str, Any]) -> None:
    """A child: answer each line of standard input with a `Turn`."""
    run = _made(form, problem, settings)
    for line in sys.stdin:
        steps, runs = map(int, line.split())
        seconds, records, note = run(steps, runs)
        few = {name: np.asarray(a)[:4].astype(float).tolist() for name, a in records.items()}
        print(json.dumps(Turn(seconds, few, note)._asdict()), flush=True)


def _made(form: str, problem: str, settings: Mapping[str, Any]) -> Any:
    if form not in ("sweep", "peak"):  # JAX's own defaults: it starts before the lab sets its flags
        warnings.simplefilter("ignore")
        jax.devices()
    if form == "peak":
        return _peak
    from experiments.engine.peers import jax_forms
    from experiments.engine.peers.problems import problems

    what = problems()[problem]
    if form in ("eager", "func"):
        from experiments.engine.peers import torch_forms

        return {"eager": torch_forms.with_eager, "func": torch_forms.with_func}[form](what)
    if form == "sweep":
        return jax_forms.with_sweep(what, **settings)
    made = {"vmap": jax_forms.with_vmap, "scan": jax_forms.with_scan, "loop": jax_forms.with_loop}
    return made[form](what)


def _peak(steps: int, runs: int) -> tuple[float, dict[str, Any], str]:
    """Seconds for `steps` products of 1024^3 on all cores together, by the faster library."""
    import lab.sweep  # noqa: F401  one device a core

    n, cores = PEAK_SIZE, jax.device_count()
    a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32) / n**0.5
    mesh = jax.make_mesh((cores,), ("core",), axis_types=(jax.sharding.AxisType.Auto,))

    def chain(a: Any) -> Any:
        return jax.lax.fori_loop(0, steps, lambda i, c: a[0] @ c, a[0])[None]

    product = jax.jit(jax.shard_map(chain, mesh=mesh, in_specs=P("core"), out_specs=P("core")))
    stacked = np.stack([a] * cores)
    jax.block_until_ready(product(stacked))
    begun = time.perf_counter()
    jax.block_until_ready(product(stacked))
    xla = (time.perf_counter() - begun) / cores
    begun = time.perf_counter()
    for _ in range(steps):
        a @ a
    numpy = time.perf_counter() - begun
    return min(xla, numpy), {}, "XLA" if xla < numpy else "NumPy"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
