"""Labels that few have: whose they are, and that nothing is chosen by looking at the test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.self_supervised import label_efficiency
from experiments.self_supervised.label_efficiency import Config, drawn, run
from lab import tasks
from lab.data import Split, mnist, parts
from lab.models import mlp
from lab.types import BadInput

SMALL = Config(
    labels=(1,),
    temperatures=(0.2,),
    lrs=(1e-3,),
    penalties=(1e-2, 1.0),
    examples=50,
    validation=20,
    tested=100,
    steps=4,
    supervised_steps=4,
    every=2,
    batch=4,
    seeds=1,
    first_seed=100,
)


@pytest.fixture
def few(monkeypatch):
    """Digits of 7 x 7 pixels, small networks, and views that are the digit itself."""
    for name, widths in (("ENCODER", (49, 8, 4)), ("HEAD", (4, 2)), ("CLASSIFIER", (49, 8, 10))):
        monkeypatch.setattr(label_efficiency, name, mlp(widths))
    monkeypatch.setattr(label_efficiency, "views", lambda key, x, how, fill: x)
    monkeypatch.setattr(tasks, "two_views", lambda key, x, how, fill: (x, x))

    def digits(*arguments, **words):
        return mnist(*arguments, **words | {"pool": 4})

    monkeypatch.setattr(label_efficiency, "mnist", digits)
    return digits


def test_permuting_the_test_labels_changes_no_choice(few, monkeypatch, tmp_path):
    honest = run(SMALL, tmp_path / "honest")["labels"]
    rows, _ = drawn(jnp.int32(SMALL.first_seed), SMALL)
    test = np.asarray(rows.test) - SMALL.examples

    def permuted(*arguments, **words):
        train, others = few(*arguments, **words)
        labels = np.array(others.labels)
        labels[test] = np.random.default_rng(0).permutation(labels[test])
        return Split(train, others._replace(labels=jnp.asarray(labels)))

    monkeypatch.setattr(label_efficiency, "mnist", permuted)
    blind = run(SMALL, tmp_path / "permuted")["labels"]
    np.testing.assert_array_equal(honest.choice, blind.choice)
    assert (honest.accuracy != blind.accuracy).sum() > 3


SIZES = {"examples": 100, "validation": 40, "tested": 60}


def test_labelled_digits_are_balanced_and_nested_and_none_is_tested_on():
    train, others = mnist(100, pool=4, test=100)
    labels = np.concatenate([train.labels, others.labels])
    rows = parts(jax.random.key(3), labelled=50, **SIZES)
    few = parts(jax.random.key(3), labelled=20, **SIZES)
    np.testing.assert_array_equal(few.labelled, rows.labelled[:20])
    assert max(rows.labelled) < 100 <= min(*rows.validation, *rows.test)
    assert [len({*map(int, of)}) for of in rows] == [50, 40, 60]
    assert not {*map(int, rows.validation)} & {*map(int, rows.test)}
    for of in (few.labelled, *rows):
        counts = np.bincount(labels[np.asarray(of)], minlength=10)
        assert (counts == len(of) // 10).all()


def test_keys_draw_other_labels_and_other_splits():
    one, other = (parts(jax.random.key(seed), labelled=50, **SIZES) for seed in (1, 2))
    for name in ("labelled", "validation", "test"):
        assert {*map(int, getattr(one, name))} != {*map(int, getattr(other, name))}


def test_parts_that_are_not_balanced_or_not_there_are_refused():
    with pytest.raises(BadInput, match="tested: 15; give a multiple of 10"):
        parts(jax.random.key(0), labelled=50, **SIZES | {"tested": 15})
    with pytest.raises(BadInput, match="labelled: 110; there are 100 examples"):
        parts(jax.random.key(0), labelled=110, **SIZES)
