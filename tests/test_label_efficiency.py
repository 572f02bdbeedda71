"""Labels that few have: whose they are, and that nothing is chosen by looking at the test."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments import label_efficiency
from experiments.label_efficiency import VALIDATION, Config, chosen, parts, run
from lab.data import Split, mnist

SMALL = Config(
    labels=(1, 5),
    temperatures=(0.2,),
    lrs=(1e-3,),
    penalties=(1e-2, 1.0),
    examples=100,
    tested=100,
    steps=8,
    supervised_steps=20,
    every=10,
    batch=8,
    seeds=1,
    first_seed=100,
)


def test_permuting_the_test_labels_changes_no_choice(monkeypatch, tmp_path):
    honest = run(SMALL, tmp_path / "honest")
    test = np.asarray(parts(jnp.int32(SMALL.first_seed), config=SMALL).test) - SMALL.examples

    def permuted(*arguments, **words):
        train, others = mnist(*arguments, **words)
        labels = np.array(others.labels)
        labels[test] = np.random.default_rng(0).permutation(labels[test])
        return Split(train, others._replace(labels=jnp.asarray(labels)))

    monkeypatch.setattr(label_efficiency, "mnist", permuted)
    blind = run(SMALL, tmp_path / "permuted")
    np.testing.assert_array_equal(honest.choice, blind.choice)
    assert (honest.accuracy != blind.accuracy).sum() > 5


def test_the_choice_is_best_on_validation_whatever_the_test_says():
    rng = np.random.default_rng(0)
    scores = xr.DataArray(rng.uniform(size=(3, 4, 2, 6, 5)), dims=("a", "seed", "of", "count", "b"))
    found = chosen(scores)
    at = scores.transpose("count", "seed", "of", "a", "b").values.reshape(6, 4, 2, 15)
    for i in np.ndindex(6, 4):
        best = at[i][0].argmax()
        assert found.choice.values[i] == best and found.accuracy.values[i] == at[i][1, best]


def test_labelled_digits_are_balanced_and_nested_and_none_is_tested_on():
    train, others = mnist(SMALL.examples, pool=4, test=VALIDATION + SMALL.tested)
    labels = np.concatenate([train.labels, others.labels])
    rows = parts(jnp.int32(3), config=SMALL)
    few = parts(jnp.int32(3), config=dataclasses.replace(SMALL, labels=(2,)))
    np.testing.assert_array_equal(few.labelled, rows.labelled[:20])
    assert max(rows.labelled) < SMALL.examples <= min(*rows.validation, *rows.test)
    assert [len({*map(int, of)}) for of in rows] == [50, VALIDATION, SMALL.tested]
    assert not {*map(int, rows.validation)} & {*map(int, rows.test)}
    for of in (few.labelled, *rows):
        counts = np.bincount(labels[np.asarray(of)], minlength=10)
        assert (counts == len(of) // 10).all()


def test_seeds_draw_other_labels_and_other_splits():
    one, other = (parts(jnp.int32(seed), config=SMALL) for seed in (1, 2))
    for name in ("labelled", "validation", "test"):
        assert {*map(int, getattr(one, name))} != {*map(int, getattr(other, name))}
