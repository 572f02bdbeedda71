"""The engine against `jit(vmap(scan))`: the 48 runs of the edge of stability, side by side.

    make benchmark        # about five minutes on two quiet cores

Each contender runs in a process of its own, under the flags that are fastest for it: JAX's
defaults and all cores for `jit(vmap(scan))`. They take turns, five times. A contender's time is
that of the long sweep less that of the short one, so that tracing and compilation fall out.
"""

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np

LRS, SEEDS, EVERY, INSPECT, TURNS = (0.05, 0.1, 0.16, 0.25, 0.5, 1.0), 8, 20, 100, 5
SHORT, LONG = 100, 600


def with_sweep() -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """The sweep as the lab runs it."""
    from lab.sweep import sweep

    process, shared = problem()
    axes = {"lr": LRS, "seed": range(SEEDS)}

    def run(steps: int) -> tuple[np.ndarray, np.ndarray]:
        cadence = {"steps": steps, "every": EVERY, "inspect_every": INSPECT}
        data = sweep(process, axes, **cadence, shared=shared)
        return data.loss.values, data.sharpness.values

    return run


def with_vmap() -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """The same arithmetic as a researcher writes it: one jit of one vmap of nested scans."""
    import jax
    import jax.numpy as jnp

    process, shared = problem()
    lrs, seeds = jnp.repeat(jnp.array(LRS), SEEDS), jnp.tile(jnp.arange(SEEDS), len(LRS))

    def trajectory(lr, seed, steps, x, y):
        made = process(lr=lr, seed=seed, x=x, y=y)

        def observe(state, t):
            record = made.observe(state, t)
            moved, _ = jax.lax.scan(
                lambda s, i: (made.step(s, t + i), None), state, jnp.arange(EVERY)
            )
            return moved, record

        def inspect(state, t):
            costly = made.inspect(state, t)
            moved, records = jax.lax.scan(observe, state, t + EVERY * jnp.arange(INSPECT // EVERY))
            return moved, (records, costly)

        state, (often, rarely) = jax.lax.scan(inspect, made.init(), jnp.arange(0, steps, INSPECT))
        last = {**made.observe(state, steps), **made.inspect(state, steps)}
        rarely = jnp.append(rarely["sharpness"], last["sharpness"])
        return jnp.append(often["loss"].ravel(), last["loss"]), rarely

    over_runs = jax.vmap(trajectory, in_axes=(0, 0, None, None, None))
    compiled = jax.jit(over_runs, static_argnums=2)

    def run(steps: int) -> tuple[np.ndarray, np.ndarray]:
        records = compiled(lrs, seeds, steps, shared["x"], shared["y"])
        loss, sharpness = (np.asarray(a).reshape(len(LRS), SEEDS, -1) for a in records)
        return loss, sharpness

    return run


def problem():
    """The paper preset's process and data."""
    from functools import partial

    from experiments.gradient_descent.edge_of_stability import PRESETS, training
    from lab.data import mnist

    config = PRESETS["paper"]
    digits = mnist(config.examples, pool=config.pool).train
    return partial(training, config=config), {"x": digits.x, "y": digits.y}


def contender(name: str) -> None:
    """Time one contender in this process; print its seconds, first losses and sharpnesses."""
    import jax

    if name == "vmap":  # JAX's own defaults: start it before the lab can set its flags
        warnings.simplefilter("ignore")
        assert jax.device_count() == 1

    from lab.experiment import _cache_compilations

    _cache_compilations()
    run = {"sweep": with_sweep, "vmap": with_vmap}[name]()
    for steps in (SHORT, LONG):
        run(steps)
    seconds = {}
    for steps in (SHORT, LONG):
        begun = time.perf_counter()
        records = run(steps)
        seconds[steps] = time.perf_counter() - begun
    checked = [x for a in records for x in a[0, :, :2].ravel().tolist()]  # the smallest rate
    print(jax.device_count(), seconds[LONG] - seconds[SHORT], *checked)


def main() -> None:
    """Alternate the contenders and print the ratio of their times with its spread."""
    seconds: dict[str, list[float]] = {"sweep": [], "vmap": []}
    checked = {}
    for _ in range(TURNS):
        for name in seconds:
            command = [sys.executable, "-m", "tests.benchmark_sweep", name]
            clean = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean)
            devices, took, *checked[name] = map(float, done.stdout.split())
            seconds[name].append(took)
            print(f"{name:6} {devices:.0f} devices {took:6.2f} s", flush=True)
    np.testing.assert_allclose(checked["sweep"], checked["vmap"], rtol=1e-4)
    ratios = np.array(seconds["vmap"]) / np.array(seconds["sweep"])
    steps = len(LRS) * SEEDS * (LONG - SHORT)
    for name, taken in seconds.items():
        print(f"{name:6} median {steps / np.median(taken):,.0f} member-steps/s")
    print(
        f"jit(vmap(scan)) / sweep: {np.median(ratios):.2f} ({ratios.min():.2f}..{ratios.max():.2f})"
    )


if __name__ == "__main__":
    contender(sys.argv[1]) if len(sys.argv) > 1 else main()
