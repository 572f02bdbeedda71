"""Half precision: stored, resumed, read back and averaged exactly; its curvature in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lab.sweep
from lab.dynamics import averaged, bootstrap
from lab.measures.curvature import hessian, hvp, sharpness, top_eigenvalues
from lab.sweep import states, sweep
from lab.types import Dynamics
from tests.processes import digest

AXES = {"lr": [0.1, 0.5], "seed": range(3)}
LAYOUTS = [{"width": 2, "blocks": 1, "segment": 3}]
LAYOUTS += [{"backend": "wide", "width": 3, "segment": 3}]
NARROW = ["bfloat16", "float16", "int8", "bool"]


def of(dtype):
    """Numbers of this type that move, all of them, in state and records."""

    def process(lr, seed):
        def step(state, t):
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), t), (3,))
            moved = state["w"] ^ (noise > 0) if dtype == "bool" else state["w"] + lr * 4 * noise
            return {"w": moved.astype(dtype), "t": (state["t"] + 1).astype(dtype)}

        start = {"w": jnp.zeros(3, dtype), "t": jnp.zeros((), dtype)}
        return Dynamics(lambda: start, step, lambda s, t: s)

    return process


@pytest.mark.parametrize(
    ("dtype", "layout"), [*((d, LAYOUTS[0]) for d in NARROW), ("bfloat16", LAYOUTS[1])], ids=str
)
def test_narrow_numbers_are_stored_resumed_and_read_back_exactly(dtype, layout, tmp_path):
    given = {"every": 1, "layout": layout}
    sweep(of(dtype), {**AXES, "seed": range(2)}, steps=4, store=tmp_path, **given)
    data = sweep(of(dtype), AXES, steps=8, store=tmp_path, **given)
    alone = sweep(of(dtype), AXES, steps=8, **given)
    assert digest(data) == digest(alone) == digest(lab.sweep.open(tmp_path))
    held = states(tmp_path)
    assert held["w"].dtype == held["t"].dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(held["w"].astype(data.w.dtype), data.w.isel(step=-1))


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_records_are_averaged_over_seeds_as_the_numbers_they_are(dtype):
    data = sweep(of(dtype), AXES, steps=4, every=1, layout=LAYOUTS[0])
    exactly = data.w.values.astype(np.float64)
    assert {*np.unique(exactly)} != {0.0}
    found = data.mean("seed")
    np.testing.assert_allclose(found.w, exactly.mean(1), rtol=2e-3, atol=1e-3)
    assert (jnp.asarray(data.w.values).astype(dtype) == data.w.values).all()


def quartic(w):
    return jnp.sum(w["a"] ** 4) / 12 + 1.5 * jnp.sum(w["b"] ** 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_curvature_of_half_precision_params_is_taken_in_float32(dtype):
    # a^2 of three digits is beyond bfloat16's two and a half
    params = {"a": jnp.array([1.0078125, 2.03125], dtype), "b": jnp.ones(1, dtype)}
    ones = jax.tree.map(jnp.ones_like, params)
    product = hvp(quartic, params, ones)
    squares = np.square(np.array([1.0078125, 2.03125]))
    assert product["a"].dtype == jnp.float32
    np.testing.assert_allclose(product["a"], squares, rtol=1e-6)
    np.testing.assert_allclose(hessian(quartic, params).matvec(ones)["a"], squares, rtol=1e-6)
    key = jax.random.key(0)
    np.testing.assert_allclose(sharpness(quartic, params, key=key), squares[1], rtol=1e-5)
    found = top_eigenvalues(hessian(quartic, params), 3, key=key, k=3).values
    np.testing.assert_allclose(found, [squares[1], 3.0, squares[0]], rtol=1e-5)


def test_the_curvature_of_other_params_keeps_their_precision():
    with jax.enable_x64(True):
        params = {"a": jnp.array([1.0 + 1e-9, 2.0]), "b": jnp.ones(1)}
        product = hvp(quartic, params, params)["a"]
        assert product.dtype == jnp.float64
        np.testing.assert_allclose(product[0], (1 + 1e-9) ** 3, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("decay", [0.999, None])
def test_averages_of_half_precision_are_taken_in_float32(dtype, decay):
    def process(seed):
        made = Dynamics(
            lambda: jnp.ones((), dtype),
            lambda x, t: jnp.asarray(3.3, dtype),
            lambda x, t: {"x": x},
        )
        seen = lambda both, t: {"mean": both.average}  # noqa: E731
        return averaged(made, lambda x: x, decay=decay, observe=seen)

    last = sweep(process, {"seed": [0]}, steps=20_000, every=20_000)["mean"][0, -1]
    np.testing.assert_allclose(last, float(jnp.asarray(3.3, dtype)), rtol=1e-3)


def test_a_target_of_half_precision_follows_in_float32():
    def process(average):
        return bootstrap(
            lambda w, target: 0.5 * (w - 3.3) ** 2,
            optax.sgd(1.0),
            init=lambda: jnp.zeros((), jnp.bfloat16),
            average=average,
            observe=lambda state, t: {"target": state.target},
        )

    data = sweep(process, {"average": [0.99]}, steps=2000, every=2000)
    np.testing.assert_allclose(data.target[0, -1], float(jnp.bfloat16(3.3)), rtol=1e-3)
