"""The potential of diagonal networks: its limits, its conditions, and the flow integrated."""

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import linprog

from lab.theory import basis_pursuit, least_potential, potential
from lab.types import BadInput


@pytest.fixture(scope="module")
def equations():
    rng = np.random.default_rng(5)
    return rng.normal(size=(3, 8)), rng.normal(size=3)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 20.0])
def test_the_potential_is_the_integral_of_its_mirror_map(scale):
    w = np.array([0.7, -1.3])
    mirror = [quad(lambda x: np.arcsinh(x / (2 * scale**2)), 0, one)[0] for one in w]
    np.testing.assert_allclose(potential(w, scale), sum(mirror), rtol=1e-6)


def test_the_potential_of_a_scale_a_coordinate_is_the_sum_of_each():
    w, scale = np.array([0.7, -1.3]), np.array([0.2, 5.0])
    alone = [potential(w[i : i + 1], float(scale[i])) for i in range(2)]
    np.testing.assert_allclose(potential(w, scale), sum(alone), rtol=1e-12)


def test_a_large_start_ends_at_the_least_squares_a_small_one_at_basis_pursuit(equations):
    X, y = equations
    d = X.shape[1]
    np.testing.assert_allclose(least_potential(X, y, 1e3), np.linalg.pinv(X) @ y, atol=1e-9)
    # min sum t, -t <= w <= t: another programme than the one that is solved
    eye = np.eye(d)
    bounds = np.block([[eye, -eye], [-eye, -eye]])
    least = linprog(
        np.r_[np.zeros(d), np.ones(d)],
        A_ub=bounds,
        b_ub=np.zeros(2 * d),
        A_eq=np.hstack([X, 0 * X]),
        b_eq=y,
        bounds=(None, None),
    )
    np.testing.assert_allclose(basis_pursuit(X, y), least.x[:d], atol=1e-9)
    np.testing.assert_allclose(least_potential(X, y, 1e-6), least.x[:d], atol=1e-5)
    assert abs(least_potential(X, y, 1.0) - least.x[:d]).max() > 0.1


@pytest.mark.parametrize("scale", [1e-3, 0.3, np.linspace(0.05, 2.0, 8)])
def test_it_solves_and_no_other_solution_has_less_potential(equations, scale):
    X, y = equations
    w = least_potential(X, y, scale)
    np.testing.assert_allclose(X @ w, y, rtol=1e-9)
    null = np.linalg.svd(X)[2][3:]
    np.testing.assert_allclose(null @ np.arcsinh(w / (2 * np.asarray(scale) ** 2)), 0, atol=1e-9)
    ways = np.random.default_rng(1).normal(size=(50, 5)) @ null
    for size in (1e-2, 1.0):
        assert all(potential(w + size * way, scale) > potential(w, scale) for way in ways)


@pytest.mark.parametrize("power", [2, 4])
@pytest.mark.parametrize("scale", [0.2, np.linspace(0.3, 1.0, 8)])
def test_the_flow_integrated_ends_there_whatever_the_loss(equations, scale, power):
    X, y = equations
    start = np.repeat(scale, 8) if np.ndim(scale) == 0 else scale

    def flow(t, state):
        u, v = np.split(state, 2)
        miss = X @ (u**2 - v**2) - y
        g = X.T @ (miss + 0.5 * (power == 4) * miss**3)
        return np.r_[-2 * g * u, 2 * g * v]

    end = solve_ivp(flow, (0, 200), np.r_[start, start], "LSODA", rtol=1e-9, atol=1e-11).y[:, -1]
    u, v = np.split(end, 2)
    np.testing.assert_allclose(u**2 - v**2, least_potential(X, y, scale), atol=1e-6)
    np.testing.assert_allclose(u * v, start**2, rtol=1e-5)
    assert abs(u**2 - v**2 - least_potential(X, y, 2 * scale)).max() > 0.001


def test_descent_ends_to_second_order_where_the_u_v_that_it_left_says(equations):
    X, y = equations

    def off(lr):
        u = v = np.full(8, 0.3)
        for _ in range(round(60 / lr)):
            g = X.T @ (X @ (u**2 - v**2) - y)
            u, v = u - 2 * lr * g * u, v + 2 * lr * g * v
        w, left = u**2 - v**2, np.sqrt(u * v)
        return [np.linalg.norm(w - least_potential(X, y, scale)) for scale in (0.3, left)]

    coarse, fine = off(0.008), off(0.004)
    orders = np.log2(np.array(coarse) / np.array(fine))
    np.testing.assert_allclose(orders, [1.0, 2.0], atol=0.1)


def test_what_has_no_solution_is_refused(equations):
    X, y = equations
    with pytest.raises(BadInput, match=r"scale: -1.0; give finite numbers above zero"):
        least_potential(X, y, -1.0)
    with pytest.raises(BadInput, match=r"scale: 0.0; give finite numbers above zero"):
        potential(y, 0.0)
    with pytest.raises(BadInput, match=r"X: shape \(8, 3\); give no more rows than columns"):
        least_potential(X.T, np.ones(8), 1.0)
    with pytest.raises(BadInput, match=r"scale: 1.0 reaches no solution; give a larger"):
        least_potential(np.ones((2, 3)), np.array([1.0, 2.0]), 1.0)
    with pytest.raises(BadInput, match="give one that is X w of some w"):
        basis_pursuit(np.ones((2, 3)), np.array([1.0, 2.0]))
