"""The transformer's laws, in each of its forms, and what edits of its activations do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.models import attention_blocks, transformer
from lab.types import BadInput

V, L = 7, 6
FORMS = {
    "default": {},
    "attention only, relative": {
        "hidden": 0, "norm": None, "positions": "relative", "heads": 1, "scale": 0.5
    },
    "post-norm, no skip": {"norm": "post", "skip": False, "scale": 1.0},
    "linear": {"kernel": "linear", "norm": None, "positions": "relative", "scale": 0.5},
    "uniform, no positions": {"kernel": "uniform", "positions": None},
}  # fmt: skip


def built(seed=0, **options):
    """A small transformer with random relative biases, and tokens."""
    model = transformer(V, L, **{"width": 8, "heads": 2, "layers": 2, **options})
    param_key, token_key = jax.random.split(jax.random.key(seed))
    params = dict(model.init(param_key))
    for name, part in params.items():
        if name.startswith("attention_") and "relative" in part:
            bias = jax.random.normal(param_key, part["relative"].shape)
            params[name] = {**part, "relative": bias}
    return model, params, jax.random.randint(token_key, (3, L), 0, V)


def reach(model, params, tokens):
    """|gradient| of each position's logits by each position's stream, by an edit that adds 0."""

    def logits(shift):
        return model.apply(params, tokens, edit={"x_0": lambda x: x + shift})

    jacobian = jax.jit(jax.jacobian(logits))(jnp.zeros((L, 8)))
    return np.abs(jacobian).max((1, 3))


@pytest.mark.parametrize("form", FORMS)
def test_causal_logits_have_gradients_of_exactly_zero_by_later_tokens(form):
    model, params, tokens = built(**FORMS[form])
    by = reach(model, params, tokens[0])
    assert (np.triu(by, 1) == 0).all() and (by[np.tril_indices(L)] > 0).all()


@pytest.mark.parametrize("positions", ["relative", "absolute", None])
def test_not_causal_every_position_reaches_every_other(positions):
    model, params, tokens = built(causal=False, positions=positions)
    assert (reach(model, params, tokens[0]) > 0).all()


def test_without_positions_logits_commute_with_permutations():
    order = jnp.array([3, 0, 5, 4, 1, 2])
    away = {}
    for positions in (None, "relative", "absolute"):
        model, params, tokens = built(causal=False, positions=positions, scale=0.5)
        logits = model.apply(params, tokens)
        away[positions] = np.abs(model.apply(params, tokens[:, order]) - logits[:, order]).max()
    assert away[None] < 1e-5 and away["relative"] > 0.1 and away["absolute"] > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_attention_sum_to_one_but_for_the_linear_kernel(form):
    model, params, tokens = built(**FORMS[form])
    _, seen = model.apply(params, tokens, record=True)
    for i in (1, 2):
        sums = seen[f"attention_{i}/weights"].sum(-1)
        if FORMS[form].get("kernel") == "linear":
            assert np.abs(sums - 1).max() > 0.1
        else:
            np.testing.assert_allclose(sums, 1.0, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_a_relative_bias_knows_distances_alone(causal):
    """Scores of like tokens are those of any other two as far apart, and a shift changes none."""
    model, params, _ = built(positions="relative", causal=causal)
    _, seen = model.apply(params, jnp.zeros(L, int), record=True)
    scores = np.asarray(seen["attention_1/scores"])
    by_distance = [np.diagonal(scores, -d, 1, 2) for d in range(0 if causal else 1 - L, L)]
    for same in by_distance:
        np.testing.assert_allclose(same, same[:, :1].repeat(same.shape[1], 1), atol=1e-6)
    firsts = np.array([same[0, 0] for same in by_distance])
    assert len(np.unique(firsts.round(4))) == len(firsts)
    # What looks only one back gives the same logits wherever it stands.
    back = jnp.tril(jnp.ones((L, L), bool), -2) | jnp.triu(jnp.ones((L, L), bool), 1)
    near = {f"attention_{i}/scores": lambda s: jnp.where(back, -jnp.inf, s) for i in (1, 2)}
    tokens = jnp.array([1, 2, 3, 4, 1, 5])
    moved = model.apply(params, jnp.roll(tokens, 1), edit=near)
    np.testing.assert_allclose(
        moved[4:], model.apply(params, tokens, edit=near)[3:5], rtol=1e-4, atol=1e-5
    )


def test_a_shorter_sequence_is_the_beginning_of_a_longer_one():
    for positions in ("absolute", "relative"):
        model, params, tokens = built(positions=positions)
        whole = model.apply(params, tokens)
        np.testing.assert_allclose(
            model.apply(params, tokens[:, :4]), whole[:, :4], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("form", FORMS)
def test_clamping_any_activation_at_its_recorded_value_changes_nothing(form):
    model, params, tokens = built(**FORMS[form])
    logits, seen = model.apply(params, tokens, record=True)
    np.testing.assert_array_equal(logits, model.apply(params, tokens))
    names = {"x_0", "x_1", "x_2"}
    for i in (1, 2):
        names |= {f"attention_{i}{part}" for part in ("", "/scores", "/weights", "/heads")}
        names |= {f"attention_{i}/{part}" for part in "qkv"}
        if FORMS[form].get("hidden") != 0:
            names |= {f"mlp_{i}", f"mlp_{i}/hidden"}
    assert {*seen} == names
    for name, value in seen.items():
        clamped = model.apply(params, tokens, edit={name: lambda _: value})  # noqa: B023
        np.testing.assert_array_equal(clamped, logits)


def test_clamping_the_last_stream_elsewhere_carries_it_over():
    model, params, tokens = built()
    logits, seen = model.apply(params, tokens, record=True)
    other = tokens[:, ::-1]
    assert np.abs(model.apply(params, other) - logits).max() > 0.1
    carried = model.apply(params, other, edit={"x_2": lambda _: seen["x_2"]})
    np.testing.assert_array_equal(carried, logits)


def test_a_masked_score_takes_all_dependence_away():
    model, params, tokens = built(layers=1, hidden=0, norm=None, heads=1)
    tokens = tokens[0]
    masked = {"attention_1/scores": lambda s: s.at[..., 4, 2].set(-jnp.inf)}
    changed = tokens.at[2].set((tokens[2] + 1) % V)

    def moved(edit):
        one, two = (np.asarray(model.apply(params, t, edit=edit)) for t in (tokens, changed))
        return np.abs(one - two).max(-1)

    assert moved(masked)[4] == 0 and moved(None)[4] > 0
    np.testing.assert_array_equal(np.delete(moved(masked), 4), np.delete(moved(None), 4))
    _, seen = model.apply(params, tokens, edit=masked, record=True)
    np.testing.assert_allclose(seen["attention_1/weights"].sum(-1), 1.0, rtol=1e-6)
    gradients = jax.grad(lambda p: model.apply(p, tokens, edit=masked).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_clamp_may_be_traced_and_be_an_axis_of_a_sweep():
    import optax

    from lab.dynamics import descent
    from lab.objectives import cross_entropy
    from lab.sweep import sweep

    model = transformer(V, L, width=8, heads=2, layers=2)
    shift = jnp.eye(L, k=-1).at[0, 0].set(1.0)
    tokens = jax.random.randint(jax.random.key(0), (4, L), 0, V)

    def training(clamped, seed):
        def clamp(weights):
            return jnp.where(clamped, jnp.broadcast_to(shift, weights.shape), weights)

        edit = {"attention_1/weights": clamp}

        def loss(params):
            return cross_entropy(model.apply(params, tokens, edit=edit)[:, :-1], tokens[:, 1:])

        def observe(state, t):
            _, seen = model.apply(state.params, tokens, edit=edit, record=True)
            return {
                "first": seen["attention_1/weights"].mean((0, 1)),
                "q": jnp.abs(state.params["attention_1"]["q"]["kernel"]).sum(),
            }

        init_key = jax.random.key(seed)
        return descent(loss, optax.sgd(0.5), init=lambda: model.init(init_key), observe=observe)

    data = sweep(training, {"clamped": [False, True], "seed": range(2)}, steps=5, every=5)
    np.testing.assert_array_equal(
        data["first"].sel(clamped=True).values, np.broadcast_to(shift, (2, 2, L, L))
    )
    free = data["first"].sel(clamped=False).isel(step=-1).values
    assert np.abs(free - np.broadcast_to(shift, free.shape)).max() > 0.3
    moves = np.abs(data.q.isel(step=-1) - data.q.isel(step=0))
    assert (moves.sel(clamped=True) == 0).all() and (moves.sel(clamped=False) > 0).all()


@pytest.mark.parametrize(
    ("skip", "norm"), [*itertools.product((True, False), ("pre", "post", None))]
)
def test_blocks_are_those_of_attention_blocks(skip, norm):
    """Between embedding and logits, with the MLP's layers under other names."""
    options = {"layers": 2, "heads": 2, "hidden": 5, "skip": skip, "norm": norm, "causal": True}
    model = transformer(V, L, width=8, **options)
    params, tokens = model.init(jax.random.key(0)), jnp.arange(L)[None]
    inner = {k: v for k, v in params.items() if k.startswith(("attention", "norm_"))}
    for i in (1, 2):
        inner[f"mlp_{i}"] = {"hidden": params[f"hidden_{i}"], "out": params[f"out_{i}"]}
    _, seen = model.apply(params, tokens, record=True)
    blocks = attention_blocks(8, **options)
    xs, also = blocks.apply(inner, seen["x_0"], activations=True, record=True)
    for i, x in enumerate(xs):
        np.testing.assert_array_equal(x, seen[f"x_{i}"])
    assert {*also} == {*seen}


def test_names_of_weights_and_start_are_kept():
    """What reads weights by name (the race against PyTorch) depends on them."""
    params = transformer(17, 32).init(jax.random.key(0))
    assert {*params} == {
        "tokens", "positions", "norm_1a", "attention_1", "norm_1b", "hidden_1", "out_1", "norm",
        "logits",
    }  # fmt: skip
    assert {*params["attention_1"]} == {*"qkvo"}
    np.testing.assert_allclose(params["positions"].std(), 0.02, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "edit", "said"),
    [
        ({"positions": "rotary"}, None, "positions: 'rotary' is not one of absolute, relative"),
        ({"norm": "mid"}, None, "norm: 'mid'"),
        ({"layers": 0}, None, "layers: 0"),
        ({"heads": 3}, None, "heads: 3 do not divide the width 8"),
        ({}, {"attention_0": jnp.abs}, "edit: 'attention_0' is not one of x_0, attention_1/q"),
        ({}, {"x_1": jnp.sum}, r"edit: 'x_1' became \(\); it should stay \(3, 6, 8\)"),
    ],
)
def test_what_cannot_be_built_or_edited_is_said_in_one_line(options, edit, said):
    with pytest.raises(BadInput, match=said):
        model, params, tokens = built(**options)
        model.apply(params, tokens, edit=edit)


def test_a_sequence_that_is_too_long_is_refused():
    model, params, tokens = built()
    with pytest.raises(BadInput, match="tokens: 12 positions; the model has 6"):
        model.apply(params, jnp.concatenate([tokens, tokens], 1))
