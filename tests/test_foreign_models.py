"""The engine knows only Dynamics: models of any library run in it and learn the same task."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from lab.sweep import sweep
from lab.types import Dynamics
from tests.processes import X, Y

SIZE = X.shape[1]


def descending(loss, lr, start):
    """Gradient descent on any pytree of arrays."""

    def step(params, t):
        return jax.tree.map(lambda p, g: p - lr * g, params, jax.grad(loss)(params))

    return Dynamics(lambda: start, step, lambda params, t: {"loss": loss(params)})


def linen_process(lr, seed):
    model = linen.Sequential([linen.Dense(5), jnp.tanh, linen.Dense(1)])
    params = model.init(jax.random.key(seed), X)
    return descending(lambda p: jnp.mean((model.apply(p, X) - Y) ** 2), lr, params)


def nnx_process(lr, seed):
    rngs = nnx.Rngs(jax.random.key(seed))
    network = nnx.Sequential(nnx.Linear(SIZE, 5, rngs=rngs), jnp.tanh, nnx.Linear(5, 1, rngs=rngs))
    graph, params = nnx.split(network)
    return descending(lambda p: jnp.mean((nnx.merge(graph, p)(X) - Y) ** 2), lr, params)


def equinox_process(lr, seed):
    network = eqx.nn.MLP(SIZE, 1, 5, 1, activation=jnp.tanh, key=jax.random.key(seed))
    params, rest = eqx.partition(network, eqx.is_array)
    return descending(lambda p: jnp.mean((jax.vmap(eqx.combine(p, rest))(X) - Y) ** 2), lr, params)


def dict_process(lr, seed):
    one, two = jax.random.split(jax.random.key(seed))
    params = {"in": jax.random.normal(one, (SIZE, 5)), "out": jax.random.normal(two, (5, 1))}
    return descending(lambda p: jnp.mean((jnp.tanh(X @ p["in"]) @ p["out"] - Y) ** 2), lr, params)


@pytest.mark.parametrize("process", [linen_process, nnx_process, equinox_process, dict_process])
def test_a_model_of_any_library_runs_and_agrees_with_its_own_loop(process):
    data = sweep(process, {"lr": [0.01, 0.1], "seed": range(3)}, steps=30, every=10)
    assert (data.loss[..., -1] < data.loss[..., 0]).all()
    alone = process(0.1, 2)
    state, losses = alone.init(), []
    step = jax.jit(alone.step)
    for t in range(31):
        losses.append(float(alone.observe(state, t)["loss"]))
        state = step(state, t)
    np.testing.assert_allclose(data.loss.sel(lr=0.1, seed=2), losses[::10], rtol=1e-4)
