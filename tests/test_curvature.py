"""Curvature: known spectra, then dense matrices, finite differences, a hand-written Adam."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

from lab.measures import curvature
from lab.measures.curvature import Operator, Quadrature

SIZE = 30


def root() -> Array:
    """A fresh key for each use: reusing one is an error."""
    return jax.random.key(0)


def rotated(spectrum: list[float] | np.ndarray, seed: int = 0) -> Array:
    """A dense symmetric matrix with this spectrum."""
    spectrum = np.asarray(spectrum, np.float64)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(spectrum.size,) * 2))[0]
    return jnp.asarray((rotation * spectrum) @ rotation.T, jnp.float32)


def padded(*values: float) -> np.ndarray:
    return np.concatenate([values, np.zeros(SIZE - len(values))])


def of_matrix(matrix: Array) -> Operator:
    return Operator(lambda vector: matrix @ vector, jnp.zeros(len(matrix), matrix.dtype))


def quadratic(matrix: Array) -> Callable[[Array], Array]:
    return lambda w: 0.5 * w @ matrix @ w


# name: (matrix, largest eigenvalue, distinct eigenvalues)
SPECTRA = {
    "larger negative eigenvalue": (rotated(padded(3.0, 1.0, -50.0)), 3.0, 4),
    "rank 1": (rotated(padded(7.0)), 7.0, 2),
    "rank 3": (rotated(padded(3.0, 2.0, 1.0)), 3.0, 4),
    "identity": (jnp.eye(SIZE), 1.0, 1),
    "zero": (jnp.zeros((SIZE, SIZE)), 0.0, 1),
    "all negative": (rotated([-1.0, -2.0, -4.0] * (SIZE // 3)), -1.0, 3),
    "minus identity": (-jnp.eye(SIZE), -1.0, 1),
    "tiny rank 3": (1e-8 * rotated(padded(3.0, 2.0, 1.0)), 3e-8, 4),
    "huge rank 3": (1e8 * rotated(padded(3.0, 2.0, 1.0)), 3e8, 4),
    "full rank": (rotated([*np.linspace(-3.0, 2.0, SIZE - 1), 9.0]), 9.0, SIZE),
}
MATRICES = jnp.stack([matrix for matrix, _, _ in SPECTRA.values()])
LARGEST = np.array([largest for _, largest, _ in SPECTRA.values()])
DISTINCT = np.array([distinct for _, _, distinct in SPECTRA.values()])


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    """60 real digits, pooled to 4 x 4 pixels."""
    images, labels = load_digits(return_X_y=True)
    pooled = images[:60].reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16) / 16
    return jnp.asarray(pooled, jnp.float32), jnp.asarray(np.eye(10)[labels[:60]], jnp.float32)


def mlp(params: dict, x: Array) -> Array:
    hidden = jnp.tanh(x @ params["in"]["w"] + params["in"]["b"][None])
    return hidden @ params["out"]["w"] + params["out"]["b"][None]


def mlp_params(seed: int, width: int = 6) -> dict:
    a, b, c, d = jax.random.split(jax.random.key(seed), 4)
    return {
        "in": {"w": jax.random.normal(a, (16, width)), "b": jax.random.normal(b, (width,))},
        "out": {"w": jax.random.normal(c, (width, 10)), "b": jax.random.normal(d, (10,))},
    }


def square(outputs: Array, targets: Array) -> Array:
    return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, axis=-1))


@pytest.fixture(scope="module")
def loss(digits: tuple[Array, Array]) -> Callable[[dict], Array]:
    x, y = digits
    return lambda params: square(mlp(params, x), y)


def dense_hessian(loss: Callable, params: dict) -> np.ndarray:
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda w: loss(unravel(w))))(flat), np.float64)


def like(params: dict, seed: int) -> dict:
    flat, unravel = ravel_pytree(params)
    return unravel(jax.random.normal(jax.random.key(seed), flat.shape))


# Known spectra


@partial(jax.jit, static_argnums=2)
def quadratic_sharpness(matrix: Array, key: Array, k: int) -> Array:
    return curvature.sharpness(quadratic(matrix), jnp.ones(SIZE), key=key, k=k)


@pytest.mark.parametrize("k", [10, 20, SIZE])
@pytest.mark.parametrize("name", SPECTRA)
def test_sharpness_is_the_largest_algebraic_eigenvalue_under_jit(name: str, k: int) -> None:
    matrix, largest, _ = SPECTRA[name]
    measured = quadratic_sharpness(matrix, root(), k)
    scale = float(jnp.abs(matrix).max())
    np.testing.assert_allclose(measured, largest, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("k", [10, 20, 100])
def test_sharpness_is_right_for_every_spectrum_at_once_under_vmap(k: int) -> None:
    keys = jax.random.split(root(), len(MATRICES))
    measured = jax.vmap(lambda A, key: quadratic_sharpness(A, key, k))(MATRICES, keys)
    np.testing.assert_allclose(measured, LARGEST, rtol=1e-4, atol=1e-13)


def test_each_distinct_eigenvalue_is_found_once_and_nan_follows() -> None:
    keys = jax.random.split(root(), len(MATRICES))
    values, residuals = jax.jit(
        jax.vmap(lambda A, key: curvature.top_eigenvalues(of_matrix(A), 20, key=key, k=20))
    )(MATRICES, keys)
    found = np.isfinite(values)
    np.testing.assert_array_equal(np.isfinite(residuals), found)
    np.testing.assert_array_equal(found.sum(1), np.minimum(DISTINCT, 20))
    for row, mask, matrix in zip(values, found, MATRICES, strict=True):
        assert not mask[mask.sum() :].any(), "NaN stands at the end only"
        true = np.unique(np.linalg.eigvalsh(np.asarray(matrix, np.float64)).round(14))
        if mask.sum() < 20:
            distances = np.abs(np.asarray(row)[mask][:, None] - true[None])
            assert distances.min(1).max() <= 1e-5 * max(np.abs(true).max(), 1e-30)


def test_spectrum_ends_are_the_smallest_and_the_largest_eigenvalue() -> None:
    keys = jax.random.split(root(), len(MATRICES))
    low, high = jax.jit(
        jax.vmap(lambda A, key: curvature.spectrum_ends(of_matrix(A), key=key, k=20))
    )(MATRICES, keys)
    true = np.linalg.eigvalsh(np.asarray(MATRICES, np.float64))
    scale = np.abs(true).max(1)
    assert (np.abs(low.value - true[:, 0]) <= low.residual + 1e-5 * scale).all()
    assert (np.abs(high.value - true[:, -1]) <= high.residual + 1e-5 * scale).all()
    np.testing.assert_allclose(low.value[0], -50.0, rtol=1e-5)


def test_an_indefinite_and_a_rank_one_matrix_are_right_in_float64() -> None:
    with jax.enable_x64(True):
        for name in ("larger negative eigenvalue", "rank 1", "rank 3"):
            matrix, largest, distinct = SPECTRA[name]
            # Rounding the matrix to float32 gave it full rank: rebuild the low rank from its ends.
            values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
            exact = jnp.asarray((vectors * values.round(3)) @ vectors.T)
            found, _ = curvature.top_eigenvalues(of_matrix(exact), 10, key=root(), k=10)
            assert found.dtype == jnp.float64
            assert np.isfinite(found).sum() == distinct
            np.testing.assert_allclose(found[0], largest, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_more_products_than_parameters_give_the_whole_spectrum(size: int) -> None:
    spectrum = np.arange(size) - 1.0
    values, _ = curvature.top_eigenvalues(of_matrix(rotated(spectrum)), 12, key=root(), k=12)
    assert values.shape == (12,)
    np.testing.assert_allclose(values[:size], spectrum[::-1], atol=1e-6)
    assert np.isnan(values[size:]).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_a_diverged_run_is_nan_and_its_neighbours_are_right(poison: float) -> None:
    matrices = jnp.where(jnp.arange(len(MATRICES))[:, None, None] == 2, poison, MATRICES)
    keys = jax.random.split(root(), len(MATRICES))
    pair = jax.jit(jax.vmap(lambda A, k: curvature.top_eigenpair(of_matrix(A), key=k, k=20)))(
        matrices, keys
    )
    for part in pair:
        assert np.isnan(part[2]).all() and np.isfinite(np.delete(part, 2, axis=0)).all()
    np.testing.assert_allclose(
        np.delete(pair.value, 2), np.delete(LARGEST, 2), rtol=1e-4, atol=1e-13
    )


def test_one_nan_entry_is_enough_to_make_every_measure_nan() -> None:
    @jax.jit
    def measures(matrix: Array) -> tuple:
        operator = of_matrix(matrix)
        return (
            curvature.spectral_quadrature(operator, key=root(), k=8, probes=2),
            curvature.lanczos(operator.matvec, jnp.ones(SIZE), 8),
            curvature.spectrum_ends(operator, key=root()),
            curvature.trace(operator, key=root()),
        )

    for value in jax.tree.leaves(measures(MATRICES[2].at[3, 4].set(jnp.nan))):
        assert np.isnan(value).all()


# Ritz pairs


def test_the_residual_bounds_the_error_and_is_the_residual() -> None:
    matrix = SPECTRA["full rank"][0]
    true = np.linalg.eigvalsh(np.asarray(matrix, np.float64))
    for k in (2, 5, 9):
        start = jax.random.normal(root(), (SIZE,))
        ritz = curvature.lanczos(lambda v: matrix @ v, start, k)
        nearest = np.abs(np.asarray(ritz.values)[:, None] - true[None]).min(1)
        assert (nearest <= ritz.residuals + 1e-5).all()
        direct = ritz.vectors @ matrix - ritz.values[:, None] * ritz.vectors
        np.testing.assert_allclose(jnp.linalg.norm(direct, axis=1), ritz.residuals, atol=2e-5)
        np.testing.assert_allclose(ritz.vectors @ ritz.vectors.T, np.eye(k), atol=1e-5)


def test_a_few_products_leave_a_residual_that_is_not_small() -> None:
    pair = curvature.top_eigenpair(of_matrix(SPECTRA["full rank"][0]), key=root(), k=3)
    assert pair.residual > 0.1


def test_a_warm_start_from_the_top_vector_needs_two_products() -> None:
    operator = of_matrix(SPECTRA["full rank"][0])
    vector = curvature.top_eigenpair(operator, key=root(), k=SIZE).vector
    warm = curvature.top_eigenpair(operator, vector=vector, k=2)
    np.testing.assert_allclose(warm.value, 9.0, rtol=1e-5)
    assert warm.residual < 1e-3


def test_the_scale_and_sign_of_the_start_do_not_matter() -> None:
    operator, start = of_matrix(SPECTRA["full rank"][0]), jnp.arange(1.0, SIZE + 1)
    reference = curvature.top_eigenpair(operator, vector=start, k=6).value
    for factor in (-1.0, 1e-6, 1e6):
        value = curvature.top_eigenpair(operator, vector=factor * start, k=6).value
        np.testing.assert_allclose(value, reference, rtol=1e-5)


def test_a_zero_start_is_nan_rather_than_a_number() -> None:
    sharpness = jax.jit(lambda v: curvature.sharpness(quadratic(jnp.eye(4)), jnp.ones(4), vector=v))
    assert np.isnan(sharpness(jnp.zeros(4))) and np.isfinite(sharpness(jnp.ones(4)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_sharpness_is_right_or_nan_however_small_the_loss(dtype) -> None:
    """Down to 1.4e-14 sqrt(n) in float32 right, below NaN: never a wrong number of residual 0."""
    with jax.enable_x64(dtype == jnp.float64):
        limits = jnp.finfo(dtype)
        smallest = (3 * limits.tiny) ** 0.5 / (64 * limits.eps)
        matrix = jnp.diag(jnp.array([3.0, 1.0, -5.0], dtype))
        start = jnp.array([0.6, -1.1, 0.7], dtype)
        scales = jnp.asarray(np.geomspace(1e-6, smallest * 1e-6, 61), dtype)
        pair = jax.jit(
            jax.vmap(lambda s: curvature.top_eigenpair(of_matrix(s * matrix), vector=start))
        )(scales)
        right = np.abs(pair.value / scales - 3) < 3e-6
        assert (right | (np.isnan(pair.value) & np.isnan(pair.residual))).all()
        assert right[scales > smallest].all() and np.isnan(pair.value[scales < smallest / 5]).all()
        assert curvature.top_eigenpair(of_matrix(0 * matrix), vector=start).value == 0


# Networks


@pytest.mark.parametrize("seed", [0, 1])
def test_a_network_has_the_eigenvalues_of_its_dense_hessian(loss: Callable, seed: int) -> None:
    params = mlp_params(seed)
    true = np.linalg.eigvalsh(dense_hessian(loss, params))

    @jax.jit
    def measured(p: dict) -> tuple:
        operator = curvature.hessian(loss, p)
        low, high = curvature.spectrum_ends(operator, key=root(), k=40)
        top = curvature.top_eigenvalues(operator, 5, key=root(), k=60).values
        return low, high, top, operator.matvec(high.vector)

    low, high, top, product = measured(params)
    assert true[0] < -0.01 < 0.01 < true[-1], "the network is indefinite: both ends are tested"
    np.testing.assert_allclose(low.value, true[0], rtol=1e-4)
    np.testing.assert_allclose(high.value, true[-1], rtol=1e-5)
    np.testing.assert_allclose(top, true[::-1][:5], rtol=1e-4)
    jax.tree.map(
        lambda p, v: np.testing.assert_allclose(p, high.value * v, atol=1e-3), product, high.vector
    )


def test_the_default_sharpness_is_within_its_residual_of_the_true_one(loss: Callable) -> None:
    params = mlp_params(2)
    true = np.linalg.eigvalsh(dense_hessian(loss, params))[-1]
    pair, value = jax.jit(
        lambda p: (
            curvature.top_eigenpair(curvature.hessian(loss, p), key=root()),
            curvature.sharpness(loss, p, key=root()),
        )
    )(params)
    np.testing.assert_allclose(value, pair.value, rtol=1e-6)
    assert true - float(pair.residual) - 1e-5 <= pair.value <= true + 1e-4


def test_a_vmapped_network_has_the_sharpness_of_each_alone(loss: Callable) -> None:
    runs = [mlp_params(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    solo = jax.jit(lambda p: curvature.sharpness(loss, p, key=root()))
    together, alone = jax.vmap(solo)(stacked), [solo(params) for params in runs]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_hessian_products_agree_with_finite_differences_of_the_gradient(
    digits: tuple[Array, Array],
) -> None:
    with jax.enable_x64(True):
        x, y = (jnp.asarray(np.asarray(part), jnp.float64) for part in digits)
        params, vector = (
            jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), tree)
            for tree in (mlp_params(0), mlp_params(1))
        )
        loss = lambda p: square(mlp(p, x), y)  # noqa: E731
        h = 1e-5
        ahead, behind = (
            jax.jit(jax.grad(loss))(jax.tree.map(lambda p, v, s=s: p + s * v, params, vector))
            for s in (h, -h)
        )
        for product in (
            jax.jit(lambda p, v: curvature.hvp(loss, p, v))(params, vector),
            jax.jit(lambda p, v: curvature.hessian(loss, p).matvec(v))(params, vector),
        ):
            for got, a, b in zip(*map(jax.tree.leaves, (product, ahead, behind)), strict=True):
                assert got.dtype == jnp.float64
                np.testing.assert_allclose(got, (a - b) / (2 * h), rtol=1e-6, atol=1e-8)


def test_gauss_newton_is_the_dense_product_of_jacobians(digits: tuple[Array, Array]) -> None:
    x, y = digits
    params, vector = mlp_params(0), like(mlp_params(0), 3)
    flat, unravel = ravel_pytree(params)
    predict = lambda p: mlp(p, x)  # noqa: E731
    # Cross-entropy: its output Hessian is neither the identity nor diagonal.
    output_loss = lambda z: optax.softmax_cross_entropy(z, y).mean()  # noqa: E731
    J = jax.jit(jax.jacobian(lambda w: predict(unravel(w)).ravel()))(flat)
    H = jax.jit(jax.hessian(lambda z: output_loss(z.reshape(y.shape))))(predict(params).ravel())
    expected = J.T @ (H @ (J @ ravel_pytree(vector)[0]))
    got = ravel_pytree(curvature.gnvp(predict, output_loss, params, vector))[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    low, _ = jax.jit(
        lambda p: curvature.spectrum_ends(
            curvature.gauss_newton(predict, output_loss, p), key=root(), k=40
        )
    )(params)
    assert low.value > -1e-4, "Gauss-Newton is positive semi-definite"


def test_gauss_newton_is_the_hessian_of_a_linear_model(digits: tuple[Array, Array]) -> None:
    x, y = digits
    weights, vector = jnp.ones((16, 10)), jax.random.normal(root(), (16, 10))
    got = curvature.gnvp(lambda w: x @ w, lambda z: square(z, y), weights, vector)
    expected = curvature.hvp(lambda w: square(x @ w, y), weights, vector)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


# Trace and density


def test_the_trace_lies_within_its_error_and_the_error_is_hutchinsons(loss: Callable) -> None:
    params = mlp_params(0)
    dense = dense_hessian(loss, params)
    estimate = jax.jit(
        lambda p: curvature.trace(curvature.hessian(loss, p), key=root(), probes=2_000)
    )(params)
    off_diagonal = dense - np.diag(np.diag(dense))
    np.testing.assert_allclose(
        estimate.error, np.sqrt(2 * (off_diagonal**2).sum() / 2_000), rtol=0.1
    )
    assert abs(estimate.value - np.trace(dense)) < 4 * estimate.error
    assert estimate.error < 0.05 * np.trace(dense), "or else the test shows nothing"


def test_the_trace_of_a_diagonal_matrix_is_exact() -> None:
    value, error = curvature.trace(of_matrix(jnp.diag(jnp.array([3.0, 1.0, -5.0]))), key=root())
    assert (value, error) == (-1.0, 0.0)


def test_the_quadrature_has_the_moments_of_the_spectrum(loss: Callable) -> None:
    params = mlp_params(0)
    true = np.linalg.eigvalsh(dense_hessian(loss, params))
    nodes, weights = jax.jit(
        lambda p: curvature.spectral_quadrature(
            curvature.hessian(loss, p), key=root(), k=20, probes=400
        )
    )(params)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    for power in (1, 2):
        each = (weights * nodes**power).sum(1) * 400
        error = each.std(ddof=1) / 20
        assert abs(each.mean() - (true**power).mean()) < 4 * error
        assert error < 0.2 * (true**power).mean(), "or else the test shows nothing"


def test_an_exhausted_quadrature_is_exact_and_has_no_stray_nodes() -> None:
    operators = [SPECTRA[name][0] for name in ("identity", "zero", "rank 1", "all negative")]
    measure = jax.jit(
        lambda A: curvature.spectral_quadrature(of_matrix(A), key=root(), k=9, probes=3)
    )
    for matrix in operators:
        true = np.linalg.eigvalsh(np.asarray(matrix, np.float64))
        nodes, weights = measure(matrix)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
        assert nodes.max() <= true[-1] + 1e-5 and nodes.min() >= true[0] - 1e-5


def test_the_density_is_the_smoothed_dense_histogram(loss: Callable) -> None:
    params = mlp_params(0)
    true = np.linalg.eigvalsh(dense_hessian(loss, params))
    grid = jnp.linspace(true[0] - 3, true[-1] + 3, 800)
    quadrature = jax.jit(
        lambda p: curvature.spectral_quadrature(
            curvature.hessian(loss, p), key=root(), k=40, probes=200
        )
    )(params)
    density = curvature.spectral_density(quadrature, grid, bandwidth=0.5)
    exact = curvature.spectral_density(
        Quadrature(jnp.asarray(true[None], jnp.float32), jnp.full((1, true.size), 1 / true.size)),
        grid,
        bandwidth=0.5,
    )
    np.testing.assert_allclose(jnp.trapezoid(density, grid), 1, rtol=1e-3)
    assert jnp.trapezoid(jnp.abs(density - exact), grid) < 0.05
    by_hand = np.exp(-0.5 * ((np.asarray(grid)[:, None] - true) / 0.5) ** 2).mean(1)
    np.testing.assert_allclose(exact, by_hand / (0.5 * np.sqrt(2 * np.pi)), rtol=1e-3, atol=1e-6)


# Preconditioners


def test_preconditioned_sharpness_is_that_of_the_dense_product(loss: Callable) -> None:
    params = mlp_params(0)
    P = jax.tree.map(lambda leaf: 0.1 + jnp.abs(leaf), like(params, 7))
    P["in"]["w"] = P["in"]["w"].at[2].set(jnp.inf)
    scale = 1 / np.sqrt(np.asarray(ravel_pytree(P)[0], np.float64))
    expected = np.linalg.eigvalsh(scale[:, None] * dense_hessian(loss, params) * scale)[-1]
    got = jax.jit(lambda p: curvature.preconditioned_sharpness(loss, p, P, key=root(), k=40))(
        params
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_preconditioner_that_is_not_positive_is_nan() -> None:
    loss = quadratic(jnp.eye(2))
    measured = jax.jit(
        lambda P: curvature.preconditioned_sharpness(loss, jnp.ones(2), P, key=root())
    )
    assert np.isfinite(measured(jnp.array([1.0, 2.0])))
    for bad in (0.0, -1.0, jnp.nan):
        assert np.isnan(measured(jnp.array([1.0, bad])))


def test_adams_preconditioner_is_that_of_adam_by_hand() -> None:
    b1, b2, eps, lr = 0.8, 0.9, 1e-3, 0.05
    gradients = np.random.default_rng(0).normal(size=(7, 5))
    gradients[:, 3] = 0.0
    optimizer = optax.chain(
        optax.clip_by_global_norm(1e9), optax.adamw(lr, b1=b1, b2=b2, eps=eps, weight_decay=0.0)
    )
    params = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    state = optimizer.init(params)
    m, nu = np.zeros(5), np.zeros(5)
    for t, g in enumerate(gradients, start=1):
        m, nu = b1 * m + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
        by_hand = (1 - b1**t) * (np.sqrt(nu / (1 - b2**t)) + eps)
        tree = {"a": jnp.asarray(g[:2], jnp.float32), "b": jnp.asarray(g[2:], jnp.float32)}
        updates, state = optimizer.update(tree, state, params)
        P = jax.jit(lambda s: curvature.adam_preconditioner(s, b1=b1, b2=b2, eps=eps))(state)
        flat = np.concatenate([P["a"], P["b"]])
        assert flat[3] == np.inf, "a coordinate that never had a gradient is masked"
        np.testing.assert_allclose(np.delete(flat, 3), np.delete(by_hand, 3), rtol=1e-4)
        # The law that defines P: the step taken is -lr m / P.
        step = np.concatenate([updates["a"], updates["b"]])
        np.testing.assert_allclose(step, -lr * m / flat, rtol=1e-4, atol=1e-9)


def test_adams_preconditioner_counts_the_root_epsilon() -> None:
    optimizer = optax.adam(1.0, eps=0.5, eps_root=0.25)
    gradient = jnp.array([2.0])
    update, state = optimizer.update(gradient, optimizer.init(gradient))
    P = curvature.adam_preconditioner(state, eps=0.5, eps_root=0.25)
    np.testing.assert_allclose(update, -0.1 * gradient / P, rtol=1e-3)


def test_adam_has_no_preconditioner_before_its_first_step() -> None:
    state = optax.adam(0.1).init(jnp.ones(3))
    assert np.isnan(curvature.adam_preconditioner(state)).all()


@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_an_rmsprop_step_is_the_gradient_over_its_preconditioner(eps_in_sqrt: bool) -> None:
    optimizer = optax.rmsprop(0.1, decay=0.9, eps=0.3, eps_in_sqrt=eps_in_sqrt)
    state = optimizer.init(jnp.zeros(3))
    for gradient in (jnp.array([1.0, -2.0, 0.0]), jnp.array([0.5, 3.0, 0.0])):
        update, state = optimizer.update(gradient, state)
        P = curvature.rmsprop_preconditioner(state, eps=0.3, eps_in_sqrt=eps_in_sqrt)
        np.testing.assert_allclose(update, -0.1 * gradient / P, rtol=1e-5, atol=1e-9)
        assert P[2] == jnp.inf


def test_a_vmapped_adam_state_has_a_preconditioner_per_run() -> None:
    optimizer = optax.adam(0.1)
    gradients = jnp.array([[1.0, 2.0], [3.0, 0.0]])

    def run(gradient: Array) -> Array:
        _, state = optimizer.update(gradient, optimizer.init(gradient))
        return curvature.adam_preconditioner(state)

    P = jax.vmap(run)(gradients)
    np.testing.assert_allclose(P, [[0.1, 0.2], [0.3, np.inf]], rtol=1e-4)


# Misuse


def test_misuse_is_refused_with_one_clear_line() -> None:
    operator = of_matrix(jnp.eye(3))
    with pytest.raises(ValueError, match="exactly one"):
        curvature.top_eigenpair(operator)
    with pytest.raises(ValueError, match="exactly one"):
        curvature.top_eigenpair(operator, key=root(), vector=jnp.ones(3))
    with pytest.raises(ValueError, match="k >= 1"):
        curvature.top_eigenpair(operator, key=root(), k=0)
    with pytest.raises(ValueError, match="count: 5 eigenvalues of k=4 products; give 1 to 4"):
        curvature.top_eigenvalues(operator, 5, key=root(), k=4)
    with pytest.raises(ValueError, match="probes >= 2"):
        curvature.trace(operator, key=root(), probes=1)
    with pytest.raises(ValueError, match="probes >= 1"):
        curvature.spectral_quadrature(operator, key=root(), probes=0)
    with pytest.raises(ValueError, match="found 0"):
        curvature.adam_preconditioner(optax.sgd(0.1).init(jnp.ones(2)))
    with pytest.raises(ValueError, match="found 2"):
        two = optax.chain(optax.adam(0.1), optax.adam(0.1))
        curvature.adam_preconditioner(two.init(jnp.ones(2)))
