"""The contenders in JAX: the engine, and what people write themselves.

Each is `form(problem) -> run`, with run(steps, runs) -> (seconds of work, {record: [run, record]},
a note), compiled before it is timed.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine.peers.problems import EVERY, INSPECT_EVERY, Problem
from lab.sweep.axes import parsed
from lab.sweep.book import Book
from lab.sweep.cadence import Cadence
from lab.sweep.engine import laid_out
from lab.sweep.layout import Layout, cores, devices
from lab.sweep.parts import Part, Placed
from lab.sweep.run import Waiting, by_devices, compiling
from lab.sweep.trace import Process

Records = dict[str, np.ndarray]
Run = Callable[[int, int], tuple[float, Records, str]]


def with_sweep(problem: Problem, layout: Mapping[str, Any] | None = None) -> Run:
    """The engine, traced and compiled once for each number of steps and runs."""
    made: dict[Any, tuple[Book, Callable[[], Any]]] = {}

    def run(steps: int, runs: int) -> tuple[float, Records, str]:
        if (steps, runs) not in made:
            one = part(problem, runs, steps)
            made[steps, runs] = engine(one, one.process(), Layout(**layout or {}))
        book, swept = made[steps, runs]
        begun = time.perf_counter()
        recorded = swept()
        seconds = time.perf_counter() - begun
        note = f"{book.layout.devices} devices, width {book.layout.width}"
        return seconds, {name: recorded[name] for name in kept(problem)}, note

    return run


def part(problem: Problem, runs: int, steps: int) -> Part:
    """What `sweep` makes of a problem."""
    at = {"step": np.arange(0, steps + 1, EVERY)}
    if problem.sharpness:
        at["step_rare"] = np.arange(0, steps + 1, INSPECT_EVERY)
    seeds = parsed({"seed": range(runs)})
    return Part(problem.training, seeds, {}, problem.examples, Cadence(steps, at))


def engine(part: Part, process: Process, layout: Layout) -> tuple[Book, Callable[[], Any]]:
    """The engine as `sweep` calls it: its book, and what computes all records, compiled."""
    book = laid_out(Placed(part, process, None, None), None, layout, False, False)
    placed = devices(book.layout.devices or 1)
    with ThreadPoolExecutor(cores()) as pool:
        segments = {device: compiling(part, book, device, True, pool) for device in placed}

    def run() -> Any:
        waiting: deque[Waiting] = deque((segments, *one) for one in book.real_runs().items())
        by_devices(placed, waiting, lambda *_: None)
        return book.recorded()

    return book, run


def with_vmap(problem: Problem) -> Run:
    """`jit(vmap(scan))` over all runs."""

    def compiled(steps: int, seeds: Any) -> Any:
        over_runs = jax.vmap(trajectory(problem, steps), in_axes=(0, None, None))
        return jax.jit(over_runs).lower(seeds, *problem.examples.values()).compile()

    made: dict[Any, Any] = {}

    def run(steps: int, runs: int) -> tuple[float, Records, str]:
        seeds = jnp.arange(runs)
        if (steps, runs) not in made:
            made[steps, runs] = compiled(steps, seeds)
        begun = time.perf_counter()
        records = jax.block_until_ready(made[steps, runs](seeds, *problem.examples.values()))
        seconds = time.perf_counter() - begun
        return seconds, {n: np.asarray(records[n]) for n in kept(problem)}, "all cores"

    return run


def with_scan(problem: Problem) -> Run:
    """`jit(scan)`, run after run."""
    made: dict[int, Any] = {}

    def run(steps: int, runs: int) -> tuple[float, Records, str]:
        examples = problem.examples.values()
        if steps not in made:
            solo = jax.jit(trajectory(problem, steps))
            made[steps] = solo.lower(jnp.int32(0), *examples).compile()
        begun = time.perf_counter()
        records = [
            jax.block_until_ready(made[steps](jnp.int32(seed), *examples)) for seed in range(runs)
        ]
        seconds = time.perf_counter() - begun
        return seconds, {n: np.stack([r[n] for r in records]) for n in kept(problem)}, "all cores"

    return run


def with_loop(problem: Problem) -> Run:
    """A Python loop over a jitted step, run after run."""

    def made(seed: Any, x: Any, y: Any) -> Any:
        return problem.training(seed=seed, x=x, y=y)

    init = jax.jit(lambda *point: made(*point).init())
    step = jax.jit(lambda point, state, t: made(*point).step(state, t), donate_argnums=1)
    observe = jax.jit(lambda point, state, t: made(*point).observe(state, t))
    inspect = jax.jit(lambda point, state, t: made(*point).inspect(state, t))

    def solo(seed: int, steps: int) -> Records:
        point = (jnp.int32(seed), *problem.examples.values())
        state = init(*point)
        records: dict[str, list[Any]] = {name: [] for name in kept(problem)}
        for t in range(steps + 1):
            if problem.sharpness and t % INSPECT_EVERY == 0:
                records["sharpness"].append(inspect(point, state, t)["sharpness"])
            if t % EVERY == 0:
                records["loss"].append(observe(point, state, t)["loss"])
            if t < steps:
                state = step(point, state, t)
        return {name: np.array(jax.block_until_ready(values)) for name, values in records.items()}

    def run(steps: int, runs: int) -> tuple[float, Records, str]:
        begun = time.perf_counter()
        records = [solo(seed, steps) for seed in range(runs)]
        seconds = time.perf_counter() - begun
        stacked = {name: np.stack([r[name] for r in records]) for name in kept(problem)}
        return seconds, stacked, "all cores"

    return run


def trajectory(problem: Problem, steps: int) -> Callable[..., dict[str, Any]]:
    """One run as nested scans, records stacked, the last one included."""

    def solo(seed: Any, x: Any, y: Any) -> dict[str, Any]:
        process, last = problem.training(seed=seed, x=x, y=y), jnp.int32(steps)

        def observe(state: Any, t: Any) -> Any:
            def step(state: Any, i: Any) -> Any:
                return process.step(state, t + i), None

            return jax.lax.scan(step, state, jnp.arange(EVERY))[0], process.observe(state, t)

        def inspect(state: Any, t: Any) -> Any:
            assert process.inspect is not None
            costly = process.inspect(state, t)
            times = t + jnp.arange(0, INSPECT_EVERY, EVERY)
            state, records = jax.lax.scan(observe, state, times)
            return state, (records["loss"], costly["sharpness"])

        if not problem.sharpness:
            state, records = jax.lax.scan(observe, process.init(), jnp.arange(0, steps, EVERY))
            return {"loss": jnp.append(records["loss"], process.observe(state, last)["loss"])}
        times = jnp.arange(0, steps, INSPECT_EVERY)
        state, (loss, sharpness) = jax.lax.scan(inspect, process.init(), times)
        assert process.inspect is not None
        end = {**process.observe(state, last), **process.inspect(state, last)}
        return {
            "loss": jnp.append(loss, end["loss"]),
            "sharpness": jnp.append(sharpness, end["sharpness"]),
        }

    return solo


def kept(problem: Problem) -> tuple[str, ...]:
    """The records that contenders are compared by."""
    return ("loss", "sharpness") if problem.sharpness else ("loss",)
