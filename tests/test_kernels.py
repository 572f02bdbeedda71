"""Kernels of wide networks against integrals, transforms, exact regression and plain descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.measures import linearised, tangent_kernel
from lab.models import mlp
from lab.objectives import mse
from lab.theory import (
    Spectrum,
    descent_path,
    eigenlearning,
    empirical_spectrum,
    hypercube_spectrum,
    relu_kernel,
)
from lab.types import BadInput

RNG = np.random.default_rng(0)
D = 6
SIX = Spectrum(np.ones(1), np.full(1, 6.0))
CUBE = np.array(np.meshgrid(*[[-1.0, 1.0]] * D)).reshape(D, -1).T


def test_the_relu_kernel_is_the_tangent_kernel_of_a_wide_network():
    x = jnp.array(RNG.normal(size=(5, D)))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    model = mlp((D, 40_000, 1), activation="relu", parametrisation="ntk", gain=2.0, bias=False)
    # Inputs of mean square 1 / 2: then the multiplier of the first layer is of length 1.
    apply = lambda params, x: model.apply(params, x * (D / 2) ** 0.5)  # noqa: E731
    found = tangent_kernel(apply, model.init(jax.random.key(0)), x)[:, 0, :, 0]
    np.testing.assert_allclose(found, relu_kernel(x @ x.T), atol=0.06)


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_the_kernel_of_more_layers_is_the_mean_tangent_kernel_of_wide_networks(depth):
    """Over 40, whose fluctuations at width 512 are some percent each."""
    x = jnp.array(np.random.default_rng(1).normal(size=(4, D)))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    sizes = (D, *[512] * (depth - 1), 1)
    model = mlp(sizes, activation="relu", parametrisation="ntk", gain=2.0, bias=False)
    apply = lambda params, x: model.apply(params, x * (D / 2) ** 0.5)  # noqa: E731
    one = jax.jit(lambda key: tangent_kernel(apply, model.init(key), x)[:, 0, :, 0])
    found = np.mean([one(key) for key in jax.random.split(jax.random.key(0), 40)], 0)
    np.testing.assert_allclose(found, relu_kernel(x @ x.T, depth=depth), rtol=0.03, atol=0.03)


def test_with_an_inner_weight_slopes_of_the_inner_layer_count_as_often():
    c = np.linspace(-1, 1, 9)
    parts = relu_kernel(c, inner=7.0) - relu_kernel(c, inner=0.0)
    np.testing.assert_allclose(parts, 7 * (relu_kernel(c) - relu_kernel(c, inner=0.0)))
    np.testing.assert_allclose(relu_kernel(c, inner=0.0)[[0, 4, 8]], [0, 1 / np.pi, 1], atol=1e-12)
    np.testing.assert_allclose(relu_kernel(jnp.array(c)), relu_kernel(c), atol=1e-6)


def test_the_spectrum_on_the_hypercube_is_that_of_the_whole_kernel_matrix():
    found = hypercube_spectrum(relu_kernel, D)
    whole = np.linalg.eigvalsh(relu_kernel(CUBE @ CUBE.T / D)) / len(CUBE)
    np.testing.assert_allclose(
        np.sort(np.repeat(found.values, found.counts.astype(int))), whole, atol=1e-12
    )
    product = CUBE[:, 0] * CUBE[:, 1]
    image = relu_kernel(CUBE @ CUBE.T / D) @ product / len(CUBE)
    np.testing.assert_allclose(image, found.values[2] * product, atol=1e-12)


def test_on_the_circle_eigenvalues_are_in_closed_form():
    """Of waves of frequency k: 6 / π², 1/2, 2 (k² + 3) / (π² (k² - 1)²) for k even, 0 for odd."""
    found = np.fft.rfft(relu_kernel(np.cos(2 * np.pi * np.arange(4096) / 4096))).real / 4096
    k = np.arange(2.0, 12.0)
    even = 2 * (k**2 + 3) / (np.pi**2 * (k**2 - 1) ** 2)
    np.testing.assert_allclose(found[:2], [6 / np.pi**2, 0.5], rtol=1e-5)
    np.testing.assert_allclose(found[2:12], np.where(k % 2 == 0, even, 0), atol=1e-7)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_eigenlearning_is_the_error_of_kernel_regression_on_normal_features(ridge):
    n, values, noise = 60, np.arange(1, 301.0) ** -1.3, 0.1
    power = np.arange(1, 301.0) ** -2.0
    learned = eigenlearning(Spectrum(values, np.ones(300)), power, n, ridge=ridge, noise=noise)
    errors, fits = [], []
    for _ in range(300):
        phi = RNG.normal(size=(n, 300)) * np.sqrt(values)
        y = phi @ np.sqrt(power / values) + noise**0.5 * RNG.normal(size=n)
        at = np.linalg.solve(phi @ phi.T + ridge * np.eye(n), y)
        wrong = phi.T @ at * np.sqrt(values) - np.sqrt(power)
        errors.append(wrong @ wrong + noise)
        fits.append(np.mean((phi @ phi.T @ at - y) ** 2))
    assert np.mean(errors) == pytest.approx(learned.test, rel=0.04)
    assert np.mean(fits) == pytest.approx(learned.train, rel=0.04, abs=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_of_a_finite_population_the_others_are_learned_as_rows_of_a_random_rotation_say(ridge):
    """Noise in the labels of all; n a third of N, where formulas of independent draws are far."""
    rng = np.random.default_rng(2)
    N, n, noise = 150, 50, 0.1
    values, power = 3.0 * np.arange(1, N + 1.0) ** -1.3, np.arange(1, N + 1.0) ** -2.0
    errors = []
    for _ in range(150):
        u = np.linalg.qr(rng.normal(size=(N, N)))[0] * rng.choice([-1.0, 1.0], N)
        kernel = N * (u * values) @ u.T
        y = N**0.5 * u @ np.sqrt(power) + noise**0.5 * rng.normal(size=N)
        at = np.linalg.solve(kernel[:n, :n] + ridge * np.eye(n), y[:n])
        wrong = (kernel[:, :n] @ at - y) ** 2
        errors.append([wrong[n:].mean(), wrong[:n].mean()])
    spectrum = Spectrum(values, np.ones(N))
    learned = eigenlearning(spectrum, power, n, ridge=ridge, noise=noise, population=N)
    assert np.mean(errors, 0) == pytest.approx(learned[2:], rel=0.03, abs=1e-12)
    independent = eigenlearning(spectrum, power, n, ridge=ridge, noise=noise)
    assert abs(independent.test / learned.test - 1) > 0.05


def test_a_spectrum_at_hand_is_the_kernels_and_its_powers_are_those_of_the_target():
    rng = np.random.default_rng(3)
    x, targets = CUBE[:40], rng.normal(size=(40, 3))
    kernel = relu_kernel(x @ x.T / D)
    spectrum, power = empirical_spectrum(kernel, targets)
    for degree in (1, 2):
        np.testing.assert_allclose(
            40**degree * np.sum(spectrum.values**degree),
            np.trace(np.linalg.matrix_power(kernel, degree)),
        )
    assert (np.diff(spectrum.values) <= 0).all()
    quadratic = np.einsum("ac,ab,bc->c", targets, kernel, targets) / 40**2
    np.testing.assert_allclose(spectrum.values @ power, quadratic)
    np.testing.assert_allclose(power.sum(0), np.mean(targets**2, 0))


def test_what_is_learned_adds_up_to_the_number_of_examples():
    spectrum = hypercube_spectrum(relu_kernel, 12)
    learned = eigenlearning(spectrum, np.eye(13)[2], 100)
    assert np.sum(spectrum.counts * learned.learnability) == pytest.approx(100)
    assert 0 < learned.test < eigenlearning(spectrum, np.eye(13)[2], 50).test


def test_the_path_is_that_of_descent_on_the_kernel_one_step_after_another():
    features = RNG.normal(size=(8, 20))
    kernel, y, lr = features @ features.T, RNG.normal(size=8), 0.35
    across = RNG.normal(size=(3, 20)) @ features.T
    coefficients, outputs, fresh = np.zeros(8), [np.zeros(8)], [np.zeros(3)]
    for _ in range(40):
        coefficients = coefficients - lr / 8 * (kernel @ coefficients - y)
        outputs.append(kernel @ coefficients)
        fresh.append(across @ coefficients)
    times = np.array([0, 1, 2, 7, 40])
    assert lr * np.linalg.eigvalsh(kernel)[-1] / 8 > 1  # modes that overshoot are among them
    found = descent_path(kernel, y, times, lr=lr)
    np.testing.assert_allclose(found, np.array(outputs)[times], atol=1e-10)
    found = descent_path(kernel, y, times, lr=lr, across=across)
    np.testing.assert_allclose(found, np.array(fresh)[times], atol=1e-10)


def test_linearised_training_is_descent_on_the_tangent():
    """On a network of two outputs: by its tangent, one step after another."""
    model, keys = mlp((4, 50, 2)), jax.random.split(jax.random.key(1), 4)
    params, x, y, z = (
        model.init(keys[0]),
        *(jax.random.normal(k, s) for k, s in zip(keys[1:], [(6, 4), (6, 2), (3, 4)], strict=True)),
    )

    def outputs(moved, x):
        value, change = jax.jvp(lambda p: model.apply(p, x), (params,), (moved,))
        return value + change

    slope, lr = jax.jit(jax.grad(lambda moved: mse(outputs(moved, x), y))), 0.1
    moved, seen = jax.tree.map(jnp.zeros_like, params), {}
    for t in range(51):
        seen[t] = outputs(moved, z), outputs(moved, x)
        moved = jax.tree.map(lambda m, g: m - lr * g, moved, slope(moved))
    steps = jnp.array([0, 1, 50])
    at = jax.jit(lambda p, z: linearised(model.apply, p, x, y, z, lr=lr, steps=steps))(params, z)
    own = linearised(model.apply, params, x, y, lr=lr, steps=steps)
    for i, t in enumerate([0, 1, 50]):
        np.testing.assert_allclose(at[i], seen[t][0], atol=2e-5)
        np.testing.assert_allclose(own[i], seen[t][1], atol=2e-5)
    assert float(jnp.abs(seen[50][0] - seen[0][0]).max()) > 0.3


def test_a_kernel_of_less_than_full_rank_moves_nothing_beyond_it():
    """Two equal examples with other labels: the difference of their labels is never learned."""
    apply = lambda w, x: x @ w  # noqa: E731
    x, y = jnp.ones((2, 1)), jnp.array([[0.0], [1.0]])
    found = linearised(apply, jnp.ones((1, 1)), x, y, lr=0.5, steps=jnp.array([0, 10_000]))
    np.testing.assert_allclose(found[1], 0.5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: hypercube_spectrum(relu_kernel, 0), "dimension: 0; give at least 1"),
        (
            lambda: eigenlearning(Spectrum(np.ones(1), np.full(1, 9.0)), np.ones(1), 9),
            "samples: 9; without ridge give 1 to 8",
        ),
        (
            lambda: eigenlearning(Spectrum(np.ones(1), np.ones(1)), np.ones(1), 1, ridge=-1.0),
            "ridge: -1.0 and noise 0.0 should be at least 0",
        ),
        (lambda: relu_kernel(np.ones(1), depth=0), "depth: 0; give at least 1"),
        (
            lambda: eigenlearning(SIX, np.ones(1), 5, population=5.5),
            "population: 5.5; give 6 or more",
        ),
        (
            lambda: empirical_spectrum(np.eye(2), np.ones((3, 1))),
            "targets: of 3 inputs; give 2, as the kernel",
        ),
        (
            lambda: descent_path(np.eye(2), np.ones(2), np.arange(3), lr=4.0),
            "lr: 4.0; give one between 0 and 4",
        ),
    ],
)
def test_what_has_no_answer_is_refused_in_one_line(given, said):
    with pytest.raises(BadInput) as refused:
        given()
    assert str(refused.value) == said
