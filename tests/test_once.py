"""A computation that this process has compiled is not compiled again, and few are kept."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lab.sweep
from lab.sweep import measured, program, sweep
from lab.types import BadInput, Dynamics
from tests.processes import minibatch

GIVEN = {"steps": 20, "every": 5, "inspect_every": 10}


@pytest.fixture
def compiled():
    """How often XLA compiled, counted as it happens."""
    found = []

    def listen(name, seconds, **_):
        if "backend_compile" in name:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("backend", ["blocks", "wide"])
def test_a_second_call_of_the_same_computation_compiles_nothing(backend, compiled):
    layout = {"backend": backend, "width": 2}

    def called(lr, **other):
        compiled.clear()
        axes = {"lr": [lr, 0.3], "seed": range(2)}
        return sweep(minibatch, axes, **GIVEN | other, layout=layout), len(compiled)

    _, cold = called(0.1)
    asked, warm = called(0.2)  # other values, the same computation
    assert cold > 0 and warm == 0
    program._PROGRAMS.clear()
    again, anew = called(0.2)
    assert anew == cold and again.equals(asked)
    assert called(0.1, every=10)[1] > 0  # records of another shape


def test_names_are_part_of_a_computation(compiled):
    def renamed(lr, name):
        made = minibatch(lr, 0)
        return made._replace(observe=lambda s, t: {name: s[0]["out"].sum()}, inspect=None)

    for name in ("one", "other"):
        data = sweep(renamed, {"lr": [0.1]}, steps=10, every=5, static={"name": [name]})
        assert name in data


class Lowered:
    """Stands for a program that says how often it is compiled."""

    def __init__(self, made, key):
        self.made, self.key = made, key

    def compile(self, _):
        self.made.append(self.key)
        return self.key


def test_few_programs_are_kept(monkeypatch):
    monkeypatch.setattr(program, "MOST_PROGRAMS", 2)
    made = []
    with ThreadPoolExecutor(1) as pool:
        for key in ("a", "b", "a", "c", "a", "b"):
            got = program.soon(pool, ("kept", key), lambda key=key: Lowered(made, key))
            assert got.result() == key
    assert made == ["a", "b", "c", "b"]
    assert len(program._PROGRAMS) == 2


def halved(used):
    """Two hyperparameters, of which one is used."""

    def process(lr, mu):
        rate = {"lr": lr, "mu": mu}[used]
        return Dynamics(lambda: jnp.ones(()), lambda x, t: x - rate * x, lambda x, t: {"x": x})

    return process


AXES = {"lr": [0.1], "mu": [0.5]}


@pytest.mark.parametrize("backend", ["blocks", "wide"])
def test_which_argument_is_used_is_part_of_a_computation(backend):
    for used, last in (("lr", 0.9), ("mu", 0.5)):
        data = sweep(halved(used), AXES, steps=1, every=1, layout={"backend": backend})
        np.testing.assert_allclose(data.x.values.ravel(), [1, last], rtol=1e-6)


def test_a_store_of_another_argument_or_leaf_or_name_is_refused(tmp_path):
    sweep(halved("lr"), AXES, steps=1, every=1, store=tmp_path)
    with pytest.raises(BadInput, match="step computes something else"):
        sweep(halved("mu"), AXES, steps=1, every=1, store=tmp_path)
    one = measured(tmp_path, lambda x, lr, mu: {"y": 2 * lr})
    other = measured(tmp_path, lambda x, lr, mu: {"y": 2 * mu})
    np.testing.assert_allclose([one.y.item(), other.y.item()], [0.2, 1.0], rtol=1e-6)

    def renamed(lr, mu):
        return halved("lr")(lr, mu)._replace(observe=lambda x, t: {"z": x})

    with pytest.raises(BadInput, match="observe gave 'finite, x' and now 'finite, z'"):
        sweep(renamed, AXES, steps=2, every=1, store=tmp_path)
    assert lab.sweep.open(tmp_path).x.shape == (1, 1, 2)


def test_what_calls_back_is_compiled_anew():
    def called(factor):
        def back(x):
            twice = lambda v: np.float32(factor * v)  # noqa: E731
            return jax.pure_callback(twice, x, x, vmap_method="sequential")

        def process(lr):
            return Dynamics(lambda: jnp.ones(()), lambda x, t: back(x), lambda x, t: {"x": x})

        return sweep(process, {"lr": [0.1]}, steps=2, every=2).x.values.ravel().tolist()

    assert [called(2), called(3)] == [[1, 4], [1, 9]]
