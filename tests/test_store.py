"""A store: killed and resumed to the same bytes, extended, refused where anything differs."""

import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lab.sweep.store as store_module
import tests.processes as processes
from lab.sweep import Layout, final_states, run, sweep
from lab.types import BadInput, Dynamics
from tests.processes import AXES, CADENCE, LAYOUT, digest, drifting, files, minibatch

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
    settings = {"steps": 20, "every": 5, "layout": {"width": 2, "blocks": 1, "segment": 10}}
    more = {"lr": [0.1], "seed": range(7)}
    whole, write = tmp_path / "whole", store_module._write

    def begun(store):
        if extending:
            sweep(drifting, SEEDS, **settings | {"steps": 10}, store=store)

    begun(whole)
    sweep(drifting, more, **settings, store=whole)
    for last in itertools.count():
        store, left = tmp_path / str(last), iter(range(last))
        begun(store)

        def ended(path, content, left=left):
            if next(left, None) is None:
                raise Killed
            write(path, content)

        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(store_module, "_write", ended)
            sweep(drifting, more, **settings, store=store)
            break
        sweep(drifting, more, **settings, store=store)
        assert files(store) == files(whole)
    assert last == (13 if extending else 18)  # the manifest, the runs, records and states


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    def killed(descriptor):
        raise Killed

    store_module._write(tmp_path / "file", b"old")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("os.fsync", killed)
        store_module._write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_a_process_killed_at_once_left_is_no_store(tmp_path, monkeypatch):
    write = store_module._write

    def killed(path, content):  # its folder is there, its manifest is not
        if path.name == "manifest.json":
            raise Killed
        write(path, content)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(store_module, "_write", killed)
        sweep(other_loss, SEEDS, **SMALL | {"layout": {"width": 3}}, store=tmp_path / "left")
    data = sweep(minibatch, SEEDS, **SMALL, store=tmp_path / "left")
    assert digest(data) == digest(sweep(minibatch, SEEDS, **SMALL, store=tmp_path / "fresh"))
    assert files(tmp_path / "left") == files(tmp_path / "fresh")


def test_a_stored_sweep_is_the_sweep(uninterrupted):
    alone = sweep(minibatch, AXES, **CADENCE, layout=LAYOUT)
    assert uninterrupted[0].identical(alone.assign_attrs(uninterrupted[0].attrs))


def test_a_finished_store_is_read_without_computing(tmp_path, monkeypatch):
    first = sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    before, program = files(tmp_path), run.program

    def never(*_):
        pytest.fail("computed again")

    def idle(*given, **settings):
        return program(*given, **settings)._replace(start=never, advance=never)

    monkeypatch.setattr(run, "program", idle)
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
    program = run.program

    def going_on(*given, **settings):
        return program(*given, **settings)._replace(start=lambda *_: pytest.fail("began again"))

    with monkeypatch.context() as patched:
        patched.setattr(run, "program", going_on)
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
    kept = {name: manifest[name] for name in ("identity", "layout", "about")}
    digest = store_module._digest(json.dumps(kept).encode())
    file.write_text(json.dumps({**kept, "digest": digest}))


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
        ("settings", "enable_x64", "True", "enable_x64 was 'True' and is now 'False'"),
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
    with jax.enable_x64(True), pytest.raises(BadInput, match="x64 was 'False' and is now 'True'"):
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
    "wrapped", [lambda f: f, jax.jit, jax.checkpoint], ids=["", "jit", "remat"]
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


@pytest.mark.parametrize("mask", [np.array([np.nan, 1.0]), np.ones(0), np.array([-0.0])], ids=str)
def test_the_same_mask_is_the_same_whatever_it_holds(mask, tmp_path):
    given = {"axes": {"mask": {"a": mask}}, "static": {"lr": [1.0], "seed": [0]}, "every": 1}
    for steps in (1, 2):
        sweep(masked_process, **given, steps=steps, store=tmp_path)
    if mask.size:
        with pytest.raises(BadInput, match="'mask' has other values"):
            sweep(
                masked_process,
                **given | {"axes": {"mask": {"a": mask * 0 + 3}}},
                steps=2,
                store=tmp_path,
            )


def test_static_labels_of_two_kinds_find_their_final_states(tmp_path):
    static = {"tau": [1, 2.5]}
    data = sweep(of_dtype, {"lr": [1.0]}, steps=1, every=1, static=static, store=tmp_path)
    for tau in (1, 2.5):
        state = final_states(data.sel(tau=tau), jnp.ones(2))
        np.testing.assert_array_equal(state, [[tau + 1, tau + 1]])


def of_dtype(lr, dtype="float32", tau=1):
    start = jnp.full(2, tau, dtype)
    return Dynamics(lambda: start, lambda x, t: x + jnp.ones((), x.dtype), lambda x, t: {"x": x})


NARROW = ["bool", "int8", "uint8", "uint32", "float16", "bfloat16", "complex64"]
NARROW += ["float8_e5m2", "float8_e4m3fn", "float8_e4m3b11fnuz"]


@pytest.mark.parametrize("dtype", NARROW)
def test_states_and_records_of_any_dtype_come_back_as_they_were(dtype, tmp_path):
    def process(lr):
        start = jnp.asarray([1, 0, 1]).astype(dtype)
        return Dynamics(lambda: start, lambda x, t: x[::-1], lambda x, t: {"x": x})

    settings = {"axes": {"lr": [1.0]}, "every": 1, "layout": {"segment": 2}}
    sweep(process, **settings, steps=3, store=tmp_path)
    data = sweep(process, **settings, steps=5, store=tmp_path)
    foreign = dtype.startswith(("bfloat", "float8"))  # of NumPy: float32 holds them exactly
    assert data.x.dtype == jnp.dtype("float32" if foreign else dtype)
    alone = sweep(process, **settings, steps=5).x.values
    assert data.x.values.tobytes() == alone.tobytes() and alone[0, 0].astype(bool).tolist() == [
        1,
        0,
        1,
    ]
    state = final_states(data, jnp.zeros(3, dtype))
    assert state.dtype == jnp.dtype(dtype) and (state[0] == data.x.values[0, -1]).all()
    other = "float8_e4m3" if dtype.startswith("float8") else "int16"
    with pytest.raises(BadInput, match=rf"the store has {dtype}\[3\] where `like` has {other}"):
        final_states(data, jnp.zeros(3, other))


def test_a_state_of_many_leaves_comes_back_in_order(tmp_path, monkeypatch):
    state = [np.full((1, 2), i) for i in range(10_003)]
    store_module._write(tmp_path / "manifest.json", b"")
    store = store_module.Store(tmp_path, Layout(1, 1, 1, 2), "", ["a"], {}, {})
    store.append(0, None, 2, {"x": np.ones((1, 2))}, state)
    np.testing.assert_array_equal(store.load(0).leaves, state)


def test_a_store_that_is_refused_is_left_as_it_was(tmp_path):
    """Damage in one part or dispatch is found before another is gone on with."""
    axes, short = {"lr": [0.1, 0.2], "seed": range(2)}, {"layout": {"width": 2, "segment": 10}}
    settings = SMALL | short | {"static": {"hidden": [4, 5]}}
    sweep(minibatch, axes, **settings | {"steps": 20}, store=tmp_path)
    stray = tmp_path / "hidden=4/records/00000/0000000030.npz"  # as of a writer that was killed
    stray.write_bytes(b"")
    for name in ("states/00000.npz", "records/00000/0000000010.npz"):
        file = tmp_path / "hidden=5" / name
        content = file.read_bytes()
        file.write_bytes(content[:-30])
        before = files(tmp_path)
        for given in ({}, {"axes": {"lr": [0.1, 0.3], "seed": range(2)}}):
            with pytest.raises(BadInput, match=r"^store: .*hidden=5/(states|records)/00000"):
                sweep(minibatch, **{"axes": axes} | settings | given, store=tmp_path)
            assert files(tmp_path) == before
        file.write_bytes(content)
    sweep(minibatch, axes, **settings, store=tmp_path)
    sweep(minibatch, axes, **settings, store=tmp_path / "whole")
    for part in ("hidden=4", "hidden=5"):
        assert files(tmp_path / part) == files(tmp_path / "whole" / part)


def test_a_damaged_state_removes_no_records(tmp_path):
    """Whatever a state that was exchanged says of how far its dispatch has come."""
    settings = SMALL | {"layout": {"width": 1, "blocks": 1, "segment": 10}}
    sweep(minibatch, SEEDS, **settings | {"steps": 10}, store=tmp_path / "early")
    sweep(minibatch, SEEDS, **settings, store=tmp_path / "late")
    early, late = (tmp_path / name / "states" for name in ("early", "late"))
    (late / "00001.npz").write_bytes((early / "00000.npz").read_bytes())
    before = files(tmp_path / "late")
    with pytest.raises(BadInput, match=r"00001\.npz belongs to other runs"):
        sweep(minibatch, SEEDS, **settings, store=tmp_path / "late")
    assert files(tmp_path / "late") == before


class Idle:
    """Takes jobs and does not do them."""

    def __init__(self, result=None, job=None):
        self.job = job or Future()
        if job is None:
            self.job.set_result(result)

    def submit(self, *_):
        return self.job


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        (Idle(), "was not run to its end"),
        (Idle(b"nonsense"), "came back as b'nonsense'"),
        (Idle(5), "came back as 5"),
        (Idle(job=3), r"submit\(\) gave 3, which has no done"),
        (lambda: None, "made None, which has no submit"),
        (lambda: print, "made <built-in function print>, which has no submit"),
        (lambda x: x, "makes none without arguments"),
    ],
    ids=["idle", "bytes", "number", "no job", "none", "function", "arguments"],
)
def test_an_executor_that_does_not_do_its_jobs_is_refused(executor, said, tmp_path):
    with pytest.raises(BadInput, match=f"^(store|executor): [^\n]*{said}[^\n]*$"):
        sweep(minibatch, SEEDS, **SMALL, store=tmp_path, executor=executor)
    data = sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    assert digest(data) == digest(sweep(minibatch, SEEDS, **SMALL))


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (lambda data: None, "was not stored"),
        (lambda data: data.loss, "was not stored"),
        (lambda data: data.mean("seed"), "no 'seed' any more"),
        (lambda data: data.drop_vars("lr"), "no 'lr' any more"),
        (lambda data: data.isel(seed=[]), "no run is selected"),
        (lambda data: data.assign_attrs(axes="1"), "attributes were edited"),
        (lambda data: data.assign_attrs(static=[]), "attributes were edited"),
        (lambda data: data.assign_attrs(store="a\0b"), "'a.x00b' is no path"),
        (lambda data: data.stack(run=("lr", "seed")), "'lr' lies along 'run'"),
        (lambda data: data.assign_coords(seed=[7, 8, 9]), "has no run lr=0.1 seed=7"),
    ],
    ids=[
        "none",
        "array",
        "mean",
        "dropped",
        "empty",
        "axes",
        "static",
        "store",
        "stacked",
        "relabelled",
    ],
)
def test_final_states_of_what_is_not_the_dataset_are_refused(odd, said, tmp_path):
    data = sweep(minibatch, SEEDS, **SMALL, store=tmp_path)
    with pytest.raises(BadInput, match=said):
        final_states(odd(data), minibatch(0.1, 0).init())
    with pytest.raises(BadInput, match="final_states: 'like' holds <U1"):
        final_states(data, "a")
