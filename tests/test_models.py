"""Networks: what they are at init in closed form, and how far one step of SGD moves them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.models import deep_linear, end_to_end, mlp

WIDTHS = np.array([64, 256, 1024])


def inputs(seed=0, n=5, d=8):
    return jax.random.normal(jax.random.key(1000 + seed), (n, d))


def many(model, keys=2000):
    return jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(1), keys))


def half_squared_error(model, params, x, y):
    return jnp.sum((model.apply(params, x) - y) ** 2) / (2 * x.shape[0])


# ------------------------------------------------------------------------------ the function


@pytest.mark.parametrize("parametrisation", ["standard", "ntk", "mup"])
def test_apply_is_the_formula_written_out_by_hand(parametrisation):
    sizes, gain, std, beta = (8, 16, 9, 3), 1.7, 0.3, 0.6
    model = mlp(
        sizes,
        parametrisation=parametrisation,
        gain=gain,
        bias_std=std,
        bias_scale=beta,
    )
    params = model.init(jax.random.key(3))
    A = {
        "standard": [1, 1, 1],
        "ntk": [np.sqrt(gain / 8), np.sqrt(gain / 16), np.sqrt(gain / 9)],
        "mup": [np.sqrt(16), 1, 1 / np.sqrt(9)],
    }[parametrisation]
    B = {"standard": [1, 1, 1], "ntk": [1, 1, 1], "mup": [np.sqrt(16), np.sqrt(9), 1]}
    x = np.asarray(inputs(), np.float64)
    expected = []
    for i in range(3):
        layer = params[f"layer_{i + 1}"]
        h = A[i] * x @ np.asarray(layer["kernel"], np.float64)
        h = h + beta * B[parametrisation][i] * np.asarray(layer["bias"], np.float64)[None]
        expected.append(h)
        x = np.tanh(h)
    hs = model.apply(params, inputs(), preactivations=True)
    for h, by_hand in zip(hs, expected, strict=True):
        np.testing.assert_allclose(h, by_hand, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(model.apply(params, inputs()), hs[-1])


@pytest.mark.parametrize("model", [mlp((8, 16, 3)), deep_linear((8, 16, 3))])
def test_a_batch_is_its_examples_one_by_one(model):
    params = model.init(jax.random.key(0))
    one_by_one = jnp.stack([model.apply(params, x) for x in inputs()])
    np.testing.assert_allclose(model.apply(params, inputs()), one_by_one, rtol=2e-5, atol=2e-6)


def test_the_reference_network_has_tanh_plain_weights_and_zero_biases():
    params = mlp().init(jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == {
        "layer_1": {"kernel": (196, 64), "bias": (64,)},
        "layer_2": {"kernel": (64, 64), "bias": (64,)},
        "layer_3": {"kernel": (64, 10), "bias": (10,)},
    }
    assert all(not layer["bias"].any() for layer in params.values())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(params))
    for layer in params.values():
        m = layer["kernel"].shape[0]
        assert float(layer["kernel"].std()) == pytest.approx(1 / np.sqrt(m), rel=0.1)


def test_bias_false_leaves_only_kernels_and_an_odd_network_odd():
    model = mlp((8, 16, 3), bias=False)
    params = model.init(jax.random.key(0))
    assert all(set(layer) == {"kernel"} for layer in params.values())
    np.testing.assert_allclose(model.apply(params, -inputs()), -model.apply(params, inputs()))


def test_gain_zero_is_the_zero_function():
    for parametrisation in ("standard", "ntk", "mup"):
        model = mlp((8, 16, 3), gain=0.0, parametrisation=parametrisation)
        assert not model.apply(model.init(jax.random.key(0)), inputs()).any()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("tanh", np.tanh),
        ("relu", lambda h: np.maximum(h, 0)),
        ("gelu", lambda h: h * 0.5 * (1 + np.vectorize(math.erf)(h / np.sqrt(2)))),
        ("silu", lambda h: h / (1 + np.exp(-h))),
        ("softplus", lambda h: np.log1p(np.exp(h))),
        ("erf", np.vectorize(math.erf)),
        ("identity", lambda h: h),
    ],
)
def test_an_activation_is_the_function_of_its_name(name, function):
    model = mlp((1, 1, 1), activation=name, bias=False)
    params = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0)))
    h = np.linspace(-3, 3, 25)[:, None]
    np.testing.assert_allclose(model.apply(params, jnp.asarray(h)), function(h), atol=3e-6)


def test_an_activation_may_be_any_function():
    params = mlp((8, 16, 3)).init(jax.random.key(0))
    by_name, by_hand = mlp((8, 16, 3), activation="tanh"), mlp((8, 16, 3), activation=jnp.tanh)
    np.testing.assert_array_equal(by_name.apply(params, inputs()), by_hand.apply(params, inputs()))


# ---------------------------------------------------------------- distributions at init


@pytest.mark.parametrize("parametrisation", ["standard", "ntk", "mup"])
def test_first_preactivations_have_variance_gain_x2_over_d_plus_bias_variance(parametrisation):
    model = mlp((8, 16, 3), parametrisation=parametrisation, gain=1.5, bias_std=0.5, bias_scale=2.0)
    x = inputs(n=1)[0]
    h = jax.vmap(lambda p: model.apply(p, x, preactivations=True)[0])(many(model))
    expected = 1.5 * float(x @ x) / 8 + (0.5 * 2.0) ** 2
    # 32,000 squared normals: relative standard error sqrt(2 / 32000) = 0.8%
    assert float(jnp.mean(h**2)) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize(
    ("parametrisation", "share"), [("standard", 1), ("ntk", 1), ("mup", 1 / 16)]
)
def test_identity_network_outputs_have_variance_gain_to_the_depth(parametrisation, share):
    model = mlp((8, 32, 16, 3), activation="identity", parametrisation=parametrisation, gain=0.8)
    x = inputs(n=1)[0]
    y = jax.vmap(model.apply, (0, None))(many(model), x)
    assert float(jnp.mean(y**2)) == pytest.approx(share * 0.8**3 * float(x @ x) / 8, rel=0.08)


def test_relu_with_gain_two_keeps_the_scale():
    model = mlp((8, 32, 32, 32), activation="relu", gain=2.0)
    x = inputs(n=1)[0]
    for h in jax.vmap(lambda p: model.apply(p, x, preactivations=True))(many(model)):
        assert float(jnp.mean(h**2)) == pytest.approx(2 * float(x @ x) / 8, rel=0.08)


def test_tanh_preactivation_variance_follows_the_mean_field_map():
    # q_2 = E tanh(sqrt(q_1) z)^2, exactly, since the first pre-activations are normal.
    model = mlp((8, 32, 32, 1))
    x = inputs(n=1)[0]
    z, weight = np.polynomial.hermite_e.hermegauss(60)
    q1 = float(x @ x) / 8
    q2 = weight @ np.tanh(np.sqrt(q1) * z) ** 2 / weight.sum()
    h = jax.vmap(lambda p: model.apply(p, x, preactivations=True)[1])(many(model))
    assert float(jnp.mean(h**2)) == pytest.approx(q2, rel=0.03)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.1, 3))
def test_ntk_and_standard_are_one_function_of_rescaled_weights(seed, gain):
    sizes = (8, 16, 9, 3)
    x = inputs()
    standard = mlp(sizes, gain=gain, bias_std=0.5)
    ntk = mlp(sizes, gain=gain, bias_std=0.5, parametrisation="ntk")
    params, w = standard.init(jax.random.key(seed)), ntk.init(jax.random.key(seed))
    np.testing.assert_allclose(standard.apply(params, x), ntk.apply(w, x), rtol=1e-4, atol=1e-5)
    rescaled = {
        name: {
            "kernel": layer["kernel"] * np.sqrt(layer["kernel"].shape[0] / gain),
            "bias": layer["bias"],
        }
        for name, layer in params.items()
    }
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), rescaled, w)


# ------------------------------------------------------------------------- after a step


def test_mup_sgd_is_sgd_on_the_weights_with_the_rates_of_table_3():
    # Yang et al. 2022, Table 3 (SGD): fan_out for input weights and biases, 1 for hidden weights,
    # 1 / fan_in for output weights.
    sizes, lr = (8, 16, 9, 3), 0.05
    mup, plain = mlp(sizes, parametrisation="mup"), mlp(sizes)
    x, y = inputs(), inputs(1, d=3)
    w = mup.init(jax.random.key(0))
    kernel, bias = [4.0, 1.0, 1 / 3], [4.0, 3.0, 1.0]
    scale = {f"layer_{i + 1}": {"kernel": kernel[i], "bias": bias[i]} for i in range(3)}
    rate = jax.tree.map(lambda a: lr * a**2, scale)
    W = jax.tree.map(lambda a, v: a * v, scale, w)
    for _ in range(5):
        dw = jax.grad(lambda w: half_squared_error(mup, w, x, y))(w)
        dW = jax.grad(lambda W: half_squared_error(plain, W, x, y))(W)
        w = jax.tree.map(lambda v, g: v - lr * g, w, dw)
        W = jax.tree.map(lambda v, r, g: v - r * g, W, rate, dW)
    assert float(jnp.abs(W["layer_1"]["bias"]).max()) > 1e-3  # it did move
    np.testing.assert_allclose(mup.apply(w, x), plain.apply(W, x), rtol=1e-4, atol=1e-6)


def exponents(parametrisation):
    """Powers of the width with which one SGD step moves h_1, h_2 and the output."""
    x, y = inputs(n=3), inputs(1, n=3, d=2)

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def moves(width, key):
        # Biases move at a rate of their own, which would hide weights that stand still.
        model = mlp((8, width, width, 2), parametrisation=parametrisation, bias=False)
        params = model.init(key)
        gradient = jax.grad(lambda p: half_squared_error(model, p, x, y))(params)
        # A rate small enough that standard, at the largest width, is still moved to first order.
        after = jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradient)
        before, after = (model.apply(p, x, preactivations=True) for p in (params, after))
        return jnp.stack([jnp.mean((b - a) ** 2) for a, b in zip(before, after, strict=True)])

    size = [
        jnp.sqrt(moves(int(n), jax.random.split(jax.random.key(5), 4)).mean(axis=0)) for n in WIDTHS
    ]
    return np.polyfit(np.log(WIDTHS), np.log(np.stack(size)), 1)[0]


@pytest.mark.parametrize(
    ("parametrisation", "first", "second", "output"),
    [("standard", -0.5, 0.5, 1), ("ntk", -0.5, -0.5, 0), ("mup", 0, 0, 0)],
)
def test_one_step_moves_each_layer_by_its_power_of_the_width(
    parametrisation, first, second, output
):
    np.testing.assert_allclose(exponents(parametrisation), [first, second, output], atol=0.15)


# ---------------------------------------------------------------- lifting and arithmetic


@pytest.mark.parametrize("parametrisation", ["standard", "ntk", "mup"])
def test_scales_may_be_traced_inside_vmap(parametrisation):
    x = inputs()

    def output(gain, std, scale):
        model = mlp(
            (8, 16, 3),
            gain=gain,
            bias_std=std,
            bias_scale=scale,
            parametrisation=parametrisation,
        )
        return model.apply(model.init(jax.random.key(0)), x)

    points = jnp.array([[0.5, 0.0, 1.0], [2.0, 0.3, 0.7]])
    lifted = jax.jit(jax.vmap(lambda p: output(p[0], p[1], p[2])))(points)
    for row, point in zip(lifted, points, strict=True):
        expected = output(*(float(v) for v in point))
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [mlp((8, 16, 3)), deep_linear((8, 16, 3))])
def test_init_lifted_over_keys_is_bitwise_the_single_init(model):
    keys = jax.random.split(jax.random.key(1), 4)
    lifted = jax.vmap(model.init)(keys)
    alone = [model.init(key) for key in jax.random.split(jax.random.key(1), 4)]
    jax.tree.map(lambda a, *b: np.testing.assert_array_equal(a, jnp.stack(b)), lifted, *alone)


def test_no_two_layers_share_their_draws():
    params = mlp((8, 8, 8, 8), bias_std=1.0).init(jax.random.key(0))
    kernels = [np.asarray(layer["kernel"]) for layer in params.values()]
    kernels += [np.asarray(W) for W in deep_linear((8, 8, 8)).init(jax.random.key(0))]
    for i, a in enumerate(kernels):
        for b in kernels[:i]:
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.5


def test_parameters_are_float64_when_jax_is():
    with jax.enable_x64(True):
        for model in (mlp((8, 16, 3)), *(deep_linear((8, 9, 3), init=i) for i in INITS)):
            params = model.init(jax.random.key(0))
            assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float64")}
            assert model.apply(params, jnp.ones(8)).dtype == jnp.float64


# -------------------------------------------------------------------- deep linear networks

INITS = ("normal", "orthogonal", "balanced")


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(("hidden", "c"), [((), 3), ((6,), 1), ((7, 5, 9), 4)])
def test_apply_is_the_end_to_end_matrix(init, hidden, c):
    model = deep_linear((5, *hidden, c), scale=1.3, init=init)
    params = model.init(jax.random.key(c))
    assert [W.shape for W in params] == list(zip((5, *hidden), (*hidden, c), strict=True))
    x = inputs(d=5)
    W = functools.reduce(np.matmul, [np.asarray(W, np.float64) for W in params])
    np.testing.assert_allclose(end_to_end(params), W, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.apply(params, x), np.asarray(x) @ W, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", INITS)
def test_the_end_to_end_matrix_grows_as_scale_to_the_depth(init):

    def params(scale):
        return deep_linear((6, 7, 5, 4), scale=scale, init=init).init(jax.random.key(0))

    one, half = params(1.0), params(0.5)
    np.testing.assert_allclose(end_to_end(half), end_to_end(one) / 8, rtol=1e-5, atol=1e-7)
    for W, expected in zip(jax.vmap(params)(jnp.array([0.5])), half, strict=True):
        np.testing.assert_allclose(W[0], expected, rtol=1e-5, atol=1e-6)


def test_normal_layers_have_standard_deviation_scale_over_root_fan_in():
    params = many(deep_linear((6, 9, 4), scale=0.3))
    for W, m in zip(params, (6, 9), strict=True):
        assert float(W.std()) == pytest.approx(0.3 / np.sqrt(m), rel=0.02)
        assert abs(float(W.mean())) < 0.002


def test_orthogonal_layers_have_every_singular_value_at_scale():
    for W in deep_linear((6, 9, 9, 4), scale=0.3, init="orthogonal").init(jax.random.key(0)):
        np.testing.assert_allclose(np.linalg.svd(W)[1], 0.3, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(6, 4), (6, 4, 4), (3, 8, 5, 6), (6, 6, 2, 9, 2)])
def test_balanced_layers_are_balanced_and_stay_so_to_first_order(sizes):
    model = deep_linear(sizes, scale=0.7, init="balanced")
    params = model.init(jax.random.key(0))
    x, y = inputs(d=sizes[0]), inputs(1, d=sizes[-1])
    gradient = jax.grad(lambda p: half_squared_error(model, p, x, y))(params)
    for W, V, dW, dV in zip(params, params[1:], gradient, gradient[1:], strict=False):
        np.testing.assert_allclose(W.T @ W, V @ V.T, atol=2e-6)
        np.testing.assert_allclose(dW.T @ W + W.T @ dW, dV @ V.T + V @ dV.T, atol=2e-5)


def test_balanced_end_to_end_matrix_is_normal_with_variance_one_over_d():
    products = jax.vmap(end_to_end)(many(deep_linear((6, 8, 8, 4), init="balanced")))
    assert float(products.std()) == pytest.approx(1 / np.sqrt(6), rel=0.02)
    fourth = float(jnp.mean(products**4) / jnp.mean(products**2) ** 2)
    assert fourth == pytest.approx(3, rel=0.05)


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mlp((8,)), r"^sizes: \(8,\) should be at least two positive widths"),
        (lambda: mlp((8, 0, 3)), r"^sizes: \(8, 0, 3\) should be"),
        (lambda: mlp(activation="tahn"), r"^activation: 'tahn' is not one of tanh, relu"),
        (lambda: mlp(parametrisation="mip"), r"^parametrisation: 'mip' is not one of standard, n"),
        (lambda: mlp(gain=-1.0), r"^gain: -1.0 should be at least 0"),
        (lambda: mlp(bias_std=float("nan")), r"^bias_std: nan should be at least 0"),
        (lambda: deep_linear((3,)), r"^sizes: \(3,\) should be at least two"),
        (lambda: deep_linear((3, -1)), r"^sizes: \(3, -1\) should be"),
        (lambda: deep_linear((3, 3), init="norm"), r"^init: 'norm' is not one of normal, orth"),
        (lambda: deep_linear((3, 2, 4), init="balanced"), r"narrower than 3, the narrower end"),
    ],
)
def test_bad_arguments_are_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", [mlp((8, 16, 3)), deep_linear((8, 16, 3))])
def test_inputs_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match=r"^x: shape \(5, 7\) should end in 8"):
        model.apply(model.init(jax.random.key(0)), jnp.ones((5, 7)))
