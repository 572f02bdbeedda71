"""Tasks: a network of one seed, and what it is to learn, from labels or from pairs of views."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lab.data import Augmentation, minibatch, two_views
from lab.numerics import Number
from lab.objectives import cross_entropy, mse, nt_xent
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
    batches: PRNGKeyArray
    measures: PRNGKeyArray


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


class Contrast(NamedTuple):
    """An encoder and a head that are to tell which views are of one example, of one seed.

    Attributes:
        init: init() -> {"encoder": params, "head": params}.
        embedded: embedded(params, x) -> what the loss compares.
        loss: loss(params, pair) -> NT-Xent of two views of each example.
        batch: batch(t) -> the pair of step t, a view of each example drawn in either.
    """

    init: Callable[[], Params]
    embedded: Callable[[Params, Array], Array]
    loss: Callable[..., Array]
    batch: Callable[[Array], tuple[Array, Array]]


def contrast(
    encoder: Model,
    head: Model,
    key: PRNGKeyArray,
    x: Array,
    *,
    how: Augmentation,
    fill: Array,
    size: int,
    temperature: Number,
    paired: Array | bool = True,
    projector: Array | bool = True,
) -> Contrast:
    """Contrastive learning (`nt_xent`) of a ReLU'd encoder's head on fresh views of batches.

    Args:
        encoder: its output is what is wanted.
        head: a projector on the ReLU of it, thrown away afterwards.
        key: of weights, batches and views.
        x: examples, flat square images.
        how: views are made.
        fill: the background.
        size: examples in a batch.
        temperature: of the loss.
        paired: where false the views of a pair are of different examples: nothing to learn.
        projector: where false the loss compares the encoder's own output, which is at least as
            wide as the head's (what the head lacks is zeros, which change no angle).
    """
    encoder_key, head_key, batches, views = jax.random.split(key, 4)

    def embedded(params: Params, view: Array) -> Array:
        h = encoder.apply(params["encoder"], view)
        z = head.apply(params["head"], jax.nn.relu(h))
        if projector is True:
            return z
        wide = jnp.zeros((len(h), h.shape[1] - z.shape[1]), z.dtype)
        return jnp.where(projector, jnp.concatenate([z, wide], 1), h)

    def loss(params: Params, pair: tuple[Array, Array]) -> Array:
        first, second = jnp.split(embedded(params, jnp.concatenate(pair)), 2)
        return nt_xent(first, second, temperature=temperature)

    def batch(t: Array) -> tuple[Array, Array]:
        drawn = minibatch(batches, t, x, size=size)
        first, second = two_views(jax.random.fold_in(views, t), drawn, how, fill=fill)
        return first, jnp.where(paired, second, jnp.roll(second, 1, 0))

    def init() -> Params:
        return {"encoder": encoder.init(encoder_key), "head": head.init(head_key)}

    return Contrast(init, embedded, loss, batch)
