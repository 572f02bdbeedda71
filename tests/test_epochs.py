"""Batches without replacement: every example once an epoch, in an order of the seed's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab.data import epochs
from lab.dynamics import descent
from lab.sweep import sweep
from lab.types import BadInput
from tests.processes import X, Y

KEY = jax.random.key(4)
COUNT = len(X)


def drawn(key, *, size, steps, count=COUNT):
    """Indices of the batches [steps, size]."""
    one = jax.vmap(lambda t: epochs(key, t, jnp.arange(count), size=size))
    return np.asarray(jax.jit(one)(jnp.arange(steps)))


@pytest.mark.parametrize("size", [1, 4, COUNT])
def test_each_example_comes_exactly_once_an_epoch(size):
    each = drawn(KEY, size=size, steps=3 * COUNT // size).reshape(3, COUNT)
    np.testing.assert_array_equal(np.sort(each), np.broadcast_to(np.arange(COUNT), (3, COUNT)))
    assert (each[0] != each[1]).any() and (each[1] != each[2]).any()


@pytest.mark.parametrize("count", [1, 2, 257, 2**13, 2**13 + 1])
def test_any_number_of_examples_can_be_ordered(count):
    (order,) = drawn(KEY, size=count, steps=1, count=count)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    if count > 2:
        assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 4 / count**0.5


def test_what_a_size_does_not_divide_is_left_out_others_each_time():
    each = drawn(KEY, size=5, steps=4 * 6).reshape(4, 30)  # of 32: two left out
    left = [set(range(COUNT)) - set(epoch) for epoch in each]
    assert all(len(out) == 2 for out in left) and len(set.union(*left)) > 2


def test_batches_are_slices_of_an_order_that_fold_in_draws():
    """The explicit loop: shuffle once an epoch, then slice; and in a sweep as alone."""

    def loss(w, batch):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2)

    def process(lr, seed):
        key = jax.random.fold_in(KEY, seed)
        return descent(
            loss,
            optax.sgd(lr),
            init=lambda: jnp.zeros((X.shape[1], 1)),
            batch=lambda t: epochs(key, t, (X, Y), size=6),
            observe=lambda state, t: {"w": state.params[:, 0]},
        )

    data = sweep(process, {"lr": [0.01, 0.1], "seed": range(2)}, steps=12, every=1)
    w, gradient = np.zeros((X.shape[1], 1), np.float32), jax.jit(jax.grad(loss))
    for epoch in range(3):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 1), epoch)
        order = np.argsort(np.asarray(jax.random.bits(key, (COUNT,))) >> 5, kind="stable")
        for place in range(5):
            t = 5 * epoch + place
            if t <= 12:
                np.testing.assert_allclose(data.w.sel(lr=0.1, seed=1)[t], w[:, 0], atol=1e-6)
            rows = order[6 * place : 6 * place + 6]
            w = w - 0.1 * np.asarray(gradient(w, (X[rows], Y[rows])))


def test_seeds_have_orders_of_their_own_and_every_order_is_as_likely():
    keys = jax.random.split(KEY, 6000)
    orders = jax.vmap(lambda key: epochs(key, 0, jnp.arange(3), size=3))(keys)
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == 6 and np.abs(counts - 1000).max() < 5 * 1000**0.5


@pytest.mark.parametrize(
    ("examples", "size", "line"),
    [
        (X, 33, "size: 33 examples in a batch; there are 32"),
        (X, 0, "size: 0 examples in a batch; give at least 1"),
        ((X, Y[:4]), 2, r"examples: \[4, 32\] of them in different arrays"),
    ],
)
def test_batches_that_cannot_be_drawn_are_refused(examples, size, line):
    with pytest.raises(BadInput, match=line):
        epochs(KEY, 0, examples, size=size)
