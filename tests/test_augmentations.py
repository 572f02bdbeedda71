"""Augmentations: what each leaves alone, what it does, and that a view is a function of its key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.data import Augmentation, augmented, mnist, pairs, several_views, two_views, views
from lab.data.augmentations import displacement, erased, warped
from lab.types import BadInput

IMAGE = jax.random.uniform(jax.random.key(9), (8, 8))
EACH = {
    "shift": 2.0,
    "rotation": 0.5,
    "stretch": 0.3,
    "elastic": 1.0,
    "noise": 0.5,
    "erase": 0.4,
    "drop": 0.3,
}


def test_no_augmentation_leaves_an_image_as_it_is():
    view = jax.jit(lambda key: augmented(key, IMAGE, Augmentation(), fill=0.2))(jax.random.key(0))
    np.testing.assert_allclose(view, IMAGE, atol=1e-6)


@pytest.mark.parametrize(("name", "strength"), EACH.items())
def test_each_changes_it_by_the_key_and_traced_as_well(name, strength):
    def view(key, strength):
        return augmented(key, IMAGE, Augmentation(**{name: strength}))

    keys = jax.random.split(jax.random.key(0), 4)
    given = jax.jit(lambda key: view(key, strength))
    one, *others = map(given, keys)
    assert not np.allclose(one, IMAGE)
    assert not all(np.allclose(one, other) for other in others)
    np.testing.assert_array_equal(given(keys[0]), one)
    traced = jax.jit(jax.vmap(view))(keys, jnp.full(4, strength))
    np.testing.assert_allclose(traced[1], others[0], atol=1e-5)


def test_a_shift_by_whole_pixels_is_exact():
    moved = warped(
        IMAGE, jnp.broadcast_to(jnp.array([1.0, -2.0])[:, None, None], (2, 8, 8)), fill=7.0
    )
    np.testing.assert_allclose(moved[:-1, 2:], IMAGE[1:, :-2], atol=1e-6)
    np.testing.assert_allclose(moved[-1], 7.0)
    np.testing.assert_allclose(moved[:, :2], 7.0)


def test_a_quarter_turn_is_exact():
    """The displacement of a rotation about the middle, at the largest angle."""
    how = Augmentation(rotation=jnp.pi / 2)

    @jax.jit
    @jax.vmap
    def turned(seed):  # the angle is uniform up to a quarter: scale it to be one
        key = jax.random.key(seed)
        draws = jax.random.uniform(jax.random.split(key)[0], (5,), minval=-1.0, maxval=1.0)
        exact = how._replace(rotation=how.rotation / draws[0])
        return warped(IMAGE, displacement(key, (8, 8), exact))

    for view in turned(jnp.arange(50)):
        np.testing.assert_allclose(view, np.rot90(IMAGE, -1), atol=1e-4)


def test_erasing_takes_one_square_and_it_can_be_anywhere():
    ones, places = jnp.ones((8, 8)), set()
    erase = jax.jit(jax.vmap(lambda seed: erased(jax.random.key(seed), ones, side=0.5)))
    for hole in np.asarray(erase(jnp.arange(60))) == 0:
        assert hole.sum() == 16
        rows, columns = np.nonzero(hole)
        assert np.ptp(rows) == np.ptp(columns) == 3
        places.add((rows.min(), columns.min()))
    assert {p for p, _ in places} == {p for _, p in places} == set(range(5))


def test_dropping_and_noise_have_their_share_and_size():
    many = jax.jit(jax.vmap(lambda k: augmented(k, IMAGE, Augmentation(drop=0.3), fill=-1.0)))
    dropped = many(jax.random.split(jax.random.key(0), 500))
    assert float((dropped == -1).mean()) == pytest.approx(0.3, abs=0.01)
    loud = jax.jit(jax.vmap(lambda k: augmented(k, IMAGE, Augmentation(noise=0.5))))
    noise = np.asarray(loud(jax.random.split(jax.random.key(1), 500)) - IMAGE[None])
    assert float(noise.std()) == pytest.approx(0.5, abs=0.01)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)


def test_what_comes_in_from_outside_is_the_background_of_standardised_digits():
    """An empty image of standardised digits is not constant; shifted, it is still empty."""
    digits = mnist(200, pool=4).train
    empty = digits.x.min(0)
    how = Augmentation(shift=3.0, rotation=0.5)
    view = jax.jit(lambda key: views(key, empty[None], how, fill=empty))(jax.random.key(0))
    np.testing.assert_allclose(view[0], empty, atol=1e-5)


def test_views_are_independent_of_one_another_and_of_the_batch_they_are_in():
    x = jax.random.normal(jax.random.key(1), (3, 16))
    made = jax.jit(lambda key: two_views(key, x, Augmentation(noise=1.0)))
    noise = np.stack([view - x for view in made(jax.random.key(0))]).reshape(6, 16)
    assert np.abs(np.corrcoef(noise) - np.eye(6)).max() < 0.95
    assert not np.allclose(noise[0], noise[3])


def test_several_views_are_made_apart_and_pairs_hold_two_of_one_example():
    x = jax.random.normal(jax.random.key(1), (3, 16))
    how = Augmentation(noise=1.0)
    made = jax.jit(lambda key: several_views(key, x, how, count=4))(jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), 4)
    one_view = jax.jit(lambda key: views(key, x, how))
    for k, key in enumerate(keys):
        np.testing.assert_allclose(made[:, k], one_view(key), atol=1e-6)
    first, second = pairs(jax.random.key(2), 7, made, size=50)
    flat = np.asarray(made.reshape(12, 16))
    one, other = (np.argmin(np.abs(flat[None] - z[:, None]).sum(-1), 1) for z in (first, second))
    np.testing.assert_array_equal(one // 4, other // 4)
    assert (one != other).all() and len({*one}) == len({*other}) == 12
    with pytest.raises(BadInput, match="views: 1 of each example; give at least 2"):
        pairs(jax.random.key(2), 7, made[:, :1], size=5)


def test_what_is_no_square_image_is_refused():
    with pytest.raises(BadInput, match="x: 15 features are no square image"):
        views(jax.random.key(0), jnp.ones((2, 15)), Augmentation())
    with pytest.raises(BadInput, match=r"side: 1\.5 of the image; give 0 to 1"):
        erased(jax.random.key(0), IMAGE, side=1.5)
