"""Self-supervised objectives: the formula as a loop, extremes, and what must be refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import objectives as o
from lab.types import BadInput

SEEDS = st.integers(0, 2**31 - 1)
N, D = 5, 3
TWO_VIEWS = {
    "info_nce": o.info_nce,
    "nt_xent": o.nt_xent,
    "barlow_twins": o.barlow_twins,
    "vicreg": lambda a, b: sum(o.vicreg(a, b)),
    "negative_cosine": o.negative_cosine,
    "alignment": o.alignment,
}


def views(seed):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(N, D))
    return first, first + 0.5 * rng.normal(size=(N, D))


def directions(rows):
    return [row / np.sqrt((row**2).sum()) for row in rows]


def as_jax(*arrays):
    return [jnp.asarray(a, float) for a in arrays]


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.floats(0.05, 5.0))
def test_info_nce_is_the_surprise_at_the_right_second_view(seed, temperature):
    first, second = views(seed)
    a, b = directions(first), directions(second)
    total = 0.0
    for i in range(N):
        among = sum(np.exp(a[i] @ b[j] / temperature) for j in range(N))
        total -= np.log(np.exp(a[i] @ b[i] / temperature) / among) / N
    found = o.info_nce(*as_jax(first, second), temperature=temperature)
    assert float(found) == pytest.approx(total, rel=2e-4, abs=1e-5)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.floats(0.05, 5.0))
def test_nt_xent_is_the_surprise_at_the_other_view_among_all_but_oneself(seed, temperature):
    first, second = views(seed)
    z = directions(np.concatenate([first, second]))
    total = 0.0
    for i in range(2 * N):
        other = (i + N) % (2 * N)
        among = sum(np.exp(z[i] @ z[j] / temperature) for j in range(2 * N) if j != i)
        total -= np.log(np.exp(z[i] @ z[other] / temperature) / among) / (2 * N)
    found = o.nt_xent(*as_jax(first, second), temperature=temperature)
    assert float(found) == pytest.approx(total, rel=2e-4, abs=1e-5)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_barlow_twins_by_a_loop_over_pairs_of_features(seed):
    first, second = views(seed)
    total = 0.0
    for j in range(D):
        for k in range(D):
            c = np.corrcoef(first[:, j], second[:, k])[0, 1]
            total += (1 - c) ** 2 if j == k else 0.3 * c**2
    found = o.barlow_twins(*as_jax(first, second), off_diagonal=0.3)
    assert float(found) == pytest.approx(total, rel=1e-4)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_vicreg_by_loops(seed):
    first, second = views(seed)
    variance = covariance = 0.0
    for z in (first, second):
        c = np.cov(z.T)
        for j in range(D):
            variance += max(0.0, 1.0 - np.sqrt(c[j, j] + 1e-4)) / D
            covariance += sum(c[j, k] ** 2 for k in range(D) if k != j) / D
    invariance = sum((first[i] - second[i]) @ (first[i] - second[i]) for i in range(N)) / N
    found = o.vicreg(*as_jax(first, second))
    np.testing.assert_allclose(found, [invariance, variance, covariance], rtol=1e-4, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_alignment_and_uniformity_by_loops(seed):
    first, second = views(seed)
    a, b = directions(first), directions(second)
    near = np.mean([((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)])
    cubed = np.mean([((x - y) ** 2).sum() ** 1.5 for x, y in zip(a, b, strict=True)])
    pairs = [np.exp(-3 * ((a[i] - a[j]) ** 2).sum()) for i in range(N) for j in range(N) if i != j]
    one, two = as_jax(first, second)
    assert float(o.alignment(one, two)) == pytest.approx(near, rel=1e-4)
    assert float(o.alignment(one, two, power=3)) == pytest.approx(cubed, rel=1e-4)
    assert float(o.uniformity(one, sharpness=3)) == pytest.approx(np.log(np.mean(pairs)), rel=1e-3)


def test_many_directions_at_random_are_as_uniform_as_expected():
    """E exp(-t |z - z'|²) in d dimensions, by the series of the Bessel function it is."""
    from scipy.special import gamma, ive

    d, t = 8, 2.0
    rows = jax.random.normal(jax.random.key(0), (2_000, d))
    exact = gamma(d / 2) * t ** (1 - d / 2) * ive(d / 2 - 1, 2 * t)
    assert float(o.uniformity(rows, sharpness=t)) == pytest.approx(np.log(exact), abs=0.01)


def test_the_target_does_not_move_unless_it_is_asked_to():
    first, second = as_jax(*views(0))
    held = jax.grad(o.negative_cosine, argnums=1)(first, second)
    np.testing.assert_array_equal(held, 0)
    moved = jax.grad(lambda a, b: o.negative_cosine(a, b, stop_gradient=False), argnums=1)
    assert jnp.abs(moved(first, second)).max() > 1e-3


def test_the_distance_of_byol_is_two_and_twice_the_negative_cosine():
    first, second = as_jax(*views(1))
    distance = jnp.mean(jnp.sum((o.unit(first) - o.unit(second)) ** 2, -1))
    np.testing.assert_allclose(2 + 2 * o.negative_cosine(first, second), distance, rtol=1e-5)


def test_only_masked_tokens_count():
    logits = jax.random.normal(jax.random.key(0), (2, 4, 3))
    tokens = jnp.array([[0, 1, 2, 0], [2, 2, 1, 1]])
    masked = jnp.array([[True, False, False, True], [False, False, True, False]])
    surprise = -jax.nn.log_softmax(logits)
    expected = (surprise[0, 0, 0] + surprise[0, 3, 0] + surprise[1, 2, 1]) / 3
    np.testing.assert_allclose(o.masked_prediction(logits, tokens, masked), expected, rtol=1e-6)
    slope = jax.grad(o.masked_prediction)(logits, tokens, masked)
    np.testing.assert_array_equal(slope[~masked], 0)
    assert o.masked_prediction(logits, tokens, jnp.zeros_like(masked)) == 0


@pytest.mark.parametrize("loss", TWO_VIEWS.values(), ids=TWO_VIEWS)
@pytest.mark.parametrize("kind", ["constant", "zero", "huge", "tiny", "alike"])
def test_values_and_gradients_are_finite_for_any_batch(loss, kind):
    first, second = as_jax(*views(2))
    scale = {"constant": 0.0, "zero": 0.0, "huge": 1e15, "tiny": 1e-15, "alike": 1.0}[kind]
    first, second = first * scale, (first if kind == "alike" else second) * scale
    if kind == "constant":
        first, second = first + 3.0, second + 3.0
    if kind == "huge" and loss is TWO_VIEWS["vicreg"]:
        pytest.skip("covariances to the fourth power: float32 ends at 1e9, as in the paper's form")
    value, slope = jax.value_and_grad(loss)(first, second)
    assert jnp.isfinite(value) and jnp.isfinite(slope).all()


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e3, 1e9])
def test_any_temperature_gives_a_finite_loss(temperature):
    first, second = as_jax(*views(3))
    for loss in (o.info_nce, o.nt_xent):
        value, slope = jax.value_and_grad(loss)(first, second, temperature=temperature)
        assert jnp.isfinite(value) and jnp.isfinite(slope).all()
    if temperature > 1:
        np.testing.assert_allclose(
            o.nt_xent(first, second, temperature=temperature), np.log(2 * N - 1), rtol=1e-3
        )


def test_a_batch_of_one_is_nothing_to_tell_apart_or_is_refused():
    one = jnp.ones((1, D))
    assert o.info_nce(one, -one) == 0 and o.nt_xent(one, -one) == 0
    for loss in (o.barlow_twins, o.vicreg):
        with pytest.raises(BadInput, match="1 row in the batch; give at least two"):
            loss(one, one)
    with pytest.raises(BadInput, match="1 row in the batch; give at least two"):
        o.uniformity(one)


@pytest.mark.parametrize("loss", TWO_VIEWS.values(), ids=TWO_VIEWS)
def test_views_of_other_shapes_are_refused(loss):
    with pytest.raises(BadInput, match=r"second: shape \(4, 3\) should be \(5, 3\), as first"):
        loss(jnp.ones((5, 3)), jnp.ones((4, 3)))


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(BadInput, match="temperature: 0; give a positive number"):
        o.info_nce(jnp.ones((2, 2)), jnp.ones((2, 2)), temperature=0)
    with pytest.raises(BadInput, match="masked: shape"):
        o.masked_prediction(jnp.ones((2, 3)), jnp.zeros(2, int), jnp.zeros(3, bool))
