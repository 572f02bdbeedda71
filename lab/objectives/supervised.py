"""Objectives with a target: half squared error, cross entropy, accuracy. Batches, not examples."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, Int

from lab.types import BadInput


def mse(prediction: Float[Array, "n c"], target: Float[Array, "n c"]) -> Float[Array, ""]:
    """Half the squared error: SUMMED over the c outputs, AVERAGED over the n examples.

        1/(2n) sum_i |prediction_i - target_i|^2

    The gradient with respect to a prediction is `(prediction_i - target_i) / n`, and the Hessian
    of a linear model with inputs x_i has no factor of 2: it is `sum_i x_i x_i^T / n`.

    Raises:
        BadInput: when the shapes differ (they are never broadcast).

    >>> float(mse(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.zeros((2, 2))))
    1.25
    """
    _same_shape("target", target, "prediction", prediction)
    return jnp.sum(jnp.square(prediction - target)) / (2 * prediction.shape[0])


def cross_entropy(
    logits: Float[Array, "*n c"], target: Float[Array, "*n c"] | Int[Array, "*n"]
) -> Float[Array, ""]:
    """Cross entropy of softmax(logits) with the target, in nats, AVERAGED over the n examples.

        -1/n sum_i sum_k target_ik log softmax(logits_i)_k

    An integer target of shape [n] holds classes 0 ... c - 1; a float target of shape [n, c] holds
    probabilities, whose rows should sum to 1 (one-hot or soft). A class that does not
    exist gives NaN, -1 too.

    Raises:
        BadInput: when the shape of the target is neither of these.

    >>> round(float(cross_entropy(jnp.zeros((3, 10)), jnp.array([0, 4, 9]))), 4)  # log(10)
    2.3026
    """
    if jnp.issubdtype(target.dtype, jnp.integer):
        _one_label_each(target, logits)
        classes = jnp.where(target < 0, logits.shape[-1], target)  # or -1 would be the last
        shifted = logits - lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
        surprise = jnp.log(jnp.sum(jnp.exp(shifted), -1)) - _chosen(shifted, classes)
        return jnp.mean(surprise)
    _same_shape("target", target, "logits", logits)
    return jnp.mean(optax.losses.softmax_cross_entropy(logits, target))


@jax.custom_jvp
def _chosen(logits: Array, classes: Array) -> Array:
    """The logit of each row's class; differentiated as a sum over all classes.

    A gather's gradient scatters, which takes long or not always the same order on a GPU.
    """
    return jnp.take_along_axis(logits, classes[..., None], -1)[..., 0]


@_chosen.defjvp
def _chosen_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    logits, classes = primals
    here = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
    return _chosen(logits, classes), jnp.sum(jnp.where(here, tangents[0], 0.0), -1)


def kl_divergence(target: Float[Array, "*n c"], logits: Float[Array, "*n c"]) -> Float[Array, ""]:
    """Kullback-Leibler divergence of softmax(logits) from the target, in nats, AVERAGED over n.

        1/n sum_i sum_k target_ik (log target_ik - log softmax(logits_i)_k)

    Targets are probabilities; one of zero adds nothing.

    Raises:
        BadInput: when the shapes differ.

    >>> round(float(kl_divergence(jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2)))), 4)  # log(2)
    0.6931
    """
    _same_shape("target", target, "logits", logits)
    entropy = -jnp.mean(jnp.sum(xlogy(target, target), -1))
    return cross_entropy(logits, target) - entropy


def accuracy(logits: Float[Array, "n c"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """The fraction of examples whose largest logit is at their label, from 0 to 1.

    A tie goes to the lower class. NaN when any logit is: a run that blew up has no accuracy (the
    argmax of NaN is class 0, which would pass for chance).

    Raises:
        BadInput: when there is not one label for each row of logits.

    >>> float(accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])))
    0.5
    """
    _one_label_each(labels, logits)
    correct = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
    return jnp.where(jnp.isnan(logits).any(), jnp.nan, correct)


def _same_shape(name: str, array: Array, other_name: str, other: Array) -> None:
    if array.shape != other.shape:
        raise BadInput(f"{name}: shape {array.shape} should be {other.shape}, as {other_name}")


def _one_label_each(labels: Array, logits: Array) -> None:
    if labels.shape != logits.shape[:-1]:
        raise BadInput(
            f"labels: shape {labels.shape} should be {logits.shape[:-1]}, one for each row"
        )
