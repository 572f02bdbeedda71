"""Supervised tasks: a network of one seed, and what it is to learn."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array

from lab.objectives import cross_entropy, mse
from lab.types import Model, Params


class Task(NamedTuple):
    """A network and what it is to learn, of one seed.

    Attributes:
        init: init() -> params.
        loss: loss(params) on all examples, loss(params, batch) on some.
        batches: a key; fold nothing but the step into it.
        measures: a key for what measuring draws.
    """

    init: Callable[[], Params]
    loss: Callable[..., Array]
    batches: Array
    measures: Array


def task(
    model: Model, seed: Array | int, x: Array, y: Array, *, objective: Callable[..., Array]
) -> Task:
    """The model on labelled examples, by an objective of outputs and labels.

    Args:
        model: the network.
        seed: of its initial weights, its batches and what measuring draws; three keys apart.
        x: examples, shape (n, ...).
        y: labels, as the objective takes them.
        objective: objective(outputs, labels) -> scalar, a mean over examples.
    """
    init, batches, measures = jax.random.split(jax.random.key(seed), 3)

    def loss(params: Params, batch: tuple[Array, Array] = (x, y)) -> Array:
        return objective(model.apply(params, batch[0]), batch[1])

    return Task(lambda: model.init(init), loss, batches, measures)


def regression(model: Model, seed: Array | int, x: Array, y: Array) -> Task:
    """The model on targets, shape (n, outputs), by half the squared error a sample (`mse`)."""
    return task(model, seed, x, y, objective=mse)


def classification(model: Model, seed: Array | int, x: Array, y: Array) -> Task:
    """The model on classes, shape (n,), by cross-entropy in nats."""
    return task(model, seed, x, y, objective=cross_entropy)
