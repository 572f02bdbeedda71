"""Feedback alignment against descent, loops written by hand, and its closed form by integration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp

from lab.dynamics import descent, fed_back, feedback, feedback_matrices
from lab.measures import angle, layer_angles
from lab.models import mlp
from lab.objectives import mse
from lab.theory import alignment_angle, alignment_limits, alignment_strength, conserved_matrix
from lab.types import BadInput

SIZES = (4, 6, 5, 3)
RULES = ("backpropagation", "alignment", "direct")
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
KEYS = jax.random.split(jax.random.key(0), 4)
S = np.array([2.0, 1.5, 1.0, 0.7, 0.4])


@pytest.fixture(scope="module")
def examples():
    return jax.random.normal(KEYS[0], (7, 4)), jax.random.normal(KEYS[1], (7, 3))


@pytest.fixture(scope="module")
def params():
    return mlp(SIZES, bias_std=0.3).init(KEYS[2])


def process(rule, params, examples, *, optimizer=None, name="tanh", matrices=None, batch=None):
    return feedback(
        mse,
        optimizer or optax.sgd(0.3),
        rule=rule,
        matrices=feedback_matrices(KEYS[3], params, rule=rule) if matrices is None else matrices,
        init=lambda: params,
        batch=batch or (lambda t: examples),
        observe=lambda state, t: {},
        activation=ACTIVATIONS[name],
    )


def trained(of, steps):
    state = of.init()
    step = jax.jit(of.step)
    for t in range(steps):
        state = step(state, jnp.int32(t))
    return state


def by_hand(rule, params, examples, matrices, name, lr, steps):
    """The rules as their papers write them, in float64."""
    phi = {"tanh": np.tanh, "relu": lambda h: np.maximum(h, 0)}[name]
    slope = {"tanh": lambda h: 1 - np.tanh(h) ** 2, "relu": lambda h: (h > 0) * 1.0}[name]
    x, target = (np.asarray(one, float) for one in examples)
    W = [np.asarray(params[f"layer_{i}"]["kernel"], float) for i in (1, 2, 3)]
    b = [np.asarray(params[f"layer_{i}"]["bias"], float) for i in (1, 2, 3)]
    B = [np.asarray(one, float) for one in matrices]
    for _ in range(steps):
        h1 = x @ W[0] + b[0]
        h2 = phi(h1) @ W[1] + b[1]
        error = (phi(h2) @ W[2] + b[2] - target) / len(x)
        d2 = error @ (B[1] if B else W[2]).T * slope(h2)
        d1 = {
            "backpropagation": lambda d2=d2: d2 @ W[1].T,
            "alignment": lambda d2=d2: d2 @ B[0].T,
            "direct": lambda error=error: error @ B[0].T,
        }[rule]() * slope(h1)
        for i, (a, d) in enumerate(((x, d1), (phi(h1), d2), (phi(h2), error))):
            W[i], b[i] = W[i] - lr * a.T @ d, b[i] - lr * d.sum(0)
    return {f"layer_{i + 1}": {"kernel": W[i], "bias": b[i]} for i in range(3)}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_the_loop_that_its_paper_writes(rule, name, params, examples):
    matrices = feedback_matrices(KEYS[3], params, rule=rule)
    got = trained(process(rule, params, examples, name=name), 5).params
    wanted = by_hand(rule, params, examples, matrices, name, 0.3, 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, wanted)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), got, params)
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("optimizer", [optax.adam(0.01), optax.sgd(0.1, momentum=0.9)])
def test_backpropagation_is_descent_to_rounding_on_batches_too(optimizer, params, examples):
    def batch(t):
        index = jax.random.randint(jax.random.fold_in(KEYS[0], t), (3,), 0, 7)
        return jax.tree.map(lambda leaf: leaf[index], examples)

    model = mlp(SIZES)
    plain = descent(
        lambda p, batch: mse(model.apply(p, batch[0]), batch[1]),
        optimizer,
        init=lambda: params,
        observe=lambda state, t: {},
        batch=batch,
    )
    both = [
        trained(one, 20)
        for one in (
            plain,
            process("backpropagation", params, examples, optimizer=optimizer, batch=batch),
        )
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *both)


def slopes(rule, params, examples, matrices):
    x, y = examples
    return jax.jit(jax.grad(lambda p: mse(fed_back(p, x, matrices, rule=rule), y)))(params)


def test_alignment_by_the_transpose_is_backpropagation_and_outputs_are_the_mlps(params, examples):
    own = tuple(params[f"layer_{i}"]["kernel"] for i in (2, 3))
    through = params["layer_2"]["kernel"] @ params["layer_3"]["kernel"]
    true = slopes("backpropagation", params, examples, ())
    aligned = slopes("alignment", params, examples, own)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), aligned, true)
    direct = layer_angles(slopes("direct", params, examples, (through, own[1])), true)
    assert direct["layer_1"] > 1 and direct["layer_2"] < 0.1  # phi' of layer 2 is not in it
    x, wanted = examples[0], mlp(SIZES).apply(params, examples[0])
    for rule in RULES:
        matrices = feedback_matrices(KEYS[3], params, rule=rule)
        np.testing.assert_allclose(fed_back(params, x, matrices, rule=rule), wanted, rtol=1e-6)


def test_matrices_may_change_with_the_step(params, examples):
    def drawn(t):
        return feedback_matrices(jax.random.fold_in(KEYS[3], t), params, rule="direct")

    state = process("direct", params, examples, matrices=drawn).init()
    for t in range(2):
        changing = process("direct", params, examples, matrices=drawn).step(state, jnp.int32(t))
        fixed = process("direct", params, examples, matrices=drawn(t)).step(state, jnp.int32(t))
        jax.tree.map(np.testing.assert_array_equal, changing, fixed)
        state = changing


@pytest.mark.parametrize("rule", ["alignment", "direct"])
def test_matrices_have_the_variance_of_the_layer_they_lead_to(rule):
    params = mlp((3, 300, 200, 100)).init(KEYS[0])
    matrices = feedback_matrices(KEYS[1], params, rule=rule, gain=2.0)
    for B, units in zip(matrices, (300, 200), strict=True):
        assert B.shape[0] == units
        np.testing.assert_allclose(B.var() * units, 2.0, rtol=0.05)


def test_what_is_not_a_rule_its_matrices_or_an_mlp_is_refused(params, examples):
    with pytest.raises(BadInput, match="rule: 'sign' is not one of backpropagation, alignment, d"):
        feedback_matrices(KEYS[0], params, rule="sign")
    with pytest.raises(BadInput, match=r"shapes \[\(6, 3\), \(5, 3\)\]; alignment takes \[\(6, 5"):
        direct = feedback_matrices(KEYS[0], params, rule="direct")
        process("alignment", params, examples, matrices=direct).init()
    with pytest.raises(BadInput, match="params: of encoder; give those of lab"):
        feedback_matrices(KEYS[0], {"encoder": params}, rule="direct")


@pytest.mark.parametrize("degrees", [1e-4, 1.0, 90.0, 179.9])
def test_an_angle_is_right_in_float32_also_where_its_cosine_is_rounded(degrees):
    turn = np.radians(degrees)
    one = {"a": jnp.array([1e-25]), "b": jnp.array([[0.0]])}
    two = {"a": jnp.float32([np.cos(turn)]), "b": jnp.float32([[np.sin(turn)]])}
    np.testing.assert_allclose(angle(one, two), degrees, rtol=1e-4)
    assert jnp.isnan(angle(one, jax.tree.map(jnp.zeros_like, two)))


def test_a_layers_angle_is_that_of_its_weights_and_biases_together(params, examples):
    matrices = feedback_matrices(KEYS[3], params, rule="alignment")
    update = slopes("alignment", params, examples, matrices)
    true = slopes("backpropagation", params, examples, ())
    got = layer_angles(update, true)
    for name in ("layer_1", "layer_2"):
        u, v = (
            np.concatenate([np.ravel(of[name][part]) for part in ("kernel", "bias")])
            for of in (update, true)
        )
        wanted = np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))
        np.testing.assert_allclose(got[name], wanted, rtol=1e-4)
        assert 5 < wanted < 175
    assert got["layer_3"] < 0.01


def flow(A, B, first, second, times):
    """dW_1 = B E, dW_2 = E W_1ᵀ, integrated: (W_1, W_2) at each time."""
    (o, d), h = A.shape, len(B)

    def slope(t, y):
        W1, W2 = y[: h * d].reshape(h, d), y[h * d :].reshape(o, h)
        E = A - W2 @ W1
        return np.concatenate([(B @ E).ravel(), (E @ W1.T).ravel()])

    start = np.concatenate([first.ravel(), second.ravel()])
    found = solve_ivp(slope, (0, times[-1]), start, t_eval=times, rtol=1e-9, atol=1e-11)
    return [(y[: h * d].reshape(h, d), y[h * d :].reshape(o, h)) for y in found.y.T]


def orthonormal(rng, n, k):
    return np.linalg.qr(rng.normal(size=(n, k)))[0]


def test_the_conserved_matrix_stays_of_any_start_and_feedback():
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(3, 4)), rng.normal(size=(6, 3))
    start = rng.normal(size=(6, 4)), rng.normal(size=(3, 6))

    def conserved(W1, W2, back=B):
        return conserved_matrix(jnp.asarray(W1.T), jnp.asarray(W2.T), jnp.asarray(back))

    ((W1, W2),) = flow(A, B, *start, [1.0])
    np.testing.assert_allclose(conserved(W1, W2), conserved(*start), atol=1e-5)
    assert abs(W1 @ W1.T - start[0] @ start[0].T).max() > 0.3
    other = rng.normal(size=(6, 3))
    assert abs(conserved(W1, W2, other) - conserved(*start, other)).max() > 0.3


@pytest.mark.parametrize("s", [S, np.array([3.0, 1.0, 0.0, 0.0])], ids=["full rank", "rank 2"])
def test_the_angle_follows_its_closed_form(s):
    rng = np.random.default_rng(1)
    o, times = len(s), [0.05, 0.5, 1.0, 2.0, 4.0, 12.0]
    U, V, B = (orthonormal(rng, n, o) for n in (o, 7, 9))
    A = U * s @ V.T
    for (W1, W2), t, said in zip(
        flow(A, B, np.zeros((9, 7)), np.zeros((o, 9)), times),
        times,
        alignment_angle(s, np.array(times)),
        strict=True,
    ):
        cos = (B.T * W2).sum() / np.linalg.norm(B) / np.linalg.norm(W2)
        np.testing.assert_allclose(np.degrees(np.arccos(cos)), said, atol=1e-5)
        m = U.T @ B.T @ W1 @ V
        np.testing.assert_allclose(m, np.diag(alignment_strength(s, t)), atol=1e-6)


def test_early_and_late_the_angle_is_at_its_limits():
    early, late = alignment_limits(S)
    ends = alignment_angle(S, np.array([1e-6, 1e3]))
    np.testing.assert_allclose(ends, (early, late), rtol=1e-6)
    cosines = [(S**p).sum() / np.sqrt(5 * (S ** (2 * p)).sum()) for p in (2, 2 / 3)]
    np.testing.assert_allclose(np.cos(np.radians([early, late])), cosines, rtol=1e-12)
    assert alignment_limits(np.array([3.0])) == (0.0, 0.0)
    np.testing.assert_allclose(alignment_strength(S, 1e3), (2 * S) ** (1 / 3), rtol=1e-12)
    np.testing.assert_allclose(alignment_strength(S, 1e-6), S * 1e-6, rtol=1e-12)


def test_an_angle_is_asked_for_at_times_above_zero_of_some_target():
    with pytest.raises(BadInput, match=r"time: \[0.0\]; give times above zero"):
        alignment_angle(S, np.array([0.0]))
    with pytest.raises(BadInput, match=r"s: \[0.0, 0.0\]; give singular values, one above zero"):
        alignment_limits(np.zeros(2))
    with pytest.raises(BadInput, match=r"time: -1\.0; give finite numbers, zero or more"):
        alignment_strength(S, -1.0)
