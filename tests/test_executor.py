"""A sweep as jobs of an executor: the bytes of one process, whoever is killed."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import distributed
import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import pytest
import submitit

from lab.sweep import book, final_states, jobs, parts, run, sweep
from lab.sweep.axes import parsed
from lab.sweep.cadence import Cadence
from lab.sweep.layout import available
from lab.types import BadInput, Dynamics
from tests.processes import AXES, CADENCE, LAYOUT, digest, files, minibatch

pytestmark = pytest.mark.xdist_group("processes")

SETTINGS = CADENCE | {"layout": LAYOUT | {"devices": 1}}
SHORT = {"steps": 20, "every": 5, "layout": {"width": 2, "blocks": 1, "segment": 10}}


def brief(lr, seed, hidden=5, optimizer=optax.sgd):
    """What is inspected at no time."""
    return minibatch(lr, seed, hidden, optimizer)._replace(inspect=None)


def spawning(workers=2):
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def pool():
    with spawning() as executor:
        yield executor


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The sweep in one process: its data and its store's bytes."""
    folder = tmp_path_factory.mktemp("stores") / "alone"
    data = sweep(minibatch, AXES, **SETTINGS, store=folder)
    return data, files(folder)


def reached(folder):
    """{dispatch: step on disk} of a store that is being written."""
    found = {}
    for file in folder.glob("states/*.npz"):
        with np.load(file) as saved:
            found[int(file.stem)] = int(saved["step"])
    return found


def wait_for_a_block_half_done(folder):
    while not any(0 < t < CADENCE["steps"] for t in reached(folder).values()):
        time.sleep(0.001)


def test_processes_give_the_bytes_of_one_process(alone, pool, tmp_path):
    data = sweep(minibatch, AXES, **SETTINGS, store=tmp_path, executor=pool)
    assert files(tmp_path) == alone[1]
    assert digest(data) == digest(alone[0])
    like = minibatch(0.1, 0).init()
    one, other = (jax.tree.leaves(final_states(d, like)[:2]) for d in (data, alone[0]))
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_workers_end_when_their_coordinator_is_killed(tmp_path):
    command = [sys.executable, "-m", "tests.torture", "--child", "workers", str(tmp_path)]
    coordinator = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        while not any(tmp_path.rglob("states/*.npz")):
            assert coordinator.poll() is None
            time.sleep(0.01)
        coordinator.kill()
        coordinator.wait()
        due = time.monotonic() + 20
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < due:
                os.killpg(coordinator.pid, 0)
                time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(coordinator.pid, signal.SIGKILL)


@pytest.mark.slow
def test_dask_gives_the_bytes_of_one_process(alone, tmp_path):
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
    )
    with cluster, distributed.Client(cluster) as client:
        data = sweep(minibatch, AXES, **SETTINGS, store=tmp_path, executor=client.get_executor())
    assert files(tmp_path) == alone[1]
    assert digest(data) == digest(alone[0])


class KillingOnce(submitit.LocalExecutor):
    """Kills the first job it is given, once it runs, as a batch system out of memory would."""

    submitted = 0

    def _internal_process_submissions(self, submissions):
        started = super()._internal_process_submissions(submissions)
        if not KillingOnce.submitted:
            controller = psutil.Process(int(started[0].job_id))
            while not controller.children():
                time.sleep(0.001)
            controller.children()[0].kill()
        KillingOnce.submitted += len(started)
        return started


@pytest.mark.slow
def test_submitit_gives_the_bytes_of_one_process_though_a_job_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)  # it waits for a slow file system
    axes = {"lr": [0.05, 0.1], "seed": range(2)}
    sweep(minibatch, axes, **SETTINGS, store=tmp_path / "alone")
    executor = KillingOnce(tmp_path / "logs")
    executor.update_parameters(timeout_min=5)
    sweep(minibatch, axes, **SETTINGS, store=tmp_path / "given", executor=executor)
    assert KillingOnce.submitted == 3
    assert files(tmp_path / "given") == files(tmp_path / "alone")


def test_a_killed_worker_of_a_pool_that_can_be_made_again_is_replaced(alone, tmp_path):
    pools, half = [], []

    def made():
        pools.append(spawning())
        return pools[-1]

    def kill():
        wait_for_a_block_half_done(tmp_path)
        half.append(reached(tmp_path))
        os.kill(next(iter(pools[0]._processes)), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    sweep(minibatch, AXES, **SETTINGS, store=tmp_path, executor=made)
    killer.join()
    assert len(pools) == 2
    assert min(half[0].values()) < CADENCE["steps"]
    assert files(tmp_path) == alone[1]


@pytest.mark.slow
def test_a_pool_that_broke_is_finished_here_with_a_warning(alone, tmp_path):
    def kill():
        wait_for_a_block_half_done(tmp_path)
        os.kill(next(iter(executor._processes)), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    with (
        spawning() as executor,
        pytest.warns(UserWarning, match=r"^executor: a worker died[^\n]*$"),
    ):
        killer.start()
        sweep(minibatch, AXES, **SETTINGS, store=tmp_path, executor=executor)
    killer.join()
    assert files(tmp_path) == alone[1]


class Ended(BaseException):
    """The process ends here."""


def test_a_store_half_done_in_one_process_is_finished_by_an_executor(
    alone, pool, tmp_path, monkeypatch
):
    append, left = book.Book.append, iter(range(7))

    def ending(self, *given):
        last = append(self, *given)
        if next(left, None) is None:
            raise Ended
        return last

    with monkeypatch.context() as patched, pytest.raises(Ended):
        patched.setattr(book.Book, "append", ending)
        sweep(minibatch, AXES, **SETTINGS, store=tmp_path)
    assert 0 < sum(reached(tmp_path).values()) < CADENCE["steps"]
    sweep(minibatch, AXES, **SETTINGS, store=tmp_path, executor=pool)
    assert files(tmp_path) == alone[1]


def test_interrupted_jobs_leave_a_store_that_one_process_finishes(
    alone, pool, tmp_path, monkeypatch
):
    given = {}

    def interrupted(running, look):
        given.update(running)
        wait_for_a_block_half_done(tmp_path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(jobs, "_done", interrupted)
        sweep(minibatch, AXES, **SETTINGS, store=tmp_path, executor=pool)
    assert not [*tmp_path.glob("lease-*")]
    for job in given.values():  # those begun notice that their coordinator is gone
        assert job.cancelled() or b"sweep that gave this job out has ended" in job.result()
    assert min(reached(tmp_path).values()) < CADENCE["steps"]
    sweep(minibatch, AXES, **SETTINGS, store=tmp_path)
    assert files(tmp_path) == alone[1]


def test_an_interrupt_cancels_the_jobs_that_have_not_begun(tmp_path, monkeypatch):
    class Full:
        def submit(self, *given):
            waiting.append(Future())
            return waiting[-1]

    def interrupted(*_):
        raise KeyboardInterrupt

    waiting = []
    monkeypatch.setattr(jobs, "_done", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(brief, {"lr": [0.1], "seed": range(3)}, **SHORT, store=tmp_path, executor=Full())
    assert waiting and all(job.cancelled() for job in waiting)


def test_a_store_of_two_devices_goes_on_where_there_is_one(tmp_path):
    axes, settings = {"lr": [0.1], "seed": range(3)}, SHORT | {"steps": 40}
    for name, devices in (("whole", (2, 2)), ("moved", (2, 1)), ("back", (1, 2))):
        for steps, count in zip((20, 40), devices, strict=True):
            layout = SHORT["layout"] | {"devices": count}
            given = settings | {"steps": steps, "layout": layout, "store": tmp_path / name}
            data = sweep(brief, axes, **given)
        assert f'"devices": {count}' in data.layout
        assert files(tmp_path / name) == files(tmp_path / "whole")


def test_an_executor_adds_steps_and_runs_to_a_store_of_two_devices(pool, tmp_path):
    less, more = {"lr": [0.1], "seed": range(3)}, {"lr": [0.1, 0.2], "seed": range(4)}
    settings = SHORT | {"layout": SHORT["layout"] | {"devices": 2}}
    for name, executor in (("alone", None), ("given", pool)):
        sweep(brief, less, **settings, store=tmp_path / name)
        longer = settings | {"steps": 40}
        sweep(brief, more, **longer, store=tmp_path / name, executor=executor)
    assert files(tmp_path / "given") == files(tmp_path / "alone")


def closing_over(scale, noise_key):
    """A process of local functions over arrays, a random key and JAX's own wrappers."""

    @jax.custom_vjp
    def through(x):
        return x

    through.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))
    energy = jax.checkpoint(lambda x: jnp.sum(through(x) ** 2 * scale))

    def process(lr, seed, data):
        def step(x, t):
            noise = jax.random.normal(jax.random.fold_in(noise_key, t), x.shape)
            return x - lr * jax.grad(energy)(x) + 0.1 * noise

        return Dynamics(lambda: data * seed, step, lambda x, t: {"x": x, "energy": energy(x)})

    return process


@pytest.mark.parametrize("x64", [False, True])
def test_closures_over_arrays_keys_and_precision_reach_the_workers(x64, pool, tmp_path):
    with jax.enable_x64(x64):
        scale, key = jnp.asarray([0.5, 1.5]), jax.random.key(3, impl="rbg")
        process, axes = closing_over(scale, key), {"lr": [0.1], "seed": range(3)}
        for name, executor in (("alone", None), ("given", pool)):
            layout = SHORT["layout"] | {"devices": 1}
            settings = SHORT | {"shared": {"data": np.ones(2)}, "layout": layout}
            data = sweep(process, axes, **settings, store=tmp_path / name, executor=executor)
    assert data.x.dtype == (np.float64 if x64 else np.float32)
    assert files(tmp_path / "given") == files(tmp_path / "alone")


def test_static_points_are_given_out_together(pool, tmp_path):
    static = {"hidden": [3, 4]}
    axes = {"lr": [0.1], "seed": range(2)}
    settings = SHORT | {"layout": SHORT["layout"] | {"devices": 1}, "static": static}
    for name, executor in (("alone", None), ("given", pool)):
        sweep(brief, axes, **settings, store=tmp_path / name, executor=executor)
    assert files(tmp_path / "given") == files(tmp_path / "alone")


class Own(Exception):
    """The user's own, which pickle cannot make again."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def elsewhere(act):
    """A process that does `act` where it is not traced by the coordinator."""
    home = os.getpid()

    def process(lr):
        factor = 1.0 if os.getpid() == home else act()
        return Dynamics(lambda: lr, lambda x, t: x * factor, lambda x, t: {"x": x})

    return process


def failing(error):
    raise error


@pytest.mark.parametrize(
    ("act", "kind", "said"),
    [
        (lambda: failing(ValueError("my own")), ValueError, r"^my own\n"),
        (lambda: failing(Own(1, 2)), RuntimeError, r"^Own: 1 and 2\n"),
        (lambda: 2.0, BadInput, r"^store: [^\n]*step computes something else[^\n]*$"),
    ],
    ids=["exception", "exception that does not pickle", "other computation"],
)
def test_what_goes_wrong_in_the_work_comes_through_at_once(act, kind, said, pool, tmp_path):
    attempts = []

    class Counting:
        def submit(self, *given):
            attempts.append(given)
            return pool.submit(*given)

    with pytest.raises(kind, match=said) as raised:
        sweep(elsewhere(act), {"lr": [1.0]}, **SHORT, store=tmp_path, executor=Counting())
    assert len(attempts) == 1
    if kind is not BadInput:
        assert "in failing" in "".join(raised.value.__notes__)  # the worker's traceback


class Losing:
    """An executor that loses some jobs, and does the others in this thread."""

    def __init__(self, lost):
        self.lost, self.given = lost, []

    def submit(self, function, *given):
        self.given.append(given)
        job = Future()
        if len(self.given) in self.lost:
            job.set_exception(OSError("node failed"))
        else:
            job.set_result(function(*given))
        return job


def test_a_lost_job_is_given_out_again_a_few_times(tmp_path):
    axes, settings = {"seed": range(2)}, SHORT | {"layout": {"width": 1, "blocks": 1}}

    def process(seed):
        return Dynamics(lambda: seed, lambda x, t: x + 1, lambda x, t: {"x": x})

    executor = Losing({1, 3})
    data = sweep(process, axes, **settings, store=tmp_path / "a", executor=executor)
    assert data.x.isel(step=-1).values.tolist() == [20, 21]
    assert [dispatch for _, dispatch, _ in executor.given] == [0, 1, 0, 0]
    assert len({*executor.given}) == 4  # dask takes equal calls for one
    said = r"^executor: lost 3 times in turn \(OSError: node failed\); the same call goes on[^\n]*$"
    with pytest.raises(BadInput, match=said):
        sweep(process, axes, **settings, store=tmp_path / "b", executor=Losing({1, 3, 4}))
    again = sweep(process, axes, **settings, store=tmp_path / "b")
    assert digest(again) == digest(data)


def test_a_job_without_its_coordinator_writes_nothing(tmp_path):
    axes = {"lr": [0.1], "seed": range(2)}
    sweep(brief, axes, **SHORT, store=tmp_path)
    before, lease = files(tmp_path), tmp_path / "gone"
    cadence = Cadence(80, {"step": np.arange(0, 81, 5)})
    part = parts.Part(brief, parsed(axes), {}, {}, cadence)
    with pytest.raises(BadInput, match=r"^store: .* the sweep that gave this job out has ended$"):
        run._worker(part, tmp_path, True, lease)(0)
    assert b"a worker does not see" in (jobs.work(str(lease), 0, 0) or b"")
    assert files(tmp_path) == before


def test_progress_goes_on_while_jobs_run(pool, tmp_path, capfd):
    axes = {"lr": [0.1], "seed": range(5)}
    settings = SHORT | {"store": tmp_path, "executor": pool, "progress": True}
    for _ in range(2):
        sweep(brief, axes, **settings)
        shown = capfd.readouterr().err
        for words in ("5/5 runs", "step 20", "100%"):
            assert words in shown


def test_by_default_a_job_is_of_one_device_and_as_wide_as_in_one_process(tmp_path):
    axes, settings = {"lr": [0.1], "seed": range(5)}, {"steps": 20, "every": 5}
    with ThreadPoolExecutor(1) as threads:
        given = sweep(brief, axes, **settings, store=tmp_path, executor=threads)
    width = 3 if available() > 1 else 5
    assert f'"devices": 1, "blocks": 1, "width": {width}' in given.layout
    here = sweep(brief, axes, **settings)
    assert f'"width": {width}' in here.layout


def forking():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))


@pytest.mark.parametrize(
    ("executor", "given", "said"),
    [
        (forking(), True, r"forked .* give ProcessPoolExecutor\(2, mp_context=.*spawn"),
        (forking, True, r"forked .* give ProcessPoolExecutor\(2, mp_context=.*spawn"),
        (3, True, r"3 has no submit\(\); give"),
        (spawning, False, "needs a store, .*; give one"),
    ],
    ids=["fork", "made by fork", "no executor", "no store"],
)
def test_what_cannot_give_out_jobs_is_refused_in_one_line(executor, given, said, tmp_path):
    axes = {"lr": [0.1], "seed": [0]}
    with pytest.raises(BadInput, match=f"^executor: {said}[^\n]*$"):
        sweep(brief, axes, **SHORT, store=tmp_path if given else None, executor=executor)


def test_what_cannot_be_sent_is_refused_in_one_line(tmp_path):
    held = threading.Lock()

    def process(lr):
        with held:
            return Dynamics(lambda: lr, lambda x, t: x, lambda x, t: {"x": x})

    with pytest.raises(BadInput, match=r"^dynamics: cannot be sent to workers \([^\n]*$"):
        sweep(process, {"lr": [0.1]}, **SHORT, store=tmp_path, executor=spawning)
