"""Self-supervised objectives: the formula as a loop, extremes, and what must be refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import objectives as o
from lab.data import Augmentation
from lab.models import mlp
from lab.tasks import contrast
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


def test_a_masked_token_that_does_not_exist_gives_nan_and_others_may_be_anything():
    logits, masked = jnp.zeros((3, 4)), jnp.array([True, False, False])
    for missing in (-1, 4):
        wrong = jnp.array([1, missing, 2])
        np.testing.assert_allclose(o.masked_prediction(logits, wrong, masked), np.log(4), rtol=1e-6)
        assert jnp.isnan(o.masked_prediction(logits, wrong, ~masked))


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


@pytest.mark.parametrize("rows", [32, 1000])
@pytest.mark.parametrize("value", [10.1, -0.3, 1e6 + 0.1, 1e-30])
def test_a_batch_that_is_constant_in_float32_has_no_variance(rows, value):
    constant = jnp.full((rows, 2), value)
    np.testing.assert_array_equal(o.cross_correlation(constant, constant), 0)
    assert o.barlow_twins(constant, constant) == 2
    np.testing.assert_allclose(o.vicreg(constant, constant), [0, 1.98, 0], rtol=1e-6)
    varied = normal_rows(rows)
    for first, second in ((constant, constant), (constant, varied), (varied, constant)):
        slope = jax.grad(o.barlow_twins)(first, second)
        np.testing.assert_array_equal(slope, 0)  # a constant correlates with nothing


def normal_rows(rows):
    return jnp.asarray(np.random.default_rng(0).normal(size=(rows, 2)), float)


def test_rows_that_differ_by_rounding_alone_count_as_constant():
    rows = jnp.full((16, 2), 10.1).at[::2].multiply(1 + 3e-7)
    assert jnp.ptp(rows) > 0
    assert o.barlow_twins(rows, rows) == 2


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e18])
def test_objectives_of_angles_and_of_correlations_see_no_scale(scale):
    first, second = as_jax(*views(4))
    for loss in (*(TWO_VIEWS[name] for name in TWO_VIEWS if name != "vicreg"), one_power):
        value, slope = jax.value_and_grad(loss)(first, second)
        scaled_value, scaled_slope = jax.value_and_grad(loss)(scale * first, scale * second)
        np.testing.assert_allclose(scaled_value, value, rtol=1e-5)
        np.testing.assert_allclose(scale * scaled_slope, slope, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(o.uniformity(scale * first), o.uniformity(first), rtol=1e-5)


def one_power(first, second):
    return o.alignment(first, second, power=1)


def test_direction_is_known_down_to_the_smallest_normal_number():
    rows = jnp.array([[3.0, 4.0]])
    for scale in (1e-37, 1e-20, 1.0, 1e20, 1e37):
        np.testing.assert_allclose(o.unit(scale * rows), [[0.6, 0.8]], rtol=1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(o.unit(1e-300 * jnp.array([[3.0, 4.0]])), [[0.6, 0.8]])


def test_the_gradient_of_a_direction_is_the_projection_across_it_over_the_length():
    row, into = jnp.array([1.0, 2.0, -2.0]), jnp.array([0.3, -1.0, 0.5])
    u = row / 3
    for scale in (1e-20, 1.0, 1e20):
        slope = jax.grad(lambda r: o.unit(r) @ into)(scale * row)
        np.testing.assert_allclose(scale * slope, (into - u * (u @ into)) / 3, rtol=1e-5)
    slopes = jax.jit(jax.vmap(jax.jacobian(o.unit)))(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(slopes, 0)  # zero has no direction to turn


def test_rows_that_are_all_zero_are_all_alike():
    zero = jnp.zeros((4, 3))
    assert o.uniformity(zero) == 0
    assert o.uniformity(zero.at[0, 0].set(1.0)) < -0.5
    assert o.nt_xent(zero, zero) == pytest.approx(np.log(7))
    np.testing.assert_array_equal(jax.grad(o.uniformity)(zero), 0)


def test_alike_views_are_aligned_to_the_last_bit_at_any_power():
    first, _ = as_jax(*views(0))
    for power in (0.5, 1, 2, 3):
        value, slope = jax.value_and_grad(o.alignment)(first, first, power=power)
        assert value == 0
        np.testing.assert_array_equal(slope, 0)


def test_features_that_have_nothing_in_common_have_nothing_off_the_diagonal():
    """The sum of all squares less the diagonal's would be rounding, of either sign."""
    for seed in range(3):
        sizes = jnp.asarray(np.random.default_rng(seed).uniform(0.5, 9, 64), float)
        z = jnp.concatenate([jnp.diag(sizes), -jnp.diag(sizes)])
        assert o.vicreg(z, z).covariance == 0
        assert 0 <= o.barlow_twins(z, z, off_diagonal=1.0) < 1e-11


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


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, np.array, jnp.float32, jnp.array])
@pytest.mark.parametrize("value", [0.0, -0.5, np.nan])
def test_a_number_that_is_not_positive_is_refused_wherever_it_is_known(kind, value):
    rows, given = jnp.ones((2, 2)), kind(value)
    told = f"{value}; give a positive number"
    for loss in (o.info_nce, o.nt_xent):
        with pytest.raises(BadInput, match=f"temperature: {told}"):
            loss(rows, rows, temperature=given)
        with pytest.raises(BadInput, match=f"temperature: {told}"):
            jax.jit(lambda r, loss=loss: loss(r, r, temperature=given))(rows)
    with pytest.raises(BadInput, match=f"power: {told}"):
        o.alignment(rows, rows, power=given)
    with pytest.raises(BadInput, match=f"sharpness: {told}"):
        o.uniformity(rows, sharpness=given)


def test_numbers_may_be_traced():
    first, second = as_jax(*views(0))
    temperatures = jnp.array([0.1, 1.0])
    for loss in (o.info_nce, o.nt_xent):
        many = jax.jit(jax.vmap(lambda t, loss=loss: loss(first, second, temperature=t)))
        one_by_one = [loss(first, second, temperature=t) for t in (0.1, np.float32(1.0))]
        np.testing.assert_allclose(many(temperatures), one_by_one, rtol=1e-5)
    power = jax.jit(lambda p: o.alignment(first, second, power=p))(3.0)
    np.testing.assert_allclose(power, o.alignment(first, second, power=3), rtol=1e-5)


def test_masks_of_other_shapes_are_refused():
    with pytest.raises(BadInput, match="masked: shape"):
        o.masked_prediction(jnp.ones((2, 3)), jnp.zeros(2, int), jnp.zeros(3, bool))


def test_without_a_projector_the_loss_compares_the_encoders_own_output():
    encoder, head = mlp((16, 6)), mlp((6, 4))
    x, *pair = jax.random.normal(jax.random.key(1), (3, 9, 16))
    settings = {"how": Augmentation(), "fill": x.min(0), "size": 5, "temperature": 0.5}
    made = [
        contrast(encoder, head, jax.random.key(0), x, projector=p, **settings)
        for p in (True, jnp.array(True), jnp.array(False))
    ]
    params = made[0].init()
    np.testing.assert_allclose(made[1].loss(params, pair), made[0].loss(params, pair), rtol=1e-5)
    own = (encoder.apply(params["encoder"], view) for view in pair)
    np.testing.assert_allclose(
        made[2].loss(params, pair), o.nt_xent(*own, temperature=0.5), rtol=1e-5
    )


def test_pairs_that_are_not_paired_are_of_different_examples():
    encoder, head = mlp((16, 6)), mlp((6, 4))
    x = jnp.arange(9 * 16.0).reshape(9, 16)
    settings = {"how": Augmentation(), "fill": x.min(0), "size": 5, "temperature": 0.5}
    of = {p: contrast(encoder, head, jax.random.key(0), x, paired=p, **settings) for p in (0, 1)}
    first, second = of[1].batch(jnp.int32(3))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(of[0].batch(jnp.int32(3))[1], jnp.roll(first, 1, 0))
