"""How far a device's float32 is from float64 on the host: the lab's own functions, on both.

Every input is drawn in float32 once, so both compute from the same numbers. The control keeps ten
bits of each input, as a TF32 product does, and is otherwise the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from lab.measures.curvature import hessian, lanczos, top_eigenpair
from lab.models import mlp
from lab.objectives import cross_entropy, info_nce, mse, vicreg

STEPS = 300
"""Of an optimiser, or of what a closed form foretells."""

LR = 0.05


def drawn(seed: int) -> dict[str, Any]:
    """A small network, examples, targets, views, and a quadratic problem, in float32."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "params": jax.tree.map(np.asarray, mlp((16, 24, 8)).init(jax.random.key(seed))),
        "x": normal(96, 16),
        "y": normal(96, 8),
        "first": normal(64, 12),
        "second": normal(64, 12),
        "start": jax.tree.map(lambda a: normal(*a.shape), mlp((16, 24, 8)).init(jax.random.key(0))),
        "w": normal(16, 8),
    }


def objectives(d: Any) -> Any:
    """Half squared error and cross entropy of a network, four terms of views."""
    outputs = mlp((16, 24, 8)).apply(d["params"], d["x"])
    labels = jnp.arange(len(outputs)) % 8
    views = d["first"], d["second"]
    return jnp.stack(
        [
            mse(outputs, d["y"]),
            cross_entropy(outputs, labels),
            info_nce(*views, temperature=0.5),
            *vicreg(*views),
        ]
    )


def curvature(d: Any) -> Any:
    """Sharpness, and the ends of the spectrum that Lanczos finds from a given start."""
    model = mlp((16, 24, 8))
    operator = hessian(lambda p: mse(model.apply(p, d["x"]), d["y"]), d["params"])
    top = top_eigenpair(operator, vector=d["start"], k=20).value
    ritz = lanczos(operator.matvec, d["start"], 20).values
    return jnp.stack([top, ritz[0], ritz[1], ritz[-1]])


def optimisers(d: Any) -> Any:
    """Weights of a linear model after `STEPS` of descent, heavy ball, Nesterov and Adam."""

    def loss(w: Any) -> Any:
        return mse(d["x"] @ w, d["y"])

    made = (
        optax.sgd(LR),
        optax.sgd(LR, momentum=0.9),
        optax.sgd(LR, momentum=0.9, nesterov=True),
        optax.adam(1e-2),
    )

    def last(optimizer: optax.GradientTransformation) -> Any:
        def step(_: Any, carry: Any) -> Any:
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w), state)
            return optax.apply_updates(w, updates), state

        return lax.fori_loop(0, STEPS, step, (d["w"], optimizer.init(d["w"])))[0]

    return jnp.stack([last(optimizer) for optimizer in made])


def descended(d: Any) -> Any:
    """Weights of a linear model on the way: after 10, 50 and `STEPS` of descent."""

    def loss(w: Any) -> Any:
        return mse(d["x"] @ w, d["y"])

    def after(steps: int) -> Any:
        return lax.fori_loop(0, steps, lambda _, w: w - LR * jax.grad(loss)(w), d["w"])

    return jnp.stack([after(10), after(50), after(STEPS)])


def closed_form(d: Any) -> np.ndarray:
    """The same in closed form, on the host: w_t = w* + (1 - LR H)^t (w_0 - w*)."""
    x, y, w = (np.asarray(d[name], np.float64) for name in ("x", "y", "w"))
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    away = vectors.T @ (w - best)
    shrunk = [(1 - LR * values[:, None]) ** t * away for t in (10, 50, STEPS)]
    return np.stack([best + vectors @ one for one in shrunk])


QUANTITIES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any] | None]] = {
    "objectives": (objectives, None),
    "curvature": (curvature, None),
    "optimisers": (optimisers, None),
    "closed forms": (descended, closed_form),
}
"""{name: (what the device computes, what it should be; None: the same in float64 on the host)}."""


def errors(seeds: int) -> list[dict[str, Any]]:
    """[{"quantity", "seed", "error", "control"}], the errors relative and in units of float32's."""
    found = []
    for name, (function, exact) in QUANTITIES.items():
        with jax.default_matmul_precision("highest"):
            on_device = jax.jit(function)
            for seed in range(seeds):
                given = drawn(seed)
                true = on_host(function, given) if exact is None else exact(given)
                rough = jax.tree.map(lambda a: lax.reduce_precision(a, 8, 10), given)
                error, control = (
                    relative(np.asarray(on_device(d), np.float64), true) for d in (given, rough)
                )
                row = {"quantity": name, "seed": seed, "error": error, "control": control}
                found.append(row)
    return found


def on_host(function: Callable[[Any], Any], given: Any) -> np.ndarray:
    """`function` in float64 on the host's processor."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), given)
        return np.asarray(jax.jit(function)(wide))


def relative(found: np.ndarray, true: np.ndarray) -> float:
    """The largest error of any row, relative to the row's largest number, in float32's epsilon."""
    rows = [(f, t) for f, t in zip(found, true, strict=True)]
    off = max(float(np.abs(f - t).max() / np.abs(t).max()) for f, t in rows)
    return off / float(np.finfo(np.float32).eps)
