"""Decompositions and products in a block are rewritten to the same values."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun

from lab.sweep import linalg
from lab.sweep.layout import OPTIONS, options
from lab.sweep.linalg import one_by_one, upright

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


X = np.random.default_rng(1).standard_normal((96, 80)).astype(np.float32)
D = np.random.default_rng(2).standard_normal((96, 64)).astype(np.float32)
DEEP = X.reshape(6, 16, 80)

GRADIENTS = {  # of two varying operands, as a layer's weights have them
    "d by x": lambda d, x: jnp.einsum("ki,kj->ij", d, x),
    "x by d": lambda d, x: jnp.einsum("ki,kj->ji", d, x),
    "by a layer's weights": lambda d, x: jax.grad(lambda w: jnp.sum(d * (x @ w)))(
        jnp.ones((80, 64))
    ),
    "over two axes": lambda d, x: jnp.einsum("abi,abj->ij", d.reshape(6, 16, -1), DEEP + x[0, 0]),
    "of a batch": lambda d, x: jnp.einsum("bki,bkj->bij", jnp.stack([d, -d]), jnp.stack([x, x])),
    "the other operand upright": lambda d, x: jnp.einsum("ki,jk->ij", d, x.T),
    "in a loop": lambda d, x: lax.fori_loop(
        0, 3, lambda i, s: s + jnp.einsum("ki,kj->ij", d * i, x), jnp.zeros((64, 80))
    ),
    "in a call": jax.jit(lambda d, x: jnp.einsum("ki,kj->ij", jnp.tanh(d), x)),
    "differentiated": jax.grad(lambda d, x: jnp.sum(jnp.tanh(jnp.einsum("ki,kj->ij", d, x)) ** 2)),
}


def equations(jaxpr, name):
    """All of that primitive, whatever they are wrapped in."""
    inner = (one for eqn in jaxpr.eqns for one in linalg._within(eqn.params.values()))
    own = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == name]
    return own + [eqn for one in inner for eqn in equations(one, name)]


@pytest.mark.parametrize("fixed", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("name", GRADIENTS)
def test_upright_products_contract_last_axes_and_compute_the_same(name, fixed):
    closed = jax.make_jaxpr(GRADIENTS[name])(D, X)
    again = upright(closed, fixed)
    (expected,) = jaxpr_as_fun(closed)(D, X)
    (result,) = jax.jit(jaxpr_as_fun(again))(D, X)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    stack = jnp.stack([D, 2 * D])
    batched = jax.vmap(lambda d: jaxpr_as_fun(again)(d, X)[0])(stack)
    np.testing.assert_allclose(
        batched, jax.vmap(lambda d: GRADIENTS[name](d, X))(stack), rtol=1e-4, atol=1e-4
    )
    products = equations(again.jaxpr, "dot_general")
    assert products
    for eqn in products:
        (axes, _), _ = eqn.params["dimension_numbers"]
        assert max(axes) == eqn.invars[0].aval.ndim - 1


def test_what_is_the_same_at_each_step_is_what_gets_transposed():
    closed = jax.make_jaxpr(lambda d, x: jnp.einsum("ki,kj->ij", d, 2 * x))(D, X)

    def turned(fixed):
        return equations(upright(closed, fixed).jaxpr, "transpose")[0].invars[0].aval.shape

    assert turned(()) == D.shape and turned((1,)) == X.shape


def test_what_is_computed_anew_to_save_memory_stays_so():
    loss = jax.checkpoint(lambda d: jnp.sum(jnp.tanh(jnp.einsum("ki,kj->ij", d, X)) ** 2))
    again = upright(jax.make_jaxpr(jax.grad(loss))(D))
    assert linalg.primitives(again.jaxpr) & linalg.REMAT


def test_small_products_are_left_alone():
    closed = jax.make_jaxpr(lambda d, x: jnp.einsum("ki,kj->ij", d, x))(D[:10], X[:10])
    assert str(upright(closed)) == str(closed)


def test_options_of_the_compiler_are_the_engines_where_the_caller_has_none(monkeypatch):
    assert options("cpu") == OPTIONS["cpu"] and options("tpu") is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert options("cpu") is None


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
