"""What a run's bits depend on is part of a store; what they do not depend on is not."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab.dynamics import descent
from lab.measures.curvature import sharpness
from lab.models import conv_net, mlp, transformer
from lab.objectives import mse
from lab.sweep import identity, layout, sweep
from lab.types import BadInput, Dynamics

IMAGES = jax.random.normal(jax.random.key(0), (6, 16))
TOKENS = jax.random.randint(jax.random.key(1), (6, 5), 0, 3)
TARGETS = jax.random.normal(jax.random.key(2), (6, 3))
MODELS = {
    "mlp": (mlp((16, 8, 3)), IMAGES),
    "conv_net": (conv_net((4, 4), channels=(2,), outputs=3), IMAGES),
    "transformer": (transformer(3, 5, width=4, heads=2), TOKENS),
}


def trained(model, optimizer, lanczos):
    """Descent of a small network, with its sharpness or without."""
    made, x = MODELS[model]

    def process(lr, seed):
        def loss(params):
            y = made.apply(params, x)
            return mse(y if y.ndim == 2 else y[:, -1], TARGETS)

        def inspect(state, t):
            return {"sharpness": sharpness(loss, state.params, key=jax.random.key(0), k=3)}

        return descent(
            loss,
            optimizer(lr),
            init=lambda: made.init(jax.random.key(seed)),
            observe=lambda state, t: {"loss": loss(state.params)},
            inspect=inspect if lanczos else None,
        )

    return process


@pytest.mark.parametrize(
    ("model", "optimizer", "lanczos"),
    [
        ("mlp", optax.adam, True),
        ("conv_net", optax.adam, False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in itertools.product(MODELS, (optax.sgd, optax.adam), (False, True))
        ),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_one_device_two_and_eight_give_the_same_bits(
    model, optimizer, lanczos, tmp_path, monkeypatch
):
    monkeypatch.setattr(layout, "cores", lambda: 8)
    process, axes = trained(model, optimizer, lanczos), {"lr": [0.01, 0.1], "seed": range(8)}
    settings = {"steps": 12, "every": 3, "inspect_every": 6 if lanczos else None}
    seen = []
    for devices, blocks in ((1, 1), (2, 1), (8, 1), (2, 3)):
        given = {"width": 2, "devices": devices, "blocks": blocks, "segment": 12 // blocks}
        data = sweep(process, axes, **settings, layout=given)
        assert f'"devices": {devices}' in data.layout
        seen.append([data[name].values for name in ("loss", *(["sharpness"] if lanczos else []))])
    assert np.isfinite(seen[0][0]).all() and np.ptp(seen[0][0]) > 0
    for one, other in itertools.pairwise(seen):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def counting(lr):
    """The least process there is."""
    return Dynamics(lambda: lr, lambda x, t: x + 1, lambda x, t: {"x": x})


SMALL = {"axes": {"lr": [0.5]}, "steps": 2, "every": 1}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_disable_most_optimizations", True),
        ("jax_optimization_level", "O1"),
        ("jax_random_seed_offset", 1),
        ("jax_enable_x64", True),
    ],
)
def test_a_setting_that_changes_bits_is_part_of_a_store(setting, value, tmp_path):
    sweep(counting, **SMALL, store=tmp_path)
    before = jax.config.values[setting]
    # float32 means float32 where nothing else was asked for
    meant = "highest" if setting == "jax_default_matmul_precision" else before
    jax.config.update(setting, value)
    try:
        name = setting.removeprefix("jax_")
        with pytest.raises(BadInput, match=f"{name} was '{meant}' and is now '{value}'"):
            sweep(counting, **SMALL, store=tmp_path)
    finally:
        jax.config.update(setting, before)
    sweep(counting, **SMALL, store=tmp_path)


def test_a_setting_that_changes_no_bit_is_no_part_of_a_store(tmp_path, monkeypatch):
    sweep(counting, **SMALL, store=tmp_path)
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_dump_to=/tmp/none")
    with jax.log_compiles(False), jax.transfer_guard("allow"):
        sweep(counting, **SMALL, store=tmp_path)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("XLA_FLAGS", "--xla_backend_optimization_level=0"), ("OPENBLAS_CORETYPE", "Atom")],
)
def test_an_environment_that_changes_bits_is_part_of_a_store(
    variable, value, tmp_path, monkeypatch
):
    sweep(counting, **SMALL, store=tmp_path)
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadInput, match=f"{variable} was .* and is now '{value}'"):
        sweep(counting, **SMALL, store=tmp_path)


def test_threads_that_share_a_computation_are_part_of_a_store(tmp_path, monkeypatch):
    """Where JAX had started before the engine, XLA cuts products by the number of cores."""
    sweep(counting, **SMALL, store=tmp_path)
    monkeypatch.setattr(identity, "LATE", True)
    monkeypatch.setattr(identity, "cores", lambda: 3)
    with pytest.raises(BadInput, match="threads was 1 and is now 3"):
        sweep(counting, **SMALL, store=tmp_path)


LATE = """
import warnings, jax, jax.numpy as jnp
jnp.zeros(()).block_until_ready()
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import lab.sweep
print(lab.sweep.identity.LATE, "before any JAX computation" in str(seen[0].message))
"""


def test_an_engine_imported_after_jax_has_started_says_so():
    clean = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, env=clean, check=True
    )
    assert done.stdout.split() == ["True", "True"]


def shown(state):
    jax.debug.print("{}", state)
    return state


def called(state):
    like = jax.ShapeDtypeStruct(state.shape, state.dtype)
    return jax.pure_callback(lambda x: np.asarray(x), like, state, vmap_method="sequential")


@pytest.mark.parametrize("function", ["init", "step", "observe", "inspect"])
@pytest.mark.parametrize(
    "hidden", [shown, called, lambda s: jax.lax.cond(s > 0, jax.jit(called), called, s)]
)
def test_a_process_that_calls_back_to_python_is_not_stored(function, hidden, tmp_path):
    def process(lr):
        changed = {
            "init": lambda: hidden(lr),
            "step": lambda x, t: hidden(x),
            "observe": lambda x, t: {"x": hidden(x)},
            "inspect": lambda x, t: {"y": hidden(x)},
        }
        made = counting(lr)._replace(inspect=lambda x, t: {"y": x})
        return made._replace(**{function: changed[function]})

    with pytest.raises(BadInput, match=f"^store: {function} calls back to Python[^\n]*$"):
        sweep(process, **SMALL, inspect_every=1, store=tmp_path)
    assert not [*tmp_path.rglob("*.npz")]


def test_without_a_store_a_process_may_call_back():
    made = counting(jnp.ones(()))
    assert made.step(jnp.ones(()), 0) == 2
    data = sweep(lambda lr: counting(lr)._replace(step=lambda x, t: called(x) + 1), **SMALL)
    assert data.x.values.tolist() == [[0.5, 1.5, 2.5]]
