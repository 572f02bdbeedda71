"""Sections of a check, each in a process of its own that ends in time, rows kept as they come.

A child appends rows of json to a file; a grandchild runs a stored sweep, to be killed:

    python -m experiments.engine.peers.sections NAME SETTINGS FILE
    python -m experiments.engine.peers.sections stored FOLDER SEED
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

KILLS = 2
"""Of the stored sweep, each once it has written to its states."""

RUNS, STEPS, EVERY = 32, 400, 10


class Section:
    """A section in a process of its own, begun at once; what is timed waits for `go`."""

    def __init__(self, name: str, file: Path, *, memory: float, **settings: Any):
        """Start it, unless the file says that it is done.

        Args:
            name: one of `SECTIONS`.
            file: where its rows go.
            memory: share of an accelerator's memory that JAX takes for it.
            settings: of the section.
        """
        self.name, self.file, self.child = name, file, None
        if self.rows() and self.rows()[-1].get("done"):
            return
        file.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "experiments.engine.peers.sections",
            name,
            json.dumps(settings),
            str(file),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(memory)
        if name == "torch":  # JAX draws its initial weights, and leaves it the accelerator
            environment["JAX_PLATFORMS"] = "cpu"
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=environment, start_new_session=True, text=True
        )

    def go(self, seconds: float) -> None:
        """Let it time, for so long: the machine is quiet."""
        if self.child and self.child.stdin:
            with contextlib.suppress(BrokenPipeError):
                print(seconds, file=self.child.stdin, flush=True)

    def ended(self, until: float) -> "Section":
        """Wait for its end, until a time of `time.perf_counter`; then it is ended."""
        if self.child:
            try:
                self.child.wait(max(0.0, until - time.perf_counter()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()
        return self

    def rows(self) -> list[Row]:
        """What it has written, as far as it is whole."""
        found = []
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found


def accuracy(wait: Callable[[], float], seeds: int) -> Iterator[Row]:
    """Errors of float32; see `experiments.engine.peers.accuracy`."""
    from experiments.engine.peers.accuracy import errors

    yield from errors(seeds)


def rates(wait: Callable[[], float], **settings: Any) -> Iterator[Row]:
    """Seconds of the engine and of what is written in JAX."""
    import lab.sweep  # noqa: F401  before JAX starts
    from experiments.engine.peers.rates import in_jax

    yield from in_jax(**settings, wait=wait)


def torch(wait: Callable[[], float], **settings: Any) -> Iterator[Row]:
    """Seconds of what is written in PyTorch."""
    from experiments.engine.peers.rates import in_torch

    yield from in_torch(**settings, wait=wait)


def edge(wait: Callable[[], float], folder: str, flags: list[str]) -> Iterator[Row]:
    """The edge of stability's quick preset, by its command."""
    root = Path(__file__).parents[2]
    (file,) = (root / "experiments").rglob("edge_of_stability.py")
    module = ".".join(file.relative_to(root).with_suffix("").parts)
    command = [sys.executable, "-m", module, "quick", "--into", str(Path(folder).absolute())]
    subprocess.run([*command, *flags], stdout=subprocess.DEVNULL, cwd=root)
    (report,) = Path(folder).glob("edge_of_stability/quick/edge_of_stability.json")
    for claim in json.loads(report.read_text())["claims"]:
        yield {
            k: claim[k] for k in ("statement", "verdict", "measured", "interval", "tolerance")
        } | {"control": {k: claim["control"][k] for k in ("verdict", "interval")}}


def resumed(wait: Callable[[], float], folder: str) -> Iterator[Row]:
    """How many files of a store differ after kills, and by another seed."""
    whole, cut, other = (Path(folder, name) for name in ("whole", "cut", "other"))
    stored(whole, 0)
    command = [sys.executable, "-m", "experiments.engine.peers.sections", "stored", str(cut), "0"]
    killed = 0
    for i in range(KILLS):
        child = subprocess.Popen(command)
        while child.poll() is None and len([*cut.glob("states/*")]) == 0:
            time.sleep(0.001)
        time.sleep(0.05 * i)
        child.kill()
        killed += child.wait() == -signal.SIGKILL
    subprocess.run(command, check=True)
    stored(other, 1)
    yield {"killed": killed, "differs": differing(whole, cut), "control": differing(whole, other)}


def stored(folder: Path, seed: int) -> None:
    """A small stored sweep of minibatches."""
    from experiments.engine.peers.problems import problems
    from lab.sweep import sweep

    problem = problems()["b"]
    sweep(
        functools.partial(problem.training, **problem.examples),
        {"seed": range(seed, seed + RUNS)},
        steps=STEPS,
        every=EVERY,
        layout={"segment": EVERY},
        store=folder,
        progress=False,
    )


def differing(one: Path, other: Path) -> int:
    """Files that are not the same in both stores, bookkeeping of who writes left out."""

    def files(store: Path) -> dict[str, bytes]:
        found = (f for f in store.rglob("*") if f.is_file() and f.name != "lock")
        return {str(f.relative_to(store)): f.read_bytes() for f in found}

    ours, theirs = files(one), files(other)
    return sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())


SECTIONS: dict[str, Callable[..., Iterator[Row]]] = {
    "accuracy": accuracy,
    "rates": rates,
    "torch": torch,
    "edge": edge,
    "resumed": resumed,
}


def main(name: str, settings: dict[str, Any], file: Path) -> None:
    """A child: write the rows of a section, and that it is done."""

    def write(row: Row) -> None:
        with file.open("a") as rows:
            print(json.dumps(row), file=rows, flush=True)

    if name in ("rates", "torch"):  # they compile long before they time
        os.nice(5)
    begun = time.perf_counter()
    for row in SECTIONS[name](lambda: float(sys.stdin.readline()), **settings):
        write(row)
    write({"done": True, "seconds": time.perf_counter() - begun, **device(name)})


def device(name: str) -> Row:
    """What JAX found, unless the section left it to PyTorch."""
    if name in ("torch", "edge"):
        return {}
    import jax

    one = jax.devices()[0]
    return {"device": one.device_kind, "platform": one.platform, "jax": jax.__version__}


if __name__ == "__main__":
    if sys.argv[1] == "stored":
        stored(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
