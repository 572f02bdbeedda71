"""How long a sweep of many tiny runs takes and how much memory it needs, in a process of its own.

A child prints seconds, peak bytes and seconds of rewriting:

    python -m experiments.engine.peers.memory FORM RUNS EXAMPLES
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine.peers.race import environment

STEPS, EVERY = 200, 20


class Cost(NamedTuple):
    """Of a whole process, compilation included.

    Attributes:
        seconds: from the first call to the last record on the host.
        peak_bytes: of resident memory, imports included.
        rewriting: seconds that it takes to write results as one json file, anew each thousand runs.
    """

    seconds: float
    peak_bytes: float
    rewriting: float


def cost(form: str, runs: int, examples: int) -> Cost:
    """Of `form` on so many runs.

    Args:
        form: "sweep", the engine; "vmap", all runs at once.
        runs: their number.
        examples: digits in the training set.
    """
    module = "experiments.engine.peers.memory"
    command = [sys.executable, "-m", module, form, str(runs), str(examples)]
    env = environment()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return Cost(*map(float, done.stdout.split()))


def training(seed: Any, lr: Any, x: Any, y: Any) -> Any:
    """A deep linear network 64-16-10 on scikit-learn's digits, full batch."""
    import optax

    from lab.dynamics import descent
    from lab.models import deep_linear
    from lab.objectives import mse

    model = deep_linear((64, 16, 10))
    return descent(
        lambda params: mse(model.apply(params, x), y),
        optax.sgd(lr),
        init=lambda: model.init(jax.random.key(seed)),
        observe=lambda state, t: {"loss": state.loss},
    )


def main(form: str, runs: int, examples: int) -> None:
    """A child: one sweep over seeds."""
    if form == "vmap":  # JAX's own defaults: it starts before the lab sets its flags
        warnings.simplefilter("ignore")
        jax.devices()
    from lab.data import sklearn_digits
    from lab.sweep import sweep

    digits = sklearn_digits(examples).train
    process = partial(training, lr=0.05)
    begun = time.perf_counter()
    if form == "sweep":
        shared = {"x": digits.x, "y": digits.y}
        data = sweep(process, {"seed": range(runs)}, steps=STEPS, every=EVERY, shared=shared)
        loss = data.loss.values
    else:

        def solo(seed: Any, x: Any, y: Any) -> Any:
            made = process(seed=seed, x=x, y=y)

            def record(state: Any, t: Any) -> Any:
                moved = jax.lax.fori_loop(t, t + EVERY, lambda t, s: made.step(s, t), state)
                return moved, made.observe(state, t)["loss"]

            state, losses = jax.lax.scan(record, made.init(), jnp.arange(0, STEPS, EVERY))
            return jnp.append(losses, made.observe(state, jnp.int32(STEPS))["loss"])

        over_runs = jax.jit(jax.vmap(solo, in_axes=(0, None, None)))
        loss = jax.device_get(over_runs(jnp.arange(runs), digits.x, digits.y))
    seconds = time.perf_counter() - begun
    assert loss.shape == (runs, STEPS // EVERY + 1)
    peak = peak_bytes()
    print(seconds, peak, rewriting(loss))


def rewriting(loss: np.ndarray) -> float:
    """Seconds for results kept as one file, which is written whole after each thousand runs."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for done in range(1000, len(loss) + 1, 1000):
            (Path(folder) / "results.json").write_text(json.dumps(loss[:done].tolist()))
    return time.perf_counter() - begun


def peak_bytes() -> int:
    """Of this process's resident memory, since it began."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts the parent's into a child's ru_maxrss
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
