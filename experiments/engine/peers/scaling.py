"""What a stored sweep costs in time, memory and disk, in a process of its own.

A child prints seconds, peak bytes and bytes on disk of the sweep; then seconds and bytes of results
that are written anew as they grow:

    python -m experiments.engine.peers.scaling LINE NUMBER CHUNK EXAMPLES RUNS
"""

import multiprocessing
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.engine.peers.memory import STEPS, peak_bytes, training
from experiments.engine.peers.race import environment

EVERY, WIDTH = 20, 25
"""Steps between two records; runs of a block that is a job."""


class Cost(NamedTuple):
    """Of one sweep, and of a way that grows faster.

    Attributes:
        seconds: from the call to the Dataset, compilation included.
        peak: bytes of resident memory of the process that called, imports included.
        disk: bytes of the store's files.
        again_seconds: of writing all results so far after each chunk; of blocks, of reading them.
        again_bytes: that are written so.
    """

    seconds: float
    peak: float
    disk: float
    again_seconds: float
    again_bytes: float


def cost(line: str, number: int, chunk: int, examples: int, runs: int) -> Cost:
    """Of a sweep of so many runs, records or blocks.

    Args:
        line: "runs", "records" or "blocks": what there are so many of.
        number: of them.
        chunk: after how many of them the other way writes anew.
        examples: digits in the training set.
        runs: where not these vary.
    """
    module, given = "experiments.engine.peers.scaling", (number, chunk, examples, runs)
    command = [sys.executable, "-m", module, line, *map(str, given)]
    kept = environment().items()  # every child compiles, the first like the last
    env = {name: value for name, value in kept if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return Cost(*map(float, done.stdout.split()))


def main(line: str, number: int, chunk: int, examples: int, runs: int) -> None:
    """A child: one stored sweep over seeds; of its states none is kept."""
    from lab.data import sklearn_digits
    from lab.sweep import sweep

    digits = sklearn_digits(examples).train
    count = {"runs": number, "records": runs, "blocks": number * WIDTH}[line]
    settings: dict[str, Any] = {"every": STEPS // (number - 1) if line == "records" else EVERY}
    if line == "blocks":
        spawn = multiprocessing.get_context("spawn")
        settings["executor"] = partial(ProcessPoolExecutor, 2, mp_context=spawn)
        settings["layout"] = {"width": WIDTH, "blocks": 1}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        data = sweep(
            partial(training, lr=0.05),
            {"seed": range(count)},
            steps=STEPS,
            shared={"x": digits.x, "y": digits.y},
            store=folder,
            keep=None,
            **settings,
        )
        seconds, peak = time.perf_counter() - begun, peak_bytes()
        files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
        disk = sum(file.stat().st_size for file in files)
        results = data.loss.values
        assert results.shape[0] == count and (line != "records" or results.shape[1] == number)
        results = np.ascontiguousarray(results.T) if line == "records" else results
        each = len(results) // number * chunk
        written, size = rewriting(results, each, Path(folder))
        if line == "blocks":
            written = rereading([file for file in files if "records" in file.parts], chunk)
    print(seconds, peak, disk, written, size)


def rewriting(results: np.ndarray, chunk: int, folder: Path) -> tuple[float, float]:
    """Seconds, and bytes in all, of writing the results so far after each chunk of them."""
    begun, size = time.perf_counter(), 0
    for done in range(chunk, len(results) + 1, chunk):
        file = folder / "results.npy"
        np.save(file, results[:done])
        size += file.stat().st_size
    return time.perf_counter() - begun, size


def rereading(files: list[Path], chunk: int) -> float:
    """Seconds of reading all files so far after each chunk of them."""
    begun = time.perf_counter()
    for done in range(chunk, len(files) + 1, chunk):
        for file in files[:done]:
            file.read_bytes()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
