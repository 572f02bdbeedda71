"""In-context regression: its closed forms against simulated tasks, autodiff and integration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.attention import linear_step_saddle
from lab.data import in_context_regression
from lab.models import merged_attention
from lab.theory import in_context
from lab.types import BadInput

EIGENVALUES = jnp.array([2.0, 1.0, 0.25])
CONTEXT = 6


@pytest.mark.parametrize("agreement", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_of_any_linear_layer_is_that_of_simulated_tasks(agreement, seed):
    """Every term counts: random matrices have an even part as large as the odd one."""
    keys = jax.random.split(jax.random.key(seed))
    layer = merged_attention(4, kernel="linear", gain=3.0)
    params = layer.init(keys[0])
    tasks = in_context_regression(
        keys[1], tasks=200_000, context=CONTEXT, eigenvalues=EIGENVALUES, agreement=agreement
    )
    y = layer.apply(params, tasks.query, tasks.context)[:, 0, -1]
    errors = np.asarray((y - tasks.target) ** 2, np.float64)
    theory = in_context.layer_loss(
        params["kq"][0], params["pv"][0], EIGENVALUES, CONTEXT, agreement
    )
    spread = errors.std() / np.sqrt(len(errors))
    assert abs(errors.mean() - theory) < 4 * spread and spread < 0.03 * theory


def test_one_step_of_gradient_descent_is_a_layer_of_linear_attention():
    """The construction: K = P, u = 1 takes the step `P s` from zero on the context's loss."""
    tasks = in_context_regression(
        jax.random.key(0), tasks=5, context=CONTEXT, eigenvalues=EIGENVALUES
    )
    P = jnp.diag(jnp.array([0.3, 0.5, 0.7]))
    kq, pv = jnp.pad(P, (0, 1)), jnp.zeros((4, 4)).at[-1, -1].set(1.0)
    layer = merged_attention(4, kernel="linear")
    got = layer.apply({"kq": kq[None], "pv": pv[None]}, tasks.query, tasks.context)[:, 0, -1]
    for context, query, prediction in zip(tasks.context, tasks.query, got, strict=True):
        x, y = context[:, :-1], context[:, -1]
        step = -P @ jax.grad(lambda w: 0.5 * jnp.mean((x @ w - y) ** 2))(jnp.zeros(3))  # noqa: B023
        np.testing.assert_allclose(prediction, query[0, :-1] @ step, rtol=1e-4)


@pytest.mark.parametrize("agreement", [1.0, 0.5])
def test_the_optimal_step_is_the_minimum_of_the_loss(agreement):
    best = jnp.diag(in_context.optimal_step(EIGENVALUES, CONTEXT, agreement))

    def loss(A):
        return in_context.step_loss(A, EIGENVALUES, CONTEXT, agreement)

    np.testing.assert_allclose(
        loss(best), in_context.optimal_loss(EIGENVALUES, CONTEXT, agreement), rtol=1e-5
    )
    np.testing.assert_allclose(jax.grad(loss)(best), 0.0, atol=1e-5)
    curvature = jax.hessian(loss)(best).reshape(9, 9)
    assert np.linalg.eigvalsh(curvature).min() > 0


def test_a_scalar_step_is_best_among_multiples_of_the_identity():
    steps = np.linspace(0.0, 1.0, 2001)
    losses = jax.vmap(
        lambda a: in_context.step_loss(a * jnp.eye(3), EIGENVALUES, CONTEXT), in_axes=0
    )(jnp.asarray(steps))
    best = in_context.scalar_loss(EIGENVALUES, CONTEXT)
    np.testing.assert_allclose(losses.min(), best, rtol=1e-5)
    assert best > 1.05 * in_context.optimal_loss(EIGENVALUES, CONTEXT)


def test_the_path_of_the_step_is_gradient_flow_of_the_layer_loss():
    """Every weight moves: the flow itself keeps the others at zero and the two alike."""
    d, N, dt = 3, 6, 1e-3
    q = 0.05
    kq = jnp.zeros((d + 1, d + 1)).at[:d, :d].set(q * jnp.eye(d))
    pv = jnp.zeros((d + 1, d + 1)).at[-1, -1].set(np.sqrt(d) * q)

    def loss(weights):
        return in_context.layer_loss(*weights, jnp.ones(d), N)

    def midpoint(weights, _):
        half = jax.tree.map(lambda w, g: w - dt / 2 * g, weights, jax.grad(loss)(weights))
        moved = jax.tree.map(lambda w, g: w - dt * g, weights, jax.grad(loss)(half))
        return moved, in_context.effective_step(*moved)

    _, A = jax.jit(lambda w: jax.lax.scan(midpoint, w, length=1500))((kq, pv))
    time = dt * jnp.arange(1, 1501)
    theory = in_context.step_path(time, float(np.sqrt(d) * q**2), dimension=d, context=N)
    np.testing.assert_allclose(A, theory[:, None, None] * jnp.eye(d)[None], atol=2e-4)
    assert theory[0] < 0.01 and theory[-1] > 0.99 * N / (N + d + 1)


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_a_strict_saddle_with_hardly_a_way_down_holds_up_anisotropic_runs(scale):
    """Critical among all layers, at any scale of keys to values; curvatures are not the same."""
    with jax.enable_x64(True):
        near = jnp.array([-0.1, 0.66, 0.81, 1.04, 1.21, 0.19, 1.7, 0.52])
        λ = jnp.array([2.0, 1.5, 1.0, 0.5, 0.25])
        kq, pv = in_context.swapped_layer(
            in_context.rescaled(in_context.saddle(near, λ, 20), scale)
        )

        def of_all(flat):
            kq, pv = jnp.split(flat, 2)
            return in_context.layer_loss(kq.reshape(6, 6), pv.reshape(6, 6), λ, 20)

        flat = jnp.concatenate([kq.ravel(), pv.ravel()])
        np.testing.assert_allclose(jax.jit(jax.grad(of_all))(flat), 0.0, atol=1e-8)
        np.testing.assert_allclose(of_all(flat), 2.8416, atol=1e-4)
        curvatures = np.linalg.eigvalsh(jax.jit(jax.hessian(of_all))(flat))
        down = {1.0: [-0.00573, -0.00418], 1.2: [-0.0066, -0.0049]}[scale]
        np.testing.assert_allclose(curvatures[:2], down, atol=2e-4)
        assert curvatures[2] > -1e-6 and curvatures[-1] > 90


def test_waits_at_the_saddle_are_those_of_runs_that_are_there():
    """Exponential waits have mean 1; who left early, or went elsewhere, does not count."""
    step, late = np.arange(0, 40_001, 100), 2_000
    rng = np.random.default_rng(0)
    left = np.concatenate([rng.exponential(1 / 3e-4, 4_000), np.full(9, np.inf)])
    loss = np.where(step < left[:, None], linear_step_saddle.LOSS, 1.1)
    loss[-9:] = 3.5  # elsewhere
    data = xr.Dataset(
        {"loss": (("seed", "step"), loss), "curvature": (("seed", "step"), 0.05 + 0 * loss)},
        {"step": step},
        {"lr": 0.006, "late": late},
    )
    waits = linear_step_saddle.waited(data)
    assert len(waits) == (np.ceil(left[:-9] / 100) * 100 > late).sum()
    assert abs(waits.mean() - 1) < 4 / np.sqrt(len(waits)) + 50 * 3e-4


def test_two_soft_heads_take_a_step_on_centred_inputs_and_lose_one_example():
    d, N, ε = 3, 6, 0.01
    b = N / (N + d)
    head = jnp.pad(ε * b * jnp.eye(d), (0, 1))
    value = jnp.zeros((d + 1, d + 1)).at[-1, -1].set(1 / (2 * ε))
    params = {"kq": jnp.stack([head, -head]), "pv": jnp.stack([value, -value])}
    tasks = in_context_regression(
        jax.random.key(0), tasks=200_000, context=N, eigenvalues=jnp.ones(d)
    )
    y = merged_attention(d + 1, heads=2).apply(params, tasks.query, tasks.context)[:, 0, -1]
    x, labels = tasks.context[..., :-1], tasks.context[..., -1:]
    s = jnp.mean(labels * (x - x.mean(1, keepdims=True)), 1)
    np.testing.assert_allclose(y, b * jnp.sum(tasks.query[:, 0, :-1] * s, -1), atol=0.05)
    errors = np.asarray((y - tasks.target) ** 2, np.float64)
    spread = errors.std() / np.sqrt(len(errors))
    assert abs(errors.mean() - in_context.softmax_pair_loss(d, N)) < 4 * spread < 0.04


def test_tasks_have_the_moments_they_are_said_to_have():
    tasks = in_context_regression(
        jax.random.key(0), tasks=50_000, context=2, eigenvalues=EIGENVALUES, agreement=0.6
    )
    x, y = np.asarray(tasks.context[..., :-1]), np.asarray(tasks.context[..., -1])
    asked = np.asarray(tasks.query[:, 0, :-1])
    np.testing.assert_array_equal(tasks.query[..., -1], 0.0)
    for inputs in (x[:, 0], x[:, 1], asked):
        np.testing.assert_allclose(np.cov(inputs.T), np.diag(EIGENVALUES), atol=0.05)
    np.testing.assert_allclose(np.var(y, axis=0), EIGENVALUES.sum(), rtol=0.05)
    np.testing.assert_allclose(np.var(tasks.target), EIGENVALUES.sum(), rtol=0.05)
    # E (x·w)(x_i·w_c)(x·x_i) = ρ Σ λ²
    products = np.asarray(tasks.target) * y[:, 0] * np.sum(x[:, 0] * asked, -1)
    expected = 0.6 * np.sum(np.square(EIGENVALUES))
    assert abs(products.mean() - expected) < 5 * products.std() / np.sqrt(len(products))


def test_with_full_agreement_labels_are_exactly_linear():
    tasks = in_context_regression(jax.random.key(1), tasks=3, context=5, eigenvalues=EIGENVALUES)
    for context, query, target in zip(*tasks, strict=True):
        w = np.linalg.lstsq(context[:, :-1], context[:, -1], rcond=None)[0]
        np.testing.assert_allclose(context[:, :-1] @ w, context[:, -1], atol=1e-5)
        np.testing.assert_allclose(query[0, :-1] @ w, target, atol=1e-4)


@pytest.mark.parametrize("name", ["tasks", "context"])
def test_no_task_or_no_example_is_refused(name):
    sizes = {"tasks": 2, "context": 3, name: 0}
    with pytest.raises(BadInput, match=f"{name}: 0"):
        in_context_regression(jax.random.key(0), eigenvalues=EIGENVALUES, **sizes)
