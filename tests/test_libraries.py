"""Models as users of Equinox, flax nnx and Haiku write them, in sweeps and against own loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lab.dynamics import descent
from lab.models import from_equinox, from_nnx
from lab.sweep import sweep
from lab.types import BadInput, Model
from tests.processes import X, Y

LRS, SEEDS, STEPS = (0.02, 0.1), range(2), 8
SIZE = X.shape[1]
ROOT = jax.random.key(7)


class Gated(eqx.Module):
    """Arrays, a function, a number and a layer of its own."""

    layer: eqx.nn.MLP
    gate: jax.Array
    squash: object
    power: int

    def __init__(self, key):
        self.layer = eqx.nn.MLP(SIZE, 1, 5, 1, activation=jnp.tanh, key=key)
        self.gate, self.squash, self.power = jnp.ones(1), jax.nn.sigmoid, 2

    def __call__(self, x):
        return self.layer(x) * self.squash(self.gate) ** self.power


class Noisy(nnx.Module):
    """Batch statistics and dropout."""

    def __init__(self, rngs):
        self.first = nnx.Linear(SIZE, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=0.8, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(5, 5, rngs=rngs), nnx.Linear(5, 1, rngs=rngs)])

    def __call__(self, x):
        x = self.drop(jnp.tanh(self.norm(self.first(x))))
        self.hidden = nnx.Intermediate(x)  # not kept
        return self.rest[1](jnp.tanh(self.rest[0](x)))


def init_key(seed):
    return jax.random.fold_in(jax.random.key(3), seed)


def test_an_equinox_module_learns_as_in_its_own_loop():
    model = from_equinox(Gated)

    def process(lr, seed):
        return descent(
            lambda p: jnp.mean((jax.vmap(model.apply, (None, 0))(p, X) - Y) ** 2),
            optax.sgd(lr),
            init=lambda: model.init(init_key(seed)),
            observe=lambda state, t: {"gate": state.params["gate"], "loss": state.loss},
        )

    data = sweep(process, {"lr": LRS, "seed": SEEDS}, steps=STEPS, every=1)
    module = Gated(init_key(1))

    @eqx.filter_jit
    def step(module):
        loss, gradient = eqx.filter_value_and_grad(lambda m: jnp.mean((jax.vmap(m)(X) - Y) ** 2))(
            module
        )
        return eqx.apply_updates(module, jax.tree.map(lambda g: -0.1 * g, gradient)), loss

    for t in range(STEPS):
        np.testing.assert_allclose(data.gate.sel(lr=0.1, seed=1)[t], module.gate, rtol=1e-5)
        module, loss = step(module)
        np.testing.assert_allclose(data.loss.sel(lr=0.1, seed=1)[t + 1], loss, rtol=1e-5)


def test_params_of_equinox_are_arrays_alone():
    leaves = jax.tree.leaves(from_equinox(Gated).init(init_key(0)))
    assert len(leaves) == 5 and all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_modules_that_descent_cannot_move_are_refused():
    class Counting(eqx.Module):
        n: jax.Array

        def __init__(self, key):
            self.n = jnp.arange(3)

        def __call__(self, x):
            return x

    with pytest.raises(BadInput, match=r"make: \.n is of int32; hold it as a NumPy array"):
        from_equinox(Counting)
    with pytest.raises(BadInput, match="make: gives a dict; give a module"):
        from_equinox(lambda key: {"w": jnp.ones(2)})
    with pytest.raises(BadInput, match=r"make: gives a dict; give a flax\.nnx\.Module"):
        from_nnx(lambda rngs: {"w": jnp.ones(2)})


MODEL = from_nnx(Noisy)


def noisy(lr, seed):
    def loss(params, rest, batch, *, key):
        y, rest = MODEL.apply(params, rest, batch[0], key=key)
        return jnp.mean((y - batch[1]) ** 2), rest

    return descent(
        loss,
        optax.sgd(lr),
        init=lambda: MODEL.init(init_key(seed))[0],
        carry=lambda: MODEL.init(init_key(seed))[1],
        batch=lambda t: (X[rows(t)], Y[rows(t)]),
        key=ROOT,
        observe=lambda state, t: {
            "loss": state.loss,
            "means": state.aux["norm"]["mean"],
            "kernel": state.params["rest"][1]["kernel"],
        },
    )


def rows(t):
    return (jnp.arange(8) + 3 * t) % len(X)


def test_an_nnx_module_learns_as_in_its_own_loop_statistics_and_dropout_too():
    data = sweep(noisy, {"lr": LRS, "seed": SEEDS}, steps=STEPS, every=1).sel(lr=0.1, seed=1)
    network = Noisy(nnx.Rngs(init_key(1)))

    @nnx.jit
    def step(network, batch, key):
        """nnx's own jit, with the key that the lab gives dropout."""
        network.drop.rngs.key[...] = jax.random.fold_in(key, 0)
        network.drop.rngs.count[...] = jnp.uint32(0)

        def loss(network):
            return jnp.mean((network(batch[0]) - batch[1]) ** 2)

        value, gradient = nnx.value_and_grad(loss)(network)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(network, nnx.Param), gradient)
        nnx.update(network, params)
        return value

    for t in range(STEPS):
        np.testing.assert_allclose(data.means[t], network.norm.mean[...], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(data.kernel[t], network.rest[1].kernel[...], rtol=1e-4)
        value = step(network, (X[rows(t)], Y[rows(t)]), jax.random.fold_in(ROOT, t))
        np.testing.assert_allclose(data.loss[t + 1], value, rtol=1e-4)
    assert np.ptp(data.means.values, axis=0).min() > 1e-3, "statistics move"


def test_dropout_differs_by_step_and_by_key_and_eval_is_deterministic():
    params, rest = MODEL.init(init_key(0))

    @jax.jit
    @jax.vmap
    def trained(key):
        return MODEL.apply(params, rest, X, key=key)[0]

    keys = jnp.stack(
        [jax.random.fold_in(ROOT, t) for t in range(3)] + [jax.random.fold_in(ROOT, 0)]
    )
    one, two, three, again = np.asarray(trained(keys))
    np.testing.assert_array_equal(one, again)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in [(one, two), (two, three), (one, three)])
    told = [MODEL.apply(params, rest, X, key=key, train=False)[0] for key in keys[:2]]
    still, same = MODEL.apply(params, rest, X, train=False)
    np.testing.assert_array_equal(told[0], still)
    np.testing.assert_array_equal(told[0], told[1])
    jax.tree.map(np.testing.assert_array_equal, same, rest)
    with pytest.raises(BadInput, match="key: None, where the module draws in training"):
        MODEL.apply(params, rest, X)


def test_running_statistics_are_of_the_batches_seen():
    """momentum 0.8 of two batches, and those are what eval mode divides by."""
    model = from_nnx(lambda rngs: nnx.BatchNorm(SIZE, momentum=0.8, rngs=rngs))
    params, rest = model.init(init_key(0))
    for batch in (X[:16], X[16:]):
        _, rest = model.apply(params, rest, batch)
    mean = 0.2 * (0.8 * X[:16].mean(0) + X[16:].mean(0))
    var = 0.64 + 0.2 * (0.8 * X[:16].var(0) + X[16:].var(0))
    np.testing.assert_allclose(rest["mean"], mean, rtol=1e-4, atol=1e-6)
    y, _ = model.apply(params, rest, X, train=False)
    np.testing.assert_allclose(
        y, (X - mean[None]) / np.sqrt(var + 1e-5)[None], rtol=1e-4, atol=1e-5
    )


def test_two_streams_draw_apart():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return jnp.stack([self.one(x), self.two(x)])

    model = from_nnx(Two)
    (one, two), _ = model.apply(*model.init(init_key(0)), jnp.ones(64), key=ROOT)
    assert (one != two).any()


def test_tied_weights_stay_tied():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.there = self.back = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return self.back(self.there(x))

    model = from_nnx(Tied)
    params, rest = model.init(init_key(0))
    assert len(jax.tree.leaves(params)) == 2
    moved = jax.tree.map(lambda p: p + 1.0, params)
    (kernel, bias) = moved["back"]["kernel"], moved["back"]["bias"]
    y, _ = model.apply(moved, rest, jnp.ones((2, 3)))
    np.testing.assert_allclose(y, (jnp.ones((2, 3)) @ kernel + bias[None]) @ kernel + bias[None])


def haiku_like():
    """`init` and `apply` as `hk.without_apply_rng(hk.transform(f))` gives them."""

    def init(key):
        one, two = jax.random.split(key)
        return {
            "mlp/~/linear_0": {"w": jax.random.normal(one, (SIZE, 5)), "b": jnp.zeros(5)},
            "mlp/~/linear_1": {"w": jax.random.normal(two, (5, 1)), "b": jnp.zeros(1)},
        }

    def apply(params, x):
        for name in sorted(params):
            x = (jnp.tanh(x) if name != "mlp/~/linear_0" else x) @ params[name]["w"]
            x = x + params[name]["b"][None]
        return x

    return Model(init, apply)


def test_nested_dicts_as_of_haiku_learn_as_in_their_own_loop():
    model = haiku_like()

    def loss(params):
        return jnp.mean((model.apply(params, X) - Y) ** 2)

    def process(lr, seed):
        return descent(
            loss,
            optax.adam(lr),
            init=lambda: model.init(init_key(seed)),
            observe=lambda state, t: {"loss": loss(state.params)},
        )

    data = sweep(process, {"lr": LRS, "seed": SEEDS}, steps=STEPS, every=1)
    params = model.init(init_key(1))
    opt_state = optax.adam(0.1).init(params)
    step = jax.jit(jax.value_and_grad(loss))
    for t in range(STEPS):
        value, gradient = step(params)
        np.testing.assert_allclose(data.loss.sel(lr=0.1, seed=1)[t], value, rtol=1e-4)
        updates, opt_state = optax.adam(0.1).update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
