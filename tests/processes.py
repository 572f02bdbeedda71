"""Small learning processes that the engine's tests run, in this process or in children."""

import hashlib
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import xarray as xr

from lab.sweep import sweep
from lab.types import Dynamics

EXAMPLES, FEATURES, BATCH = 32, 6, 8
X = jax.random.normal(jax.random.key(1), (EXAMPLES, FEATURES))
Y = jnp.sin(X @ jax.random.normal(jax.random.key(2), (FEATURES, 1)))


def apply(params, x):
    """A network of one hidden layer, as plain arrays."""
    return jnp.tanh(x @ params["in"]) @ params["out"]


def loss(params, x=X, y=Y):
    """Half the mean squared error."""
    return 0.5 * jnp.mean((apply(params, x) - y) ** 2)


def minibatch(lr, seed, hidden=5, optimizer=optax.sgd, noise=0.0):
    """Minibatch descent, its batch drawn from `fold_in(batch_key, t)`, any optax optimiser."""
    init_key, batch_key = jax.random.split(jax.random.key(seed))

    def init():
        one, two = jax.random.split(init_key)
        shapes = {"in": (one, (FEATURES, hidden)), "out": (two, (hidden, 1))}
        params = {name: jax.random.normal(key, shape) for name, (key, shape) in shapes.items()}
        return params, optimizer(lr).init(params), batch_key

    def step(state, t):
        params, opt_state, key = state
        batch = jax.random.choice(jax.random.fold_in(key, t), EXAMPLES, (BATCH,))
        gradient = jax.grad(loss)(params, X[batch], Y[batch])
        updates, opt_state = optimizer(lr).update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, key

    def observe(state, t):
        return {
            "loss": loss(state[0]),
            "hidden_norms": jnp.linalg.norm(state[0]["out"], axis=1)[:3],
        }

    def inspect(state, t):
        return {"gram": state[0]["out"].T @ state[0]["out"], "time": jnp.float32(t)}

    return Dynamics(init, step, observe, inspect)


def drifting(lr, seed):
    """Noise that adds up, so that every run and every record differs: traced in a moment."""
    key = jax.random.key(seed)

    def step(x, t):
        return x + lr * jax.random.normal(jax.random.fold_in(key, t), (3,))

    return Dynamics(
        init=lambda: jnp.zeros(3),
        step=step,
        observe=lambda x, t: {"x": x, "norm": jnp.sum(x**2)},
    )


def clocked(lr, seed):
    """As `drifting`, inspected too."""
    return drifting(lr, seed)._replace(inspect=lambda x, t: {"time": jnp.float32(t)})


def digest(data: xr.Dataset) -> str:
    """A hash of all records, bit for bit."""
    content = b"".join(data[name].values.tobytes() for name in sorted(data.variables))
    return hashlib.sha256(content).hexdigest()


def files(store: Path) -> dict[str, bytes]:
    """All that a store holds but its lock: {path: content}."""
    kept = (f for f in sorted(store.rglob("*")) if f.is_file() and f.name != "lock")
    return {str(f.relative_to(store)): f.read_bytes() for f in kept}


AXES = {"lr": [0.05, 0.1, 1e9], "seed": range(3)}
CADENCE = {"steps": 400, "every": 5, "inspect_every": 10}
LAYOUT = {"width": 2, "blocks": 1, "segment": 20}

if __name__ == "__main__":  # a child: store path (or -), steps
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    path = None if sys.argv[1] == "-" else sys.argv[1]
    settings = CADENCE | {"steps": int(sys.argv[2])}
    layout = LAYOUT | {"devices": jax.device_count()} if path is None else LAYOUT
    print(jax.device_count(), digest(sweep(minibatch, AXES, **settings, layout=layout, store=path)))
