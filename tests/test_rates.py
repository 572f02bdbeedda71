"""Learning rates by layer: what a width asks of Adam, and any optimiser that takes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

from experiments.backpropagation.width_transfer import best_rate, power
from lab.models import by_layer, mlp, rate_factors
from lab.types import BadInput

SIZES = (6, 16, 9, 3)
WIDTHS = (32, 512)
A = jnp.ones(1)


def problem(sizes=SIZES, n=8):
    x_key, y_key = jax.random.split(jax.random.key(7))
    return jax.random.normal(x_key, (n, sizes[0])), jax.random.normal(y_key, (n, sizes[-1]))


def trained(model, params, optimizer, *, steps=4):
    """Params after some steps of half the squared error."""
    x, y = problem()

    def loss(params):
        return jnp.mean((model.apply(params, x) - y) ** 2) / 2

    def step(carried, _):
        params, state = carried
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params


def close(a, b, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), a, b)


@pytest.mark.parametrize(
    "method",
    [
        optax.adam,
        functools.partial(optax.adamw, weight_decay=0.5),
        functools.partial(optax.sgd, momentum=0.9),
    ],
)
def test_each_layer_goes_as_under_a_rate_of_its_own(method):
    model, lr = mlp(SIZES), 0.01
    start = model.init(jax.random.key(0))
    factors = jax.tree.map(lambda leaf: 0.5 + leaf.size % 7, start)
    labels = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), start)
    rates = {jax.tree_util.keystr(p): lr * f for p, f in jax.tree.leaves_with_path(factors)}
    apart = optax.partition({name: method(rate) for name, rate in rates.items()}, labels)
    ours = trained(model, start, by_layer(method(lr), factors))
    theirs = trained(model, start, apart)
    close(ours, theirs, rtol=1e-5, atol=1e-7)
    at_one = trained(model, start, method(lr))
    assert abs(at_one["layer_1"]["kernel"] - ours["layer_1"]["kernel"]).max() > 0.01


def test_a_clipped_norm_is_that_of_all_layers_together():
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    optimizer = by_layer(clipped, {"a": 1.0, "b": 2.0})
    gradient = {"a": jnp.array(3.0), "b": jnp.array(4.0)}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    close(updates, {"a": -0.6, "b": -1.6}, rtol=1e-6)


def test_a_factor_of_a_branch_is_each_leaf_s_and_may_be_traced():
    model = mlp(SIZES)
    start = model.init(jax.random.key(0))

    def ended(factor):
        factors = {"layer_1": factor, "layer_2": {"kernel": factor, "bias": 1.0}, "layer_3": 1.0}
        return trained(model, start, by_layer(optax.adam(0.01), factors))

    lifted = jax.jit(jax.vmap(ended))(jnp.array([0.0, 0.3]))
    still, moved = (jax.tree.map(lambda leaf, i=i: leaf[i], lifted) for i in (0, 1))
    close(still["layer_1"], start["layer_1"], rtol=0)
    assert abs(still["layer_2"]["bias"] - start["layer_2"]["bias"]).max() > 0.01
    close(moved, ended(0.3), rtol=1e-5, atol=1e-6)


def test_updates_keep_their_dtype_whatever_the_factor_s():
    optimizer = by_layer(optax.sgd(1.0), jnp.float32(0.5))
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16 and float(updates["w"][0]) == -0.5


def test_what_an_optimiser_asks_for_beside_the_gradient_reaches_it():
    optimizer = by_layer(optax.contrib.reduce_on_plateau(patience=1, factor=0.5), 2.0)
    params, one = {"w": jnp.ones(1)}, {"w": jnp.ones(1)}
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(one, state, params, value=jnp.float32(1.0))
    assert float(updates["w"][0]) < 2.0


# ------------------------------------------------------------------ what a width asks for


def test_mup_adam_is_adam_on_the_weights_with_the_rates_of_table_3():
    # Yang et al. 2022, Table 3 (Adam): 1 for input weights and all biases, 1 / fan_in for hidden
    # and output weights; times what the multipliers are at the base.
    base, lr = 4.0, 0.01
    mup, plain = mlp(SIZES, parametrisation="mup"), mlp(SIZES)
    w = mup.init(jax.random.key(0))
    kernel, bias = [4.0, 1.0, 1 / 3], [4.0, 3.0, 1.0]  # sqrt n, 1, 1 / sqrt m; sqrt n, sqrt n, 1
    scale = {f"layer_{i + 1}": {"kernel": kernel[i], "bias": bias[i]} for i in range(3)}
    rates = {
        "layer_1": {"kernel": 2.0, "bias": 2.0},
        "layer_2": {"kernel": 4 / 16, "bias": 2.0},
        "layer_3": {"kernel": 2 / 9, "bias": 1.0},
    }
    adam = optax.adam(lr, eps=0.0)
    W = trained(plain, jax.tree.map(jnp.multiply, scale, w), by_layer(adam, rates))
    w = trained(mup, w, by_layer(adam, rate_factors(SIZES, base=base)))
    close(jax.tree.map(jnp.multiply, scale, w), W, rtol=1e-3, atol=1e-4)


def moves(parametrisation, width, seeds=12):
    """How far a first step of Adam moves h_1, h_2 and the output: rms over all."""
    sizes, how = (6, width, width, 3), {"parametrisation": parametrisation, "bias": False}
    model = mlp(sizes, **how)
    adam = by_layer(optax.adam(1e-5), rate_factors(sizes, **how))
    x, _ = problem()

    def squares(key):
        start = model.init(key)
        both = (start, trained(model, start, adam, steps=1))
        before, after = (model.apply(params, x, preactivations=True) for params in both)
        return jnp.stack([jnp.mean((b - a) ** 2) for a, b in zip(before, after, strict=True)])

    keys = jax.random.split(jax.random.key(3), seeds)
    return np.sqrt(jax.jit(lambda keys: jax.lax.map(squares, keys))(keys).mean(0))


@pytest.mark.parametrize(
    ("parametrisation", "powers", "within"),
    [
        ("mup", (0, 0, 0), 0.02),  # 6% over a factor of 16
        ("ntk", (-0.5, -0.5, 0), 0.04),
        # Of order n from the last two layers, n^(3/2) from the hidden one through the last.
        ("standard", (0, 1, 1.5), 0.2),
    ],
)
def test_a_step_of_adam_moves_preactivations_by_their_power_of_the_width(
    parametrisation, powers, within
):
    narrow, wide = (moves(parametrisation, width) for width in WIDTHS)
    found = np.log(wide / narrow) / np.log(WIDTHS[1] / WIDTHS[0])
    np.testing.assert_allclose(found, powers, atol=within)


@pytest.mark.parametrize("parametrisation", ["standard", "ntk", "mup"])
def test_sgd_takes_one_rate_and_so_does_all_at_the_base(parametrisation):
    how = {"parametrisation": parametrisation}
    for factors in (
        rate_factors(SIZES, optimizer="sgd", **how),
        rate_factors((6, 32, 32, 3), base=32, **how),
        rate_factors((6, 3), **how),  # no width
    ):
        assert {*jax.tree.leaves(factors)} == {1.0}
    assert {*jax.tree.leaves(rate_factors(SIZES, **how))} == {1.0} or parametrisation != "standard"


def test_factors_have_the_structure_of_the_params():
    for bias in (False, True):
        params = mlp(SIZES, bias=bias).init(jax.random.key(0))
        factors = rate_factors(SIZES, bias=bias)
        assert jax.tree.structure(factors) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: rate_factors((6,)), r"sizes: \(6,\) should be at least two"),
        (lambda: rate_factors(SIZES, parametrisation="mu"), "parametrisation: 'mu' is not one of"),
        (
            lambda: rate_factors(SIZES, optimizer="lion"),
            "optimizer: 'lion' is not one of adam, sgd",
        ),
        (lambda: rate_factors(SIZES, base=0), "base: 0 should be above 0"),
        (
            lambda: by_layer(optax.sgd(1.0), {"a": 1, "c": 1}).init({"a": A}),
            "factors: 'c' is not among the params: a$",
        ),
        (
            lambda: by_layer(optax.sgd(1.0), {"a": 1}).init({"a": A, "b": {"c": A}}),
            "factors: none for b/c; give one",
        ),
    ],
)
def test_what_has_no_rate_is_said_in_one_line(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong()


# ------------------------------------------------------- estimators of the experiment on widths


def test_the_best_rate_is_where_a_parabola_of_log_losses_is_lowest():
    octaves = np.arange(-12, -3)
    for lowest in (-7.0, -7.3, -8.49):
        logs = 0.3 * (octaves - lowest) ** 2 - 1
        assert best_rate(2.0**octaves, logs) == pytest.approx(2**lowest)
        diverged = np.where(octaves > -6, np.nan, logs)  # beyond its neighbours
        assert best_rate(2.0**octaves, diverged) == pytest.approx(2**lowest)


@pytest.mark.parametrize(
    "logs",
    [
        [0.0, 1.0, 2.0, 3.0],
        [3.0, 2.0, 1.0, 0.0],
        [3.0, 2.0, 1.0, np.nan],
        [np.nan, 1.0, 2.0, 3.0],
        [2.0, 1.0, np.nan, 3.0],
        [np.nan] * 4,
    ],
)
def test_a_best_rate_at_an_end_or_beside_a_diverged_run_is_not_measured(logs):
    assert np.isnan(best_rate(2.0 ** np.arange(4), np.array(logs)))


def test_a_power_of_the_width_is_found_and_one_seed_s_nan_is_its_own():
    width = xr.DataArray([64, 128, 512], dims="width", coords={"width": [64, 128, 512]})
    values = xr.concat([5.0 * width**-1.0, 2.0 * width**0.5, 1.0 * width], "seed")
    values[2, 1] = np.nan
    np.testing.assert_allclose(power(values), [-1.0, 0.5, np.nan], rtol=1e-6)
