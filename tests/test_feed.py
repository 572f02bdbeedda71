"""Data that stay on the host give the bits of data that do not, a window of steps at a time."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.sweep import Feed, sweep
from lab.types import BadInput, Dynamics
from tests.processes import digest, files

STEPS, WINDOW = 20, 8
AXES = {"lr": [0.1, 0.2], "seed": range(3)}
LAYOUT = {"width": 2, "blocks": 1}
SETTINGS = {"steps": STEPS, "every": 2, "inspect_every": 4}
X = np.asarray(jax.random.normal(jax.random.key(0), (STEPS, 3)))


def learning(lr, seed, x):
    """Descent on the example of each step."""

    def step(w, t):
        of_step = x[t % len(x)]
        return w - lr * (jnp.dot(w, of_step) - 1) * of_step

    start = jax.random.normal(jax.random.key(seed), (3,))
    return Dynamics(lambda: start, step, lambda w, t: {"w": w}, lambda w, t: {"n": jnp.sum(w**2)})


def batches(first, stop, data=X):
    return {"x": data[first:stop]}


def keys(first, stop):
    return {"x": jax.random.split(jax.random.key(0), stop - first)}


def fed(feed=None, width=LAYOUT, **changed):
    feed = feed or Feed(batches, WINDOW)
    return sweep(learning, AXES, feed=feed, layout=width, **SETTINGS | changed)


@pytest.mark.parametrize("layout", [LAYOUT, {"backend": "wide", "width": 3}], ids=str)
def test_fed_data_give_the_bits_of_data_on_the_device(layout):
    on_device = sweep(learning, AXES, shared={"x": X}, layout=layout, **SETTINGS)
    for window in (WINDOW, np.uint8(5), STEPS):
        assert digest(fed(Feed(batches, window), layout)) == digest(on_device)


def test_a_fed_store_goes_on_and_is_extended_to_the_same_bytes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    data = fed(store=whole, keep=[10])

    class Enough(Exception):
        pass

    def enough(reached):
        raise Enough

    fed(store=cut, steps=12)
    with pytest.raises(Enough):
        fed(store=cut, keep=[10 + 3], on_segment=enough)
    assert digest(fed(store=cut)) == digest(data) == digest(fed())
    kept = {name for name in {**files(cut), **files(whole)} if "kept/" in name}
    ours, theirs = ({n: c for n, c in files(s).items() if n not in kept} for s in (cut, whole))
    assert ours == theirs


def test_no_more_than_a_window_is_asked_for_at_a_time():
    asked, lent = [], np.empty((WINDOW, 3), np.float32)

    def lending(first, stop):
        asked.append((first, stop))
        lent[: stop - first] = X[first:stop]  # and writes over what it gave before
        return {"x": lent[: stop - first]}

    held = Feed(lending, WINDOW).window(0, STEPS)["x"]
    assert not np.shares_memory(held, lent)
    asked.clear()
    data = fed(Feed(lending, WINDOW), {**LAYOUT, "devices": 1})
    assert {*asked} == {(0, 8), (8, 16), (16, 20)}
    assert digest(data) == digest(fed())


def test_a_store_of_other_data_is_refused(tmp_path):
    fed(store=tmp_path)
    with pytest.raises(BadInput, match="array 'x' has other values"):
        fed(Feed(partial(batches, data=X + 1), WINDOW), store=tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_workers_feed_themselves(tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        data = fed(store=tmp_path, executor=pool)
    assert digest(data) == digest(fed())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"feed": batches}, r"feed: <function batches .*> is no Feed; give"),
        ({"feed": Feed(batches, 0)}, "feed: steps: 0 is not a positive int"),
        ({"feed": Feed(batches, 21)}, "feed: steps is 21, more than a run's; give at most 20"),
        ({"feed": Feed(lambda *_: X, 4)}, "feed: a ndarray is no mapping"),
        ({"feed": Feed(lambda *_: {"x": X}, 4)}, r"feed: 'x' has shape \[20, 3\] for steps 0 to 4"),
        ({"feed": Feed(lambda *_: {"y": X[:4]}, 4)}, "feed: dynamics takes no 'y'"),
        ({"feed": Feed(keys, 4)}, "feed: 'x' holds random keys"),
        ({"shared": {"x": X}}, "shared and feed: both give 'x'"),
        ({"width": {"segment": 4}}, "layout: segment is 4, and feed gives 8 steps at a time"),
    ],
    ids=range(9),
)
def test_what_cannot_be_fed_is_refused_in_one_line(given, said):
    with pytest.raises(BadInput, match=f"^{said}") as refused:
        fed(**given)
    assert "\n" not in str(refused.value)


def test_a_window_of_another_shape_is_refused_when_it_comes():
    def shrinking(first, stop):
        return {"x": X[first:stop, : 3 if first < 16 else 2]}

    def ending(first, stop):
        return {"x": X[first:stop]} if first < 16 else {}

    for batches, now in ((shrinking, r"float32\[8, 2\]"), (ending, "None")):
        with pytest.raises(BadInput, match=f"^feed: 'x' is {now} at step 16, where it was float32"):
            fed(Feed(batches, WINDOW))
