"""A computation that this process has compiled is not compiled again, and few are kept."""

from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from lab.sweep import program, sweep
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
