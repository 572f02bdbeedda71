"""Decompositions in a block neither hang nor differ from those of one run."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun

from lab.sweep.linalg import one_by_one

USES = {
    "eigenvalues": lambda a: jnp.linalg.eigvalsh(a + a.T),
    "of a stack": lambda a: jnp.linalg.eigvalsh(jnp.stack([a + a.T, a @ a.T, a.T @ a])),
    "qr": lambda a: jnp.linalg.qr(a)[1],
    "svd": lambda a: jnp.linalg.svd(a, compute_uv=False),
    "solve": lambda a: jnp.linalg.solve(a, jnp.ones(len(a))),
    "inverse": jnp.linalg.inv,
    "cholesky, differentiated": jax.grad(
        lambda a: jnp.linalg.cholesky(a @ a.T + jnp.eye(len(a))).sum()
    ),
    "in a loop": lambda a: lax.fori_loop(0, 3, lambda i, b: jnp.linalg.qr(b @ a)[0], a),
    "in a branch": lambda a: lax.cond(a[0, 0] > 0, lambda: jnp.linalg.inv(a), lambda: a),
    "in a call": jax.jit(lambda a: jax.checkpoint(jnp.linalg.inv)(a) * 2),
    "none": lambda a: a @ a,
}


@pytest.mark.parametrize("name", USES)
def test_one_by_one_computes_the_same_and_batches_nothing(name):
    stack = jnp.asarray(np.random.default_rng(0).standard_normal((5, 4, 4)), jnp.float32)
    closed = jax.make_jaxpr(USES[name])(stack[0])
    alone = jaxpr_as_fun(one_by_one(closed))
    (result,) = jax.vmap(alone)(stack)
    np.testing.assert_allclose(result, jax.vmap(USES[name])(stack), rtol=2e-3, atol=2e-4)
    (single,) = alone(stack[0])
    np.testing.assert_allclose(single, result[0], rtol=2e-3, atol=2e-4)
    text = str(jax.make_jaxpr(jax.vmap(alone))(stack))
    for decomposition in ("eigh", "householder_product", "svd", "lu", "cholesky"):
        batched = [line for line in text.splitlines() if f"= {decomposition}[" in line]
        assert not any("5,4,4" in line.split("=")[0] or "5,3,4,4" in line for line in batched)


CHILD = """
import jax, jax.numpy as jnp
from lab.sweep import sweep
from lab.types import Dynamics

def process(seed):
    a = jax.random.normal(jax.random.key(seed), (64, 64))
    def step(s, t):
        m = jnp.tanh(jnp.tanh(s @ a * 0.1) @ a)
        top = jnp.linalg.eigvalsh((m @ m.T)[:16, :16])[-1]
        return s * 0.99 + 0.01 * jnp.tanh(m) + 1e-3 * jnp.tanh(top)
    return Dynamics(lambda: a, step, lambda s, t: {"x": s.sum()})

data = sweep(process, {"seed": range(64)}, steps=200, every=100, layout={"width": 16})
assert jax.device_count() == 2 and data.x.notnull().all()
"""


@pytest.mark.xdist_group("processes")
def test_blocks_that_decompose_on_two_devices_come_to_an_end():
    """XLA's kernels for batches wait for each other in a pool of two threads: seen to hang."""
    flags = "--xla_force_host_platform_device_count=2"
    subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**__import__("os").environ, "XLA_FLAGS": flags},
        timeout=120,
        check=True,
    )
