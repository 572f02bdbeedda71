"""A measure that follows a process."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab.dynamics import descent, followed
from lab.measures.curvature import hessian, top_eigenpair
from lab.sweep import sweep
from lab.types import BadInput

TARGET = jnp.array([1.0, -2.0, 0.5])


def loss(w):
    return jnp.sum(jnp.cosh(w - TARGET)) + jnp.sum(w) ** 2


def plain(lr):
    return descent(
        loss,
        optax.sgd(lr),
        init=lambda: jnp.zeros(3),
        observe=lambda state, t: {"w": state.params},
    )


def sharp(state, start):
    return top_eigenpair(hessian(loss, state.params), vector=start, k=3)


def tracked(lr, every=4):
    return followed(
        plain(lr),
        start=lambda state: sharp(state, jnp.arange(1.0, 4.0)),
        follow=lambda state, last, t: sharp(state, last.vector + 0.1 * jnp.arange(1.0, 4.0)),
        every=every,
        inspect=lambda top: {"sharpness": top.value},
    )


def test_the_value_belongs_to_the_state_it_is_recorded_with():
    data = sweep(tracked, {"lr": [0.05, 0.1]}, steps=12, every=1, inspect_every=4)
    for lr in data.lr.values:
        for step in data.step_rare.values:
            w = jnp.asarray(data.w.sel(lr=lr, step=step).values)
            exact = np.linalg.eigvalsh(jax.hessian(loss)(w))[-1]
            got = data.sharpness.sel(lr=lr, step_rare=step).item()
            np.testing.assert_allclose(got, exact, rtol=1e-5)


def test_following_changes_no_step():
    settings = {"steps": 12, "every": 4}
    alone = sweep(plain, {"lr": [0.05, 0.1]}, **settings)
    both = sweep(tracked, {"lr": [0.05, 0.1]}, **settings, inspect_every=4)
    np.testing.assert_allclose(alone.w, both.w, rtol=1e-6)


def test_a_cadence_that_is_none_is_refused():
    with pytest.raises(BadInput, match="every: 0 steps"):
        tracked(0.1, every=0)
