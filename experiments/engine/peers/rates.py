"""Seconds of a member's step against the number of runs: the engine, its rivals, turn about.

Each function yields rows, plain dicts, as soon as it has them, and keeps to its seconds: what did
not fit is a row that says so. Times are of the work alone, from the first step to the last record
on the host; programs compile side by side before any is timed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine.peers.jax_forms import engine, part, trajectory
from experiments.engine.peers.problems import EVERY, INSPECT_EVERY, Problem, problems
from lab.sweep.layout import Layout, cores, devices, options

Row = dict[str, Any]
Run = Callable[[], Any]
Options: TypeAlias = dict[str, Any] | None

STEPS, FEW = {"a": 100, "b": 600, "c": 30, "f": 100}, 20
"""Of a run when fewer than 4,096 are timed; others take 50; and `FEW` of more runs, or one stretch
between two measurements of sharpness."""

COMPILING = 60
"""Seconds after which `torch.compile` is given no further sweep."""

PEAK_SIZE = 8192
"""Of the product that a device's peak is read off."""

ALONE = 4
"""Runs that a form which goes run after run is timed on."""


def steps_of(letter: str, runs: int, most: int) -> int:
    """How many steps are timed: more where they are short; multiples of what is recorded."""
    few = INSPECT_EVERY if problems()[letter].sharpness else FEW
    return min(STEPS.get(letter, 50) if runs < 4096 else few, most)


def in_jax(
    letters: str, groups: Sequence[Sequence[int]], turns: int, most: int, wait: Callable[[], float]
) -> Iterator[Row]:
    """Rows {"problem", "runs", "steps", "form", "turn", "seconds"} of the engine and JAX's forms.

    Args:
        letters: reference sweeps.
        groups: numbers of runs; those of a group compile together.
        turns: how often each is timed, after one turn that does not count.
        most: steps.
        wait: returns when the machine is quiet, the seconds that all may take from then on; the
            first group compiles meanwhile.
    """
    parts = {letter: part(problems()[letter], 1, most) for letter in letters}
    processes = {letter: part.process() for letter, part in parts.items()}
    end, spent = float("inf"), 0.0
    for i, group in enumerate(groups):
        if time.perf_counter() + spent * len(group) > end:
            yield {"note": f"no time for {', '.join(map(str, group))} runs"}
            continue
        begun = time.perf_counter()
        with ThreadPoolExecutor(cores()) as pool:
            ready: list[tuple[str, int, int, str, Future[Run]]] = []
            for runs in group:
                for letter in letters:
                    steps = steps_of(letter, runs, most)
                    forms = _forms(
                        letter, processes[letter], runs, steps, alone=runs == groups[0][0]
                    )
                    ready += [(letter, runs, steps, n, pool.submit(f)) for n, f in forms.items()]
            for *_, made in ready:
                made.exception()  # waits
        spent = time.perf_counter() - begun
        if i == 0:
            end = wait() + time.perf_counter()
            yield from peak(turns)
        begun = time.perf_counter()
        for key in dict.fromkeys((letter, runs, steps) for letter, runs, steps, *_ in ready):
            if time.perf_counter() > end:
                yield {"note": f"no time for ({key[0]}) at {key[1]} runs"}
                continue
            yield from _turns(*key, {n: f for *k, n, f in ready if tuple(k) == key}, turns)
        spent = (spent + time.perf_counter() - begun) / len(group)


def _turns(
    letter: str, runs: int, steps: int, forms: dict[str, Future[Run]], turns: int
) -> Iterator[Row]:
    """Forms turn about; fewer turns where one is long. A form that fails is a row that says why."""
    racing: dict[str, Run] = {}
    first = 0.0
    for name, made in forms.items():
        try:
            racing[name] = made.result()
            racing[name]()
            begun = time.perf_counter()
            racing[name]()
            first += time.perf_counter() - begun
        except Exception as error:  # memory, for the most part: it is what is asked
            racing.pop(name, None)
            yield {
                "note": f"({letter}) {name} at {runs} runs: {' '.join(str(error).split())[:160]}"
            }
    if "sweep" in racing:
        racing["again"] = racing["sweep"]
    for turn in range(turns if turns * first < 12 else 3 if 3 * first < 9 else 1):
        for name, run in racing.items():
            begun = time.perf_counter()
            run()
            many = ALONE if name == "scan" else runs
            yield {
                "problem": letter,
                "runs": many if name != "scan" else 1,
                "steps": steps * (ALONE if name == "scan" else 1),
                "form": name,
                "turn": turn,
                "seconds": time.perf_counter() - begun,
            }


def _forms(
    letter: str, process: Any, runs: int, steps: int, *, alone: bool
) -> dict[str, Callable[[], Run]]:
    """{form: what compiles it}."""
    problem = problems()[letter]
    found = {
        "sweep": lambda: engine(part(problem, runs, steps), process, Layout(devices=1))[1],
        "vmap": lambda: stacked(problem, runs, steps),
        "alike": lambda: stacked(problem, runs, steps, options(jax.default_backend())),
    }
    return found | ({"scan": lambda: solo(problem, steps)} if alone else {})


def stacked(problem: Problem, runs: int, steps: int, chosen: Options = None) -> Run:
    """`jit(vmap(scan))`, compiled with JAX's defaults, or other options, but for exact products."""
    over_runs = jax.jit(jax.vmap(trajectory(problem, steps), in_axes=(0, None, None)))
    return _compiled(problem, over_runs, [jnp.arange(runs)], chosen)


def solo(problem: Problem, steps: int) -> Run:
    """`jit(scan)`, run after run."""
    seeds = [*map(jnp.int32, range(ALONE))]
    return _compiled(problem, jax.jit(trajectory(problem, steps)), seeds, None)


def _compiled(problem: Problem, function: Any, seeds: Sequence[Any], chosen: Options) -> Run:
    examples = jax.device_put([*problem.examples.values()], devices(1)[0])
    with jax.default_matmul_precision("highest"):
        made = function.lower(seeds[0], *examples).compile(chosen)

    def run() -> Any:
        return [
            {name: np.asarray(record) for name, record in made(seed, *examples).items()}
            for seed in seeds
        ]

    return run


def peak(turns: int) -> Iterator[Row]:
    """Rows {"form": "peak", "turn", "flops": a second}: large products in float32."""
    size = PEAK_SIZE if jax.default_backend() != "cpu" else 512
    a = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5

    def product(a: Any) -> Any:
        return jax.lax.fori_loop(0, 4, lambda i, c: a @ c, a)

    with jax.default_matmul_precision("highest"):
        made = jax.jit(product).lower(a).compile()
    jax.block_until_ready(made(a))
    for turn in range(turns):
        begun = time.perf_counter()
        jax.block_until_ready(made(a))
        seconds = time.perf_counter() - begun
        yield {"form": "peak", "turn": turn, "flops": 4 * 2.0 * size**3 / seconds}


def in_torch(
    letters: str, runs: Sequence[int], turns: int, most: int, wait: Callable[[], float]
) -> Iterator[Row]:
    """The same of PyTorch: run after run, compiled, stacked; a note where it is not installed."""
    try:
        from experiments.engine.peers import torch_forms
    except ImportError:
        yield {"note": "PyTorch is not installed"}
        return
    made: dict[str, Any] = {}
    begun = time.perf_counter()
    for letter in letters:  # some seconds each
        if letter != "f" and time.perf_counter() - begun < COMPILING:
            try:
                made[letter] = torch_forms.with_compiled(problems()[letter])
                made[letter](EVERY, 1)
            except Exception as error:  # it needs a compiler of its own
                made.pop(letter, None)
                yield _failed(letter, "compiled", 1, error)
    end = wait() + time.perf_counter()
    for letter in letters:
        problem = problems()[letter]
        forms = {"eager": torch_forms.with_eager(problem)}
        forms |= {"compiled": made[letter]} if letter in made else {}
        yield from _torch_turns(letter, 1, forms, turns, most, end)
    for count in runs:
        for letter in letters:
            if not problems()[letter].sharpness:
                forms = {"func": torch_forms.with_func(problems()[letter])}
                yield from _torch_turns(letter, count, forms, turns, most, end)


def _failed(letter: str, form: str, runs: int, error: Exception) -> Row:
    said = " ".join(str(error).split())[:160]
    return {"note": f"({letter}) {form} at {runs} runs: {said or type(error).__name__}"}


def _torch_turns(
    letter: str, runs: int, forms: dict[str, Any], turns: int, most: int, end: float
) -> Iterator[Row]:
    """Turn about, each as long as a tenth of a second, or one stretch between two records."""
    shortest = INSPECT_EVERY if problems()[letter].sharpness else EVERY
    steps: dict[str, int] = {}
    for name, run in forms.items():
        if time.perf_counter() > end:
            yield {"note": f"no time for ({letter}) {name} at {runs} runs"}
            continue
        try:
            run(shortest, runs)
            stretch = run(shortest, runs)[0]
        except Exception as error:  # memory, for the most part
            yield {
                "note": f"({letter}) {name} at {runs} runs: {' '.join(str(error).split())[:160]}"
            }
            continue
        if stretch < 3:
            steps[name] = min(most, shortest * max(1, int(0.1 / stretch)))
    for turn in range(turns):
        for name, many in steps.items():
            if time.perf_counter() > end:
                return
            row = {"problem": letter, "runs": runs, "steps": many, "form": name, "turn": turn}
            yield row | {"seconds": forms[name](many, runs)[0]}
