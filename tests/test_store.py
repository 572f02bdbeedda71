"""A store: killed and resumed to the same bytes, extended, refused where anything differs."""

import fcntl
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tests.processes as processes
from lab.sweep import final_states, runner, sweep
from lab.types import BadInput, Dynamics
from tests.processes import AXES, CADENCE, LAYOUT, digest, files, minibatch

SMALL = {"steps": 40, "every": 5, "inspect_every": 10, "layout": {"width": 2}}
SEEDS = {"lr": [0.1], "seed": range(3)}


def child(store: Path, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.processes", str(store), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def commits(store: Path) -> int:
    """A number that grows with each commit of the child."""
    return max((f.stat().st_mtime_ns for f in store.glob("states/*.npz")), default=0)


def run_killed_often(store: Path, steps: int, how: signal.Signals, delays: random.Random) -> int:
    """Run the child to its end, killing it at random instants after it has begun to store."""
    kills = 0
    while True:
        running, before = child(store, steps), commits(store)
        while running.poll() is None and commits(store) == before:
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.06))
        if kills < 6 and running.poll() is None:
            running.send_signal(how)
            kills += 1
        _, error = running.communicate()
        if running.returncode == 0:
            return kills
        assert running.returncode == -how, error


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    store = tmp_path_factory.mktemp("stores") / "whole"
    data = sweep(minibatch, AXES, **CADENCE, layout=LAYOUT, store=store)
    return data, files(store)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_random_and_run_again_gives_the_same_bytes(how, uninterrupted, tmp_path):
    kills = run_killed_often(tmp_path / "store", 400, how, random.Random(int(how)))
    assert kills >= 3
    assert files(tmp_path / "store") == uninterrupted[1]


def test_killed_while_extending_gives_the_same_bytes(uninterrupted, tmp_path):
    store = tmp_path / "store"
    sweep(minibatch, AXES, **CADENCE | {"steps": 130}, layout=LAYOUT, store=store)
    assert run_killed_often(store, 400, signal.SIGKILL, random.Random(7)) >= 1
    assert files(store) == uninterrupted[1]


def test_a_stored_sweep_is_the_sweep(uninterrupted):
    alone = sweep(minibatch, AXES, **CADENCE, layout=LAYOUT)
    assert uninterrupted[0].identical(alone.assign_attrs(uninterrupted[0].attrs))


def test_a_finished_store_is_read_without_computing(tmp_path, monkeypatch):
    first = sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    before, program = files(tmp_path), runner.program

    def never(*_):
        pytest.fail("computed again")

    def idle(*given, **settings):
        return program(*given, **settings)._replace(start=never, advance=never)

    monkeypatch.setattr(runner, "program", idle)
    again = sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    assert digest(first) == digest(again) and files(tmp_path) == before


def test_more_seeds_and_rates_extend_a_store_and_leave_the_old_alone(tmp_path):
    sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    old = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in tmp_path.glob("states/*")}
    more = {"lr": [0.3, 0.1], "seed": [5, 0, 1, 2]}
    grown = sweep(minibatch, more, **SMALL, store=tmp_path)
    assert {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in old} == old
    assert len(list(tmp_path.glob("states/*"))) > len(old)
    assert digest(grown) == digest(sweep(minibatch, more, **SMALL))


def test_more_steps_extend_a_store_as_if_it_had_never_stopped(tmp_path):
    layout = {"width": 2, "blocks": 1, "segment": 30}
    short, long = SMALL | {"steps": 50, "layout": layout}, SMALL | {"steps": 120, "layout": layout}
    sweep(minibatch, SEEDS, **short, store=tmp_path / "grown")
    grown = sweep(minibatch, SEEDS, **long, store=tmp_path / "grown")
    whole = sweep(minibatch, SEEDS, **long, store=tmp_path / "whole")
    assert digest(grown) == digest(whole)
    assert files(tmp_path / "grown") == files(tmp_path / "whole")


def test_fewer_seeds_or_steps_are_read_from_a_store(tmp_path):
    sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    before = files(tmp_path)
    fewer = {"lr": [0.1], "seed": [2]}
    less = sweep(minibatch, fewer, **SMALL | {"steps": 20}, store=tmp_path)
    assert files(tmp_path) == before
    assert digest(less) == digest(sweep(minibatch, fewer, **SMALL | {"steps": 20}))


def test_without_kept_states_more_steps_are_refused(tmp_path):
    sweep(minibatch, SEEDS, **SMALL, store=tmp_path, keep=None)
    before = files(tmp_path)
    with pytest.raises(BadInput, match=r"^steps: the store ended at 40 .* cannot take more"):
        sweep(minibatch, SEEDS, **SMALL | {"steps": 80}, store=tmp_path)
    assert files(tmp_path) == before


def test_on_resume_the_stored_layout_wins(tmp_path):
    one = sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    free = {key: value for key, value in SMALL.items() if key != "layout"}
    assert sweep(minibatch, SEEDS, **free, store=tmp_path).layout == one.layout


def other_loss(lr, seed, **rest):
    made = minibatch(lr, seed, **rest)

    def doubled(state, t):
        record = made.observe(state, t)
        return {**record, "loss": 2 * record["loss"]}

    return made._replace(observe=doubled)


def edited(store: Path, section: str, name: str, value: object) -> None:
    file = store / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["identity"][section][name] = value
    file.write_text(json.dumps(manifest))


def shared_process(lr, seed, data):
    return Dynamics(lambda: data[0] * lr, lambda x, t: x + data[1], lambda x, t: {"x": x})


def masked_process(mask, lr, seed):
    return Dynamics(lambda: mask * lr, lambda x, t: x, lambda x, t: {"x": x})


def test_a_store_of_another_computation_is_refused(tmp_path, monkeypatch):
    sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    before = files(tmp_path)
    with pytest.raises(BadInput, match="observe computes something else"):
        sweep(other_loss, SEEDS, **SMALL, store=tmp_path)
    monkeypatch.setattr(processes, "Y", processes.Y.at[0].add(1e-3))
    with pytest.raises(BadInput, match="step computes something else"):
        sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("section", "name", "value", "named"),
    [
        ("versions", "jax", "0.1", "jax was '0.1' and is now"),
        ("machine", "processor", "abacus", "processor was 'abacus' and is now"),
        ("precision", "x64", True, "x64 was True and is now False"),
        ("config", "every", 1, "every was 1 and is now 5"),
    ],
)
def test_a_store_made_otherwise_is_refused_and_says_what_differs(
    section, name, value, named, tmp_path
):
    sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    edited(tmp_path, section, name, value)
    before = files(tmp_path)
    with pytest.raises(BadInput, match=f"^store: [^\n]*{named}[^\n]*$"):
        sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    assert files(tmp_path) == before


def test_precision_is_part_of_what_a_store_is(tmp_path):
    sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    with jax.enable_x64(True), pytest.raises(BadInput, match="x64 was False and is now True"):
        sweep(minibatch, SEEDS, **SMALL, store=tmp_path)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"every": 10}, "every was 5 and is now 10"),
        ({"inspect_every": 20}, "inspect_every was 10 and is now 20"),
        ({"layout": {"width": 3}}, "width was 2 and is now 3"),
    ],
    ids=str,
)
def test_another_config_or_width_is_refused(given, named, tmp_path):
    sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    with pytest.raises(BadInput, match=named):
        sweep(minibatch, SEEDS, **SMALL | given, store=tmp_path)


def test_another_shared_or_labelled_array_is_refused(tmp_path):
    settings = {"steps": 2, "every": 1}
    axes = {"lr": [1.0], "seed": [0]}
    sweep(shared_process, axes, **settings, shared={"data": jnp.ones(2)}, store=tmp_path / "a")
    with pytest.raises(BadInput, match="array 'data' has other values"):
        sweep(shared_process, axes, **settings, shared={"data": jnp.zeros(2)}, store=tmp_path / "a")
    sweep(masked_process, {"mask": {"on": [1.0]}, **axes}, **settings, store=tmp_path / "b")
    with pytest.raises(BadInput, match="array 'mask=\"on\"' has other values"):
        sweep(masked_process, {"mask": {"on": [2.0]}, **axes}, **settings, store=tmp_path / "b")
    both = {"mask": {"on": [1.0], "off": [0.0]}, **axes}
    grown = sweep(masked_process, both, **settings, store=tmp_path / "b")
    assert grown.x.sel(mask="off").values.max() == 0


def test_a_second_coordinator_is_refused(tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="is being written by another process"):
            sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    sweep(minibatch, SEEDS, **SMALL, store=tmp_path)


def test_final_states_come_back_as_the_pytree_they_were(tmp_path):
    axes = {"lr": [0.05, 0.1], "seed": range(3)}
    static = {"hidden": [4, 5], "optimizer": {"adam": optax.adam}}
    data = sweep(minibatch, axes, **SMALL, static=static, store=tmp_path)
    like = minibatch(0.1, 0, hidden=4, optimizer=optax.adam).init()
    with pytest.raises(BadInput, match="'hidden' is a static axis"):
        final_states(data, like)
    states = final_states(data.sel(hidden=4, optimizer="adam"), like)
    chex.assert_trees_all_equal_structs(states, like)
    params, opt_state, _ = states
    assert params["in"].shape == (2, 3, processes.FEATURES, 4)
    assert (opt_state[0].count == 40).all()
    losses = jax.vmap(jax.vmap(processes.loss))(params)
    last = data.loss.sel(hidden=4, optimizer="adam").isel(step=-1)
    np.testing.assert_allclose(losses, last, rtol=1e-5)
    one = final_states(data.sel(hidden=4, optimizer="adam", lr=0.1, seed=2), like)
    chex.assert_trees_all_equal(one[0], jax.tree.map(lambda a: a[1, 2], params))
    expected = jax.random.split(jax.random.key(2))[1]
    assert (jax.random.key_data(one[2]) == jax.random.key_data(expected)).all()


def test_final_states_need_a_store_that_kept_them(tmp_path):
    like = minibatch(0.1, 0).init()
    with pytest.raises(BadInput, match="was not stored"):
        final_states(sweep(minibatch, SEEDS, **SMALL), like)
    data = sweep(minibatch, SEEDS, **SMALL, store=tmp_path, keep=None)
    with pytest.raises(BadInput, match="keep=None"):
        final_states(data, like)
