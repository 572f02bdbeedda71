"""Contenders do the engine's arithmetic, so their times may be compared."""

import numpy as np
import pytest
import xarray as xr

from experiments.engine import throughput
from experiments.engine.peers import jax_forms, memory
from experiments.engine.peers.problems import problems
from experiments.engine.peers.race import Contender

FORMS = ("with_vmap", "with_scan", "with_loop")


@pytest.mark.parametrize("letter", ["b", "f"])
def test_forms_in_jax_compute_what_the_engine_computes(letter):
    problem = problems()[letter]
    _, expected, note = jax_forms.with_sweep(problem)(50, 2)
    assert "width" in note and set(expected) == {*jax_forms.kept(problem)}
    for name in FORMS:
        _, records, _ = getattr(jax_forms, name)(problem)(50, 2)
        for kind, values in records.items():
            np.testing.assert_allclose(values, expected[kind], rtol=1e-4)
    assert abs(expected["loss"][0, 1] / expected["loss"][1, 1] - 1) > 1e-3  # seeds do differ


@pytest.mark.slow
@pytest.mark.parametrize("letter", list("abcdef"))
def test_forms_in_pytorch_compute_what_the_engine_computes(letter):
    pytest.importorskip("torch")
    from experiments.engine.peers import torch_forms

    problem = problems()[letter]
    _, expected, _ = jax_forms.with_sweep(problem)(50, 2)
    forms = [torch_forms.with_eager] + [torch_forms.with_func] * (not problem.sharpness)
    for form in forms:
        _, records, _ = form(problem)(50, 2)
        np.testing.assert_allclose(records["loss"], expected["loss"], rtol=1e-4)
        if problem.sharpness:
            np.testing.assert_allclose(records["sharpness"], expected["sharpness"], rtol=1e-2)


def test_what_follows_sharpness_stays_within_a_percent():
    from lab.sweep import sweep

    problem = problems()["f"]
    settings = {"steps": 150, "every": 50, "inspect_every": 50, "shared": problem.examples}
    data = sweep(problem.training, {"seed": range(2)}, **settings)
    assert (data.residual / data.sharpness).max() < 0.05
    assert (data.residual / data.sharpness).mean() < 0.01


def test_the_best_width_is_told_by_the_other_turns():
    """A width that was fastest once, by chance, does not become the best in that turn."""
    seconds = {
        "sweep": [1.2, 1.2, 1.2],
        "again": [1.2, 1.2, 1.2],
        "width 1": [1.0, 1.0, 1.0],
        "width 64": [0.1, 3.0, 3.0],
    }
    race = xr.Dataset(
        {"seconds": (("form", "turn"), list(seconds.values())), "chosen": 4},
        {"form": [*seconds]},
    )
    assert throughput.by_width(race).width.values.tolist() == [1, 4, 64]
    chosen, worst = throughput.to_best(race)
    np.testing.assert_allclose(chosen, [1.2, 1.2, 1.2])
    np.testing.assert_allclose(worst, [0.1, 3.0, 3.0])


@pytest.mark.xdist_group("processes")
def test_the_peak_is_a_speed_of_products():
    with Contender("peak", "a") as child:
        turn = child.turn(2, 1)
    assert turn.seconds > 0 and turn.note in ("XLA", "NumPy")


@pytest.mark.xdist_group("processes")
def test_a_childs_peak_of_memory_is_not_its_parents():
    held = np.ones(75_000_000)  # 600 MB, more than the child needs
    assert held.sum() and memory.cost("vmap", 4, 10).peak_bytes < memory.peak_bytes()


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("form", ["sweep", "vmap"])
def test_a_sweep_in_its_own_process_says_what_it_took(form):
    cost = memory.cost(form, 4, 10)
    assert cost.seconds > 0 and 5e7 < cost.peak_bytes < 4e9
