"""The engine's contract: what a sweep records, and what cannot change a bit of it."""

import json
import os
import pty
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab.models import mlp
from lab.objectives import mse
from lab.sweep import progress, run, sweep
from lab.sweep.layout import Layout, available
from lab.types import Dynamics
from tests.processes import AXES, BATCH, CADENCE, X, Y, digest, minibatch

SMALL = {"steps": 40, "every": 5, "inspect_every": 10}


def perceptron(lr, seed):
    """Minibatch descent on a model and an objective of the lab."""
    model = mlp((X.shape[1], 5, 1))
    init_key, batch_key = jax.random.split(jax.random.key(seed))

    def loss(params, x, y):
        return mse(model.apply(params, x), y)

    def step(params, t):
        batch = jax.random.choice(jax.random.fold_in(batch_key, t), len(X), (BATCH,))
        gradient = jax.grad(loss)(params, X[batch], Y[batch])
        return jax.tree.map(lambda p, g: p - lr * g, params, gradient)

    def observe(params, t):
        return {"loss": loss(params, X, Y), "hidden_norms": params["layer_2"]["kernel"][:, 0]}

    def inspect(params, t):
        kernel = params["layer_1"]["kernel"]
        return {"gram": kernel.T @ kernel, "time": jnp.float32(t)}

    return Dynamics(lambda: model.init(init_key), step, observe, inspect)


def by_hand(process, steps, every, inspect_every):
    """A plain Python loop over jitted steps."""
    state, (step, observe, inspect) = process.init(), map(jax.jit, process[1:])
    cheap, costly = [], []
    for t in range(steps + 1):
        if t % every == 0:
            cheap.append(observe(state, t))
        if t % inspect_every == 0:
            costly.append(inspect(state, t))
        state = step(state, t)
    return cheap, costly


@pytest.mark.parametrize("process", [minibatch, perceptron])
def test_a_sweep_equals_a_python_loop_of_jitted_steps(process):
    data = sweep(process, {"lr": [0.05, 0.3], "seed": range(3)}, **SMALL)
    assert data.step.values.tolist() == list(range(0, 41, 5))
    assert data.step_rare.values.tolist() == [0, 10, 20, 30, 40]
    for lr in (0.05, 0.3):
        for seed in range(3):
            cheap, costly = by_hand(process(lr, seed), **SMALL)
            run = data.sel(lr=lr, seed=seed)
            for name in ("loss", "hidden_norms"):
                np.testing.assert_allclose(
                    run[name], [r[name] for r in cheap], rtol=1e-5, atol=1e-6
                )
            for name in ("gram", "time"):
                np.testing.assert_allclose(
                    run[name], [r[name] for r in costly], rtol=1e-5, atol=1e-6
                )


@pytest.mark.parametrize("runs", [1, 7])
def test_the_step_is_traced_once_for_a_whole_grid(runs):
    calls = []

    def counted(lr, seed):
        made = minibatch(lr, seed)
        return made._replace(step=lambda s, t: calls.append(t) or made.step(s, t))

    sweep(counted, {"lr": [0.1], "seed": range(runs)}, **SMALL)
    assert len(calls) == 1


def same_where_both_recorded(one, other):
    for name in ("loss", "gram"):
        dim = one[name].dims[2]
        both = sorted(set(one[dim].values) & set(other[dim].values))
        chex.assert_trees_all_equal(
            one[name].sel({dim: both}).values, other[name].sel({dim: both}).values
        )


@pytest.mark.parametrize(
    "other",
    [
        {"every": 1},
        {"every": 20, "inspect_every": 40},
        {"inspect_every": 5},
        {"layout": {"width": 2, "segment": 10}},
        {"layout": {"width": 2, "segment": 30}},
        {"layout": {"width": 2, "blocks": 1}},
        {"layout": {"width": 2, "blocks": 3}},
        {"layout": {"width": 2, "devices": 1}},
        {"steps": 80},
    ],
    ids=str,
)
def test_cadence_segment_blocks_devices_and_length_change_no_bit(other):
    settings = {"layout": {"width": 2}, **SMALL}
    axes = {"lr": [0.1, 0.3], "seed": range(3)}
    same_where_both_recorded(
        sweep(minibatch, axes, **settings), sweep(minibatch, axes, **settings | other)
    )


def test_slots_and_nan_neighbours_change_no_bit():
    layout = {"width": 4, "devices": 1, "blocks": 1}
    seeds = {"seed": range(4)}
    alone = sweep(minibatch, {"lr": [0.1], **seeds}, **SMALL, layout=layout).sel(lr=0.1)
    beside = {"lr": [1e9, 0.1, 1e12], **seeds}
    for axes in (beside, {"seed": range(4), "lr": [1e9, 0.1, 1e12]}):
        crowded = sweep(minibatch, axes, **SMALL, layout=layout).sel(lr=0.1)
        for name in ("loss", "gram"):
            chex.assert_trees_all_equal(alone[name].values, crowded[name].values)


def on_devices(numbers):
    """{number of devices: hash of the records}, each in a process of its own."""
    hashes = {}
    for devices in numbers:
        run = subprocess.run(
            [sys.executable, "-m", "tests.processes", "-", "40"],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
            capture_output=True,
            text=True,
            check=True,
        )
        seen, hashes[devices] = run.stdout.split()
        assert int(seen) == devices
    return hashes


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    "numbers", [(1, 2), pytest.param((1, 2, 8, 16), marks=pytest.mark.slow)], ids=str
)
def test_any_number_of_devices_gives_the_same_bits(numbers):
    assert len(set(on_devices(numbers).values())) == 1


def test_divergence_is_recorded_never_masked():
    data = sweep(minibatch, AXES, **CADENCE | {"steps": 40})
    assert data.diverged_at.sel(lr=[0.05, 0.1]).isnull().all()
    worst = data.sel(lr=1e9)
    for seed in range(3):
        first = worst.sel(seed=seed)
        bad = ~np.isfinite(first.hidden_norms.values).all(-1)
        assert first.diverged_at == first.step.values[bad.argmax()] <= 10
        assert np.isnan(first.loss[-1])


def test_a_run_has_diverged_at_the_first_recorded_step_with_inf_or_nan():
    def process(factor):
        return Dynamics(
            lambda: (jnp.ones(2), jnp.int32(0)),
            lambda s, t: (s[0] * jnp.array([1.0, factor]), s[1] + 1),
            lambda s, t: {"x": s[0][0]},
        )

    data = sweep(process, {"factor": [1.0, 1e10, 1e38]}, steps=8, every=2)
    np.testing.assert_array_equal(data.diverged_at, [np.nan, 4, 2])  # 1e40 and 1e76 are inf
    assert (data.x == 1).all()


def test_a_measure_may_be_nan_without_divergence():
    def process(lr):
        return Dynamics(
            lambda: jnp.ones(()), lambda x, t: x * lr, lambda x, t: {"x": jnp.log(x - 2)}
        )

    data = sweep(process, {"lr": [0.5]}, steps=4, every=1)
    assert np.isnan(data.x).all() and data.diverged_at.isnull().all()


@pytest.mark.parametrize("runs", [1, 2, 3, 7])
@pytest.mark.parametrize("layout", [None, {"width": 3, "blocks": 2}], ids=str)
def test_padding_is_not_seen(runs, layout):
    def process(seed):
        return Dynamics(lambda: seed, lambda x, t: x + 10, lambda x, t: {"x": x})

    data = sweep(process, {"seed": range(runs)}, steps=3, every=1, layout=layout)
    np.testing.assert_array_equal(data.x, np.arange(runs)[:, None] + 10 * np.arange(4))


def test_axes_can_be_points_labelled_arrays_and_static():
    def process(lr, tau, mask, seed, width, shape, scale):
        value = lr + tau + mask.sum() + seed + width + scale.sum()
        return Dynamics(
            lambda: jnp.zeros(width),
            lambda x, t: x + 1.0,
            lambda x, t: {"value": value, "reduced": shape(x), "parts": jnp.arange(2.0)},
        )

    points = [(0.5, 1.0), (0.25, 2.0)]
    data = sweep(
        process,
        {("lr", "tau"): points, "mask": {"off": [0.0, 0.0], "on": [8.0, 8.0]}, "seed": [3, 1]},
        static={"width": [2, 5], "shape": {"sum": jnp.sum, "max": jnp.max}},
        shared={"scale": np.full(4, 100.0)},
        dims={"parts": ("part",)},
        attrs={"value": {"units": "m"}, "lr": {"units": "1/step"}},
        steps=2,
        every=1,
    )
    assert data.value.dims == ("lr_tau", "mask", "seed", "width", "shape", "step")
    assert data.parts.dims[-1] == "part"
    assert data.value.attrs["units"] == "m" and data.lr.attrs["units"] == "1/step"
    assert data.seed.attrs["long_name"] and data.step.attrs["units"] == "steps"
    for i, (lr, tau) in enumerate(points):
        run = data.isel(lr_tau=i)
        assert (run.lr, run.tau) == (lr, tau)
        for mask, added in (("off", 0), ("on", 16)):
            one = run.sel(mask=mask, seed=3, width=5)
            np.testing.assert_allclose(one.value, lr + tau + added + 3 + 5 + 400)
            np.testing.assert_allclose(one.sel(shape="sum").reduced, [0, 5, 10])
            np.testing.assert_allclose(one.sel(shape="max").reduced, [0, 1, 2])


def test_static_points_agree_with_sweeps_of_their_own():
    static = {"hidden": [4, 6], "optimizer": {"sgd": optax.sgd, "adam": optax.adam}}
    axes = {"lr": [0.1], "seed": range(2)}
    data = sweep(minibatch, axes, **SMALL, static=static)
    for hidden in (4, 6):
        one = {"hidden": [hidden], "optimizer": {"adam": optax.adam}}
        alone = sweep(minibatch, axes, **SMALL, static=one)
        chosen = data.sel(hidden=[hidden], optimizer=["adam"])
        chex.assert_trees_all_equal(chosen.loss.values, alone.loss.values)


def test_every_static_point_is_with_the_compiler_before_the_first_runs(monkeypatch):
    order, ahead = [], run.ahead

    def noted(*given, **settings):
        programs = ahead(*given, **settings)
        order.append("compiling")

        def advance(*arguments):
            order.append("running")
            return programs.advance(*arguments)

        return programs._replace(advance=advance)

    monkeypatch.setattr(run, "ahead", noted)
    static = {"width": [1, 2, 3]}

    def growing(seed, width):
        return Dynamics(
            init=lambda: jnp.full(width, seed, float),
            step=lambda x, t: x + 1,
            observe=lambda x, t: {"total": x.sum()},
        )

    data = sweep(growing, {"seed": [4]}, static=static, steps=2, every=1)
    assert order[:4] == ["compiling"] * 3 + ["running"]
    np.testing.assert_array_equal(data.total[0], [[4, 5, 6], [8, 10, 12], [12, 15, 18]])


def test_the_layout_is_recorded_and_the_same_each_time():
    one, two = (sweep(minibatch, {"lr": [0.1], "seed": range(5)}, **SMALL) for _ in range(2))
    assert json.loads(one.layout)[0].keys() == {*Layout._fields}
    assert one.layout == two.layout and digest(one) == digest(two)
    assert json.loads(one.layout)[0]["devices"] == min(5, available())


def test_off_a_terminal_progress_of_a_short_sweep_is_silent_and_when_asked(capfd):
    axes = {"lr": [0.1], "seed": range(5)}
    for shown in (None, False):
        sweep(minibatch, axes, **SMALL, progress=shown)
        assert capfd.readouterr() == ("", "")
    sweep(minibatch, axes, **SMALL, progress=True)
    shown = capfd.readouterr().err
    for words in ("5/5 runs", "step 40", "member-steps/s", "left"):
        assert words in shown


def test_off_a_terminal_a_line_a_minute_shows_life(capfd, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.0)  # a minute that is over at once
    sweep(minibatch, {"lr": [0.1], "seed": range(4)}, **SMALL, layout={"segment": 20, "width": 4})
    said = re.findall(
        r"^(\d)/4 runs, step (\d+): (\d+)%, 1 min left$", capfd.readouterr().err, re.M
    )
    assert said == [("0", "20", "50"), ("4", "40", "100")]


@pytest.mark.parametrize("asked", [None, "bfloat16"])
def test_products_are_exact_unless_the_caller_has_chosen(asked):
    seen = set()

    def watched(seed):
        seen.add(jax.config.jax_default_matmul_precision)
        return Dynamics(lambda: 0.0 * seed, lambda x, t: x + 1, lambda x, t: {"x": x})

    with jax.default_matmul_precision(asked):
        data = sweep(watched, {"seed": range(2)}, steps=2, every=1)
        assert jax.config.jax_default_matmul_precision == asked  # left as it was
    assert seen == {data.matmul_precision} == {asked or "highest"}


@pytest.mark.parametrize(("asked", "seen"), [(None, True), (False, False)])
def test_on_a_terminal_progress_is_shown_unless_refused(asked, seen, monkeypatch):
    outer, inner = pty.openpty()
    with os.fdopen(inner, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        sweep(minibatch, {"lr": [0.1], "seed": range(2)}, **SMALL, progress=asked)
        print("end", file=terminal, flush=True)
        shown = os.read(outer, 65536).decode()
    os.close(outer)
    assert ("member-steps/s" in shown) == seen
    assert seen or shown.split() == ["end"]


def test_a_measured_layout_prints_its_candidates_and_a_store_keeps_it(tmp_path, capsys):
    settings = {"steps": 20, "every": 10, "inspect_every": 20, "store": tmp_path / "store"}
    axes = {"lr": [0.05], "seed": range(6)}
    first = sweep(minibatch, axes, **settings, layout="measure")
    printed = capsys.readouterr().err
    assert "width    1" in printed and "the usual choice" in printed
    again = sweep(minibatch, axes, **settings | {"steps": 40}, layout="measure")
    assert capsys.readouterr().err == "" and again.attrs["layout"] == first.attrs["layout"]
    width = json.loads(first.attrs["layout"])[0]["width"]
    given = {"steps": 40, "every": 10, "inspect_every": 20}
    by_hand = sweep(minibatch, axes, **given, layout={"width": width})
    np.testing.assert_array_equal(by_hand.loss, again.loss)
