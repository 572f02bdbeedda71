"""Any optimiser, any loss, any state: descent and what goes beside it, against loops by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from lab.dynamics import averaged, best_so_far, bootstrap, descent, sharpness_aware
from lab.sweep import sweep
from lab.types import BadInput, Dynamics
from tests.processes import X, Y

STEPS = 12
LRS = (0.02, 0.1)
CURVATURES = jnp.array([1.0, 3.0, 0.2])


def start():
    return {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.float32(0.3)}


def loss(params):
    beyond = params["w"] + params["b"]
    return 0.5 * jnp.sum(CURVATURES * beyond**2) + 0.1 * jnp.sum(jnp.cos(params["w"]))


def flat(params):
    return jnp.append(params["w"], params["b"])


def by_hand(step, state, shown=lambda state: flat(state[0])):
    """What a loop over step(state, t) comes by, the start first."""
    _, seen = jax.lax.scan(lambda s, t: (step(s, t), shown(s)), state, jnp.arange(STEPS + 1))
    return np.asarray(seen)


def observe(state, t):
    return {"w": flat(state.params), "loss": state.loss}


def swept(process, **rest):
    return sweep(process, {"lr": LRS}, steps=STEPS, every=1, **rest)


def plain(optimizer, asks=True):
    """The loop of optax's own documentation."""

    def step(state, t):
        params, opt_state = state
        value, grad = jax.value_and_grad(loss)(params)
        more = {"value": value, "grad": grad, "value_fn": loss} if asks else {}
        updates, opt_state = optimizer.update(grad, opt_state, params, **more)
        return optax.apply_updates(params, updates), opt_state

    return by_hand(step, (start(), optimizer.init(start())))


OPTIMISERS = {
    "plateau": lambda lr: optax.chain(
        optax.sgd(lr), optax.contrib.reduce_on_plateau(patience=2, rtol=0.5, cooldown=1)
    ),
    "lbfgs": lambda lr: optax.lbfgs(memory_size=3),
    "backtracking": lambda lr: optax.chain(
        optax.sgd(10 * lr), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
    ),
    "polyak": lambda lr: optax.polyak_sgd(scaling=lr),
    "schedule-free": lambda lr: optax.contrib.schedule_free_sgd(lr),
    "adam": optax.adam,
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_that_asks_for_more_than_the_gradient_is_given_it(name):
    def process(lr):
        return descent(loss, OPTIMISERS[name](lr), init=start, observe=observe)

    w = swept(process).w
    for lr in LRS:
        optimizer = optax.with_extra_args_support(OPTIMISERS[name](lr))
        np.testing.assert_allclose(w.sel(lr=lr), plain(optimizer), rtol=2e-4, atol=1e-5)


def test_lookahead_descends_by_its_fast_params():
    def optimizer(lr):
        return optax.lookahead(optax.sgd(lr), sync_period=4, slow_step_size=0.5)

    def init():
        return optax.LookaheadParams.init_synced(start())

    def seen(params):
        return jnp.stack([flat(params.fast), flat(params.slow)])

    def process(lr):
        return descent(
            loss, optimizer(lr), init=init, observe=lambda state, t: {"w": seen(state.params)}
        )

    def step(state, t):
        updates, opt_state = optimizer(0.1).update(
            jax.grad(loss)(state[0].fast), state[1], state[0]
        )
        return optax.apply_updates(state[0], updates), opt_state

    expected = by_hand(step, (init(), optimizer(0.1).init(init())), lambda state: seen(state[0]))
    np.testing.assert_allclose(swept(process).w.sel(lr=0.1), expected, rtol=1e-5)
    assert np.abs(expected[-1, 0] - start()["w"][0]).max() > 0.1


def uphill(rho, lr, params):
    """Foret et al.'s step, written out."""
    g = flat(jax.grad(loss)(params))
    above = flat(params) + rho * g / jnp.sqrt(jnp.sum(g**2))
    gradient = flat(jax.grad(loss)({"w": above[:3], "b": above[3]}))
    moved = flat(params) - lr * gradient
    return {"w": moved[:3], "b": moved[3]}


def test_sharpness_aware_descends_by_the_gradient_uphill_and_at_rho_zero_is_descent():
    def process(lr, rho):
        return sharpness_aware(loss, optax.sgd(lr), rho=rho, init=start, observe=observe)

    data = sweep(process, {"lr": LRS, "rho": [0.0, 1e-4, 0.3]}, steps=STEPS, every=1)
    for lr in LRS:
        expected = by_hand(lambda s, t, lr=lr: (uphill(0.3, lr, s[0]),), (start(),))
        np.testing.assert_allclose(data.w.sel(lr=lr, rho=0.3), expected, rtol=1e-5, atol=1e-6)
        descending = plain(optax.with_extra_args_support(optax.sgd(lr)))
        np.testing.assert_allclose(data.w.sel(lr=lr, rho=0.0), descending, rtol=1e-5, atol=1e-6)
        near = np.abs(data.w.sel(lr=lr, rho=1e-4) - descending).max()
        assert near < 1e-3 < np.abs(expected - descending).max()


def test_opaque_sam_of_optax_is_sharpness_aware():
    def optimizer(lr):
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
        return optax.contrib.sam(optax.sgd(lr), ascent, opaque_mode=True)

    sam = swept(lambda lr: descent(loss, optimizer(lr), init=start, observe=observe))
    own = swept(
        lambda lr: sharpness_aware(loss, optax.sgd(lr), rho=0.3, init=start, observe=observe)
    )
    np.testing.assert_allclose(sam.w, own.w, rtol=1e-5, atol=1e-6)


def test_transparent_sam_of_optax_climbs_and_descends_by_turns():
    def optimizer(lr):
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
        return optax.contrib.sam(optax.sgd(lr), ascent)

    data = swept(lambda lr: descent(loss, optimizer(lr), init=start, observe=observe))
    expected = plain(optimizer(0.1), asks=False)
    np.testing.assert_allclose(data.w.sel(lr=0.1), expected, rtol=1e-5, atol=1e-6)
    assert data.loss.sel(lr=0.1)[2] > data.loss.sel(lr=0.1)[1], "the first step climbs"


def test_sharpness_aware_carries_on_from_where_it_stands_and_draws_once_a_step():
    def objective(w, carried, *, key):
        return jnp.sum((w - jax.random.normal(key, (2,))) ** 2), carried + w

    process = sharpness_aware(
        objective,
        optax.sgd(0.5),
        rho=0.1,
        init=lambda: jnp.ones(2),
        carry=lambda: jnp.zeros(2),
        key=jax.random.key(1),
        observe=lambda state, t: {},
    )
    state = process.step(process.init(), jnp.int32(0))
    np.testing.assert_array_equal(state.aux, 1)
    g = 2 * (1 - jax.random.normal(jax.random.fold_in(jax.random.key(1), 0), (2,)))
    expected = 1 - 0.5 * (g + 2 * 0.1 * g / jnp.linalg.norm(g))
    np.testing.assert_allclose(state.params, expected, rtol=1e-5)


def test_at_a_minimum_sharpness_aware_stays():
    process = sharpness_aware(
        lambda w: jnp.sum(w**2),
        optax.sgd(0.1),
        rho=0.5,
        init=lambda: jnp.zeros(3),
        observe=lambda state, t: {},
    )
    np.testing.assert_array_equal(process.step(process.init(), jnp.int32(0)).params, 0)


class Network(linen.Module):
    """With batch statistics and dropout."""

    @linen.compact
    def __call__(self, x, train=True):
        x = linen.BatchNorm(use_running_average=not train, momentum=0.8)(linen.Dense(4)(x))
        return linen.Dense(1)(linen.Dropout(0.3, deterministic=not train)(jnp.tanh(x)))


def test_batch_statistics_are_carried_and_dropout_draws_anew():
    """A state beside the params, batches and keys, against flax's own loop."""
    network, root = Network(), jax.random.key(5)
    fresh = network.init(jax.random.key(0), X, train=False)

    def batch(t):
        index = (jnp.arange(8) + 3 * t) % len(X)
        return X[index], Y[index]

    def objective(params, stats, batch, key):
        y, new = network.apply(
            {"params": params, "batch_stats": stats}, batch[0],
            mutable=["batch_stats"], rngs={"dropout": key},
        )  # fmt: skip
        return jnp.mean((y - batch[1]) ** 2), new["batch_stats"]

    def process(lr):
        return descent(
            objective,
            optax.sgd(lr),
            init=lambda: fresh["params"],
            carry=lambda: fresh["batch_stats"],
            batch=batch,
            key=root,
            observe=lambda state, t: {
                "kernel": state.params["Dense_1"]["kernel"],
                "means": state.aux["BatchNorm_0"]["mean"],
                "loss": state.loss,
            },
        )

    def step(state, t):
        params, stats, _ = state
        key = jax.random.fold_in(root, t)
        (value, stats), gradient = jax.value_and_grad(objective, has_aux=True)(
            params, stats, batch(t), key
        )
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), stats, value

    def shown(state):
        means, kernel = state[1]["BatchNorm_0"]["mean"], state[0]["Dense_1"]["kernel"]
        return jnp.concatenate([means, kernel[:, 0], state[2][None]])

    data = swept(process).sel(lr=0.1)
    first, _ = objective(
        fresh["params"], fresh["batch_stats"], batch(0), jax.random.fold_in(root, 0)
    )
    expected = by_hand(step, (fresh["params"], fresh["batch_stats"], first), shown)
    got = np.concatenate([data.means, data.kernel[..., 0], data.loss.values[:, None]], 1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert np.ptp(expected[:, 0]) > 1e-3, "statistics move"


def test_what_a_loss_returns_beside_its_value_is_in_the_state():
    def objective(w, x):
        return jnp.sum((w - x) ** 2), {"residual": w - x}

    process = descent(
        objective,
        optax.sgd(0.25),
        init=lambda: jnp.zeros(2),
        batch=lambda t: t + jnp.arange(1.0, 3.0),
        has_aux=True,
        observe=lambda state, t: {"w": state.params, "residual": state.aux["residual"]},
    )
    data = sweep(lambda seed: process, {"seed": [0]}, steps=3, every=1).isel(seed=0)
    x = np.arange(1.0, 3.0) + np.arange(3)[:, None]
    np.testing.assert_allclose(data.residual[0], -x[0])
    np.testing.assert_allclose(data.residual[1:], data.w[:-1] - x, rtol=1e-6)


def test_step_zero_is_no_rise_whatever_the_batch():
    """The loss at the start and that of the first step are one number."""
    process = descent(
        lambda w, x: w * 0.0 + x,
        optax.sgd(0.1),
        init=lambda: jnp.float32(0),
        batch=lambda t: jnp.array([5.0, 6.0, 4.0, 7.0])[t],
        observe=lambda state, t: {"loss": state.loss, "rises": state.rises},
    )
    data = sweep(lambda seed: process, {"seed": [0]}, steps=4, every=1).isel(seed=0)
    np.testing.assert_array_equal(data.loss, [5, 5, 6, 4, 7])
    np.testing.assert_array_equal(data.rises, [0, 0, 1, 1, 2])
    lower = process.init()._replace(loss=jnp.float32(4.9))  # as rounding may have it
    assert process.step(lower, jnp.int32(0)).rises == 0


def test_bootstrap_too_starts_from_the_loss_of_its_start():
    process = bootstrap(
        lambda w, target, x: (w - target - x) ** 2,
        optax.sgd(0.1),
        init=lambda: jnp.float32(2),
        average=0.9,
        batch=lambda t: 3.0 + t,
        observe=lambda state, t: {"loss": state.loss},
    )
    data = sweep(lambda seed: process, {"seed": [0]}, steps=2, every=1).isel(seed=0)
    np.testing.assert_allclose(data.loss[:2], 9.0)


def halving(lr):
    return Dynamics(
        lambda: {"w": jnp.array([8.0, -4.0]), "n": jnp.int32(0)},
        lambda state, t: {"w": (1 - lr) * state["w"], "n": state["n"] + 1},
        lambda state, t: {"w": state["w"], "n": state["n"]},
    )


def seen(both, t):
    return {"w": both.average["w"], "n": both.average["n"], "counted": both.count}


@pytest.mark.parametrize(("first", "every"), [(0, 1), (3, 1), (4, 3)])
def test_stochastic_weight_averaging_is_the_equal_mean_from_its_start_on(first, every):
    def process(lr):
        whole = halving(lr)
        return averaged(whole, lambda state: state, start=first, every=every, observe=seen)

    data = sweep(process, {"lr": [0.5]}, steps=STEPS, every=1).isel(lr=0)
    path = 0.5 ** np.arange(STEPS + 1)[:, None] * np.array([8.0, -4.0])
    for t in range(STEPS + 1):
        of = [path[i] for i in range(first, t + 1, every)] or [path[t]]
        np.testing.assert_allclose(data.w[t], np.mean(of, 0), rtol=1e-6)
        assert data.counted[t] == len(range(first, t + 1, every))
    assert data.n[-1] == range(first, STEPS + 1, every)[-1], "integers are the last, not a mean"


def test_an_exponential_moving_average_is_its_recursion_and_decay_an_axis():
    def process(decay):
        return averaged(halving(0.5), lambda state: state, decay=decay, start=2, observe=seen)

    data = sweep(process, {"decay": [0.0, 0.9]}, steps=STEPS, every=1)
    path = 0.5 ** np.arange(STEPS + 1)[:, None] * np.array([8.0, -4.0])
    average = path[2]
    for t in range(2, STEPS + 1):
        average = 0.9 * average + 0.1 * path[t] if t > 2 else path[2]
        np.testing.assert_allclose(data.w.sel(decay=0.9)[t], average, rtol=1e-5)
    np.testing.assert_allclose(data.w.sel(decay=0.0), path, rtol=1e-6)


def test_an_average_of_descent_changes_nothing_and_can_be_stored(tmp_path):
    def alone(lr):
        return descent(loss, optax.adam(lr), init=start, observe=observe)

    def process(lr):
        return averaged(alone(lr), decay=0.5)

    np.testing.assert_array_equal(swept(process, store=tmp_path / "a").w, swept(alone).w)


@pytest.mark.parametrize("every", [1, 2])
def test_the_best_so_far_is_the_first_least_of_those_asked(every):
    path = np.array([np.nan, 3.0, 2.0, 2.0, 1.5, 0.5, 1.0, 0.7, 0.6])

    def process(lr):
        there = Dynamics(
            lambda: jnp.float32(0), lambda x, t: x + 1, lambda x, t: {"now": x}
        )  # the state is the step
        return best_so_far(
            there,
            lambda x: jnp.asarray(path, jnp.float32)[x.astype(int)],
            lambda x: 10 * x,
            every=every,
            observe=lambda both, t: {"w": both.params, "score": both.score, "at": both.step},
        )

    data = sweep(process, {"lr": [0.5]}, steps=8, every=1).isel(lr=0)
    for t in range(9):
        asked = np.arange(0, t + 1, every)
        best = asked[np.nan_to_num(path[asked], nan=np.inf).argmin()]
        assert data["at"][t] == best and data.w[t] == 10 * best
        np.testing.assert_allclose(data.score[t], path[best])


W = jnp.zeros(2)


def square(w, *rest, **more):
    return jnp.sum(w**2)


def needy():
    def update(updates, state, params=None, *, hessian, **more):
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


REFUSED = {
    "a vector": ({"loss": lambda w: w}, "loss: returned float32[2]; return a real scalar"),
    "an int": ({"loss": lambda w: jnp.int32(1)}, "loss: returned int32[]; return a real scalar"),
    "a pair": ({"loss": lambda w: (w @ w, w)}, "with has_aux=True or carry=... it may be"),
    "no pair": ({"has_aux": True}, "loss: returned float32[]; return a pair (value, aux)"),
    "nothing carried": ({"carry": lambda: W}, "return a pair (value, what is carried on)"),
    "carried otherwise": (
        {"loss": lambda w, c: (w @ w, {"m": c["m"][:1]}), "carry": lambda: {"m": W}},
        "loss: carries on {'m': float32[1]}; carry it as it came, {'m': float32[2]}",
    ),
    "no batch": (
        {"loss": lambda w: w @ w, "batch": lambda t: t, "key": jax.random.key(0)},
        "loss: takes (w); it is given (params, batch, key=)",
    ),
    "both": ({"has_aux": True, "carry": lambda: W}, "has_aux: True beside carry"),
    "unknown extra": ({"optimizer": needy()}, "write what needs something else as a lab.types.D"),
    "in a chain": (
        {"optimizer": optax.chain(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)))},
        "unexpected keyword argument 'value'; write what needs",
    ),
    "fast params": (
        {"optimizer": optax.lookahead(optax.sgd(0.1), 2, 0.5)},
        "write what needs something else as a lab.types.Dynamics",
    ),
    "per example": (
        {"optimizer": optax.contrib.differentially_private_aggregate(1.0, 1.0, key=0)},
        "write what needs something else as a lab.types.Dynamics",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_descent_cannot_do_is_refused_in_one_line(name):
    given, line = REFUSED[name]
    rest = {"loss": square, "optimizer": optax.sgd(0.1), "init": lambda: W}
    with pytest.raises(BadInput) as refused:
        process = descent(observe=lambda state, t: {}, **rest | given)
        sweep(lambda seed: process, {"seed": [0]}, steps=1, every=1)
    assert line in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"decay": 1.5}, "decay: 1.5; give 0 to 1"),
        ({"start": -1}, "start: -1 steps before the average"),
        ({"every": 0}, "every: 0 steps between two"),
    ],
)
def test_averages_that_are_none_are_refused(given, line):
    with pytest.raises(BadInput, match=line):
        averaged(halving(0.5), lambda state: state, **given)


def test_carried_numbers_of_python_and_keys_can_be_carried():
    def objective(w, carried):
        return w**2, {"n": carried["n"] + 1.0, "key": jax.random.fold_in(carried["key"], 1)}

    process = descent(
        objective,
        optax.sgd(0.1),
        init=lambda: jnp.float32(1),
        carry=lambda: {"n": 0.0, "key": jax.random.key(0)},
        observe=lambda state, t: {"n": state.aux["n"]},
    )
    state, _ = jax.lax.scan(lambda s, t: (process.step(s, t), None), process.init(), jnp.arange(4))
    assert state.aux["n"] == 4
