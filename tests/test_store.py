"""A store: killed and resumed to the same bytes, extended, refused where anything differs."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lab.sweep.store as store_module
import tests.processes as processes
from lab.sweep import final_states, runner, sweep
from lab.types import BadInput, Dynamics
from tests.processes import AXES, CADENCE, LAYOUT, digest, files, minibatch

SMALL = {"steps": 40, "every": 5, "inspect_every": 10, "layout": {"width": 2}}
SEEDS = {"lr": [0.1], "seed": range(3)}
LENGTH = CADENCE["steps"]


def child(store: Path, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.processes", str(store), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def touched(store: Path, files: str) -> int:
    """When such a file of the store was last written."""
    return max((f.stat().st_mtime_ns for f in store.glob(files)), default=0)


def run_killed(store: Path, steps: int, signals: Sequence[signal.Signals], seed: int) -> None:
    """Run the child to its end, ended at random instants: as it commits, as it opens the store."""
    delays, killed = random.Random(seed), 0
    for i, how in enumerate(signals):
        awaited = ("states/*.npz", "lock")[i % 2]
        before = touched(store, awaited)
        running = child(store, steps)
        while running.poll() is None and touched(store, awaited) == before:
            time.sleep(0.0005)
        time.sleep(delays.uniform(0, 0.05))
        running.send_signal(how)
        _, error = running.communicate()
        assert running.returncode in (-how, 0), error  # 0: it was at its end already
        killed += running.returncode == -how
    assert killed > len(signals) / 2
    last = child(store, steps)
    _, error = last.communicate()
    assert last.returncode == 0, error


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    store = tmp_path_factory.mktemp("stores") / "whole"
    data = sweep(minibatch, AXES, **CADENCE, layout=LAYOUT, store=store)
    return data, files(store)


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_at_random_and_run_again_gives_the_same_bytes(kills, uninterrupted, tmp_path):
    run_killed(tmp_path / "store", LENGTH, [signal.SIGKILL] * kills, seed=1)
    assert files(tmp_path / "store") == uninterrupted[1]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_interrupted_and_run_again_gives_the_same_bytes(uninterrupted, tmp_path):
    run_killed(tmp_path / "store", LENGTH, [signal.SIGINT] * 2, seed=2)
    assert files(tmp_path / "store") == uninterrupted[1]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_killed_while_extending_gives_the_same_bytes(uninterrupted, tmp_path):
    store = tmp_path / "store"
    sweep(minibatch, AXES, **CADENCE | {"steps": 130}, layout=LAYOUT, store=store)
    run_killed(store, LENGTH, [signal.SIGKILL] * 2, seed=3)
    assert files(store) == uninterrupted[1]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("extending", [False, True])
def test_ended_at_any_write_and_run_again_gives_the_same_bytes(extending, tmp_path, monkeypatch):
    settings = {**SMALL, "steps": 20, "layout": {"width": 2, "blocks": 1, "segment": 10}}
    more = {"lr": [0.1], "seed": range(7)}
    whole, last, write = tmp_path / "whole", 0, store_module._write

    def begun(store):
        if extending:
            sweep(minibatch, SEEDS, **settings | {"steps": 10}, store=store)

    begun(whole)
    sweep(minibatch, more, **settings, store=whole)
    for last in range(3 if extending else 4):  # before points, manifest, the first states
        store, left = tmp_path / str(last), iter(range(last))
        begun(store)

        def ended(path, content, left=left):
            if next(left, None) is None:
                raise Killed
            write(path, content)

        monkeypatch.setattr(store_module, "_write", ended)
        with pytest.raises(Killed):
            sweep(minibatch, more, **settings, store=store)
        monkeypatch.setattr(store_module, "_write", write)
        sweep(minibatch, more, **settings, store=store)
        assert files(store) == files(whole)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    def killed(descriptor):
        raise Killed

    store_module._write(tmp_path / "file", b"old")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("os.fsync", killed)
        store_module._write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_a_process_killed_at_once_left_is_no_store(tmp_path, monkeypatch):
    def rounded(lr, seed):
        made = minibatch(lr, seed)
        return made._replace(observe=lambda s, t: {"loss": jnp.int32(made.observe(s, t)["loss"])})

    write = store_module._write

    def killed(path, content):  # the arrays are there, the manifest is not
        if path.name == "manifest.json":
            raise Killed
        write(path, content)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(store_module, "_write", killed)
        sweep(rounded, SEEDS, **SMALL | {"layout": {"width": 3}}, store=tmp_path / "left")
    assert (tmp_path / "left" / "records.zarr" / "loss").is_dir()
    data = sweep(minibatch, SEEDS, **SMALL, store=tmp_path / "left")
    assert digest(data) == digest(sweep(minibatch, SEEDS, **SMALL, store=tmp_path / "fresh"))
    assert files(tmp_path / "left") == files(tmp_path / "fresh")


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


def test_more_steps_extend_a_store_as_if_it_had_never_stopped(tmp_path, monkeypatch):
    layout = {"width": 2, "blocks": 1, "segment": 30}
    short, long = SMALL | {"steps": 50, "layout": layout}, SMALL | {"steps": 120, "layout": layout}
    sweep(minibatch, SEEDS, **short, store=tmp_path / "grown")
    program = runner.program

    def going_on(*given, **settings):
        return program(*given, **settings)._replace(start=lambda *_: pytest.fail("began again"))

    with monkeypatch.context() as patched:
        patched.setattr(runner, "program", going_on)
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
    with pytest.raises(BadInput, match=r"'mask' has other values in the run mask=\"on\" lr=1\.0"):
        sweep(masked_process, {"mask": {"on": [2.0]}, **axes}, **settings, store=tmp_path / "b")
    both = {"mask": {"on": [1.0], "off": [0.0]}, **axes}
    grown = sweep(masked_process, both, **settings, store=tmp_path / "b")
    assert grown.x.sel(mask="off").values.max() == 0


@pytest.mark.parametrize("before", [[0.5], {0.5: 0.5}], ids=["plain", "labelled"])
def test_a_label_that_stands_for_another_value_is_refused(before, tmp_path):
    settings = {"static": {"mask": [1.0], "seed": [0]}, "steps": 2, "every": 1, "store": tmp_path}
    sweep(masked_process, {"lr": before}, **settings)
    with pytest.raises(BadInput, match=r"'lr' has other values in the run lr=0\.5"):
        sweep(masked_process, {"lr": {0.25: 0.25, 0.5: 2.0}}, **settings)
    axes = {"lr": {0.25: 0.25, 0.5: 0.5}}
    assert (
        sweep(masked_process, axes, **settings).x.values.ravel().tolist() == [0.25] * 3 + [0.5] * 3
    )


@pytest.mark.parametrize(
    "wrapped", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"]
)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_an_edited_closed_over_array_is_refused_wherever_it_hides(wrapped, array, tmp_path):
    def process(data):
        moved = wrapped(lambda x: x + jnp.sum(data @ data))
        return lambda lr: Dynamics(lambda: lr, lambda x, t: moved(x), lambda x, t: {"x": x})

    settings = {"axes": {"lr": [0.1]}, "steps": 1, "every": 1, "store": tmp_path}
    one, other = np.ones((30, 30), np.float32), np.ones((30, 30), np.float32)
    other[17, 17] = 2
    sweep(process(array(one)), **settings)
    sweep(process(array(one)), **settings)
    with pytest.raises(BadInput, match="step computes something else"):
        sweep(process(array(other)), **settings)


HOLDING = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1); input()"


def test_a_second_coordinator_is_refused(tmp_path):
    command = [sys.executable, "-u", "-c", HOLDING, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        with pytest.raises(BadInput, match="is being written by another process"):
            sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
        other.kill()
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


def test_final_states_of_points_and_masks_are_those_of_their_runs(tmp_path):
    def process(lr, tau, mask, seed):
        return Dynamics(
            lambda: {"x": 0.0, "of": jnp.stack([lr, tau, mask.sum(), seed])},
            lambda s, t: {**s, "x": s["x"] + 1.0},
            lambda s, t: {"of": s["of"]},
        )

    points = {("lr", "tau"): [(0.5, 3.0), (0.5, 1.0), (0.25, 2.0)]}
    axes = {**points, "mask": {"on": [1.0, 1.0], "off": [0.0, 0.0]}, "seed": [4, 2]}
    data = sweep(process, axes, steps=2, every=1, layout={"width": 5}, store=tmp_path)
    like = process(0.5, 3.0, jnp.ones(2), 0).init()
    for chosen in (data, data.sel(mask="off"), data.isel(lr_tau=[2, 0], seed=1)):
        states = final_states(chosen, like)
        np.testing.assert_array_equal(states["of"], chosen.of.isel(step=-1))
        assert (states["x"] == 2).all()
    with pytest.raises(BadInput, match=r"has float32\[4\] where `like` has float32\[2\]; give"):
        final_states(data, {"x": 0.0, "of": jnp.ones(2)})


def test_final_states_are_those_of_the_steps_that_were_swept(tmp_path):
    short = sweep(minibatch, SEEDS, **SMALL | {"steps": 20}, store=tmp_path)
    sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    with pytest.raises(BadInput, match="states are of step 40, not 20; sweep to 40 steps first"):
        final_states(short, minibatch(0.1, 0).init())
