"""Reference sweeps: real training problems on real data, from tiny to wide.

Rates lie below the edge of stability, so that contenders can be compared number by number.
"""

import itertools
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from lab.data import minibatch, mnist, pixel_sequences, sklearn_digits
from lab.dynamics import Descent, descent, followed
from lab.measures.curvature import Eigenpair, hessian, top_eigenpair
from lab.models import conv_net, mlp, transformer
from lab.objectives import cross_entropy, mse
from lab.types import Dynamics, Model, Params

EVERY, INSPECT_EVERY = 10, 50
COLD_KRYLOV, WARM_KRYLOV = 16, 6
"""Hessian-vector products at the start, and from the last eigenvector on: residuals of 0.2% on the
mean over 1,000 steps, most at the first refreshment; 8 products halve that."""


class Problem(NamedTuple):
    """A sweep over seeds.

    Attributes:
        title: what is trained.
        training: training(seed, x, y) -> Dynamics; records "loss" each `EVERY` steps, that from
            which the last step started (at first that of the initial weights), and "sharpness" each
            `INSPECT_EVERY` where it is measured.
        examples: {"x", "y"}: the training set.
        runs: seeds 0, 1, ...
        steps: of each run when timed; a multiple of `EVERY`, or of `INSPECT_EVERY` if inspected.
        flops: of one step of one run, matrix products alone: what cannot be avoided.
        kind: of network: "mlp", "conv" or "transformer".
        objective: "mse" or "cross_entropy".
        optimizer: "sgd" or "adam".
        lr: its rate.
        batch: examples in a minibatch; None is the full batch.
        sharpness: whether it is measured.
    """

    title: str
    training: Callable[..., Dynamics]
    examples: Mapping[str, Array]
    runs: int
    steps: int
    flops: float
    kind: str
    objective: str
    optimizer: str
    lr: float
    batch: int | None
    sharpness: bool

    @property
    def inspect_every(self) -> int | None:
        """Steps between two measurements of sharpness."""
        return INSPECT_EVERY if self.sharpness else None


def training(
    seed: Array,
    x: Array,
    y: Array,
    *,
    model: Model,
    objective: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    batch: int | None,
    sharpness: bool,
) -> Dynamics:
    """One run: initial weights and batches from the seed."""
    init_key, batch_key, lanczos_key = jax.random.split(jax.random.key(seed), 3)

    def loss(params: Params, examples: tuple[Array, Array] = (x, y)) -> Array:
        return objective(model.apply(params, examples[0]), examples[1])

    process = descent(
        loss,
        optimizer,
        init=lambda: model.init(init_key),
        observe=lambda state, t: {"loss": state.loss},
        batch=None if batch is None else lambda t: minibatch(batch_key, t, (x, y), size=batch),
    )
    if not sharpness:
        return process

    def follow(state: Descent, last: Eigenpair, t: Array) -> Eigenpair:
        noise_key = jax.random.fold_in(lanczos_key, t)
        near = perturbed(noise_key, last.vector, size=0.1)
        return top_eigenpair(hessian(loss, state.params), vector=near, k=WARM_KRYLOV)

    return followed(
        process,
        start=lambda state: top_eigenpair(
            hessian(loss, state.params), key=lanczos_key, k=COLD_KRYLOV
        ),
        follow=follow,
        every=INSPECT_EVERY,
        inspect=lambda top: {"sharpness": top.value, "residual": top.residual},
    )


def perturbed(key: PRNGKeyArray, vector: Params, *, size: float) -> Params:
    """A unit vector plus a random one of length about `size`."""
    flat, unravel = ravel_pytree(vector)
    return unravel(flat + size / flat.size**0.5 * jax.random.normal(key, flat.shape, flat.dtype))


@cache
def problems() -> dict[str, Problem]:
    """The reference sweeps by letter."""
    mnist_500 = mnist(500, pool=2).train
    small = sklearn_digits(1000).train
    tokens = pixel_sequences(33)
    digits, onehot = {"x": mnist_500.x, "y": mnist_500.y}, "mse"
    labels = {"x": small.x, "y": small.labels}
    images = {"x": mnist_500.x, "y": mnist_500.labels}
    pixels = {"x": jnp.asarray(tokens[:, :-1]), "y": jnp.asarray(tokens[:, 1:])}
    wide = mlp_flops((196, 256, 256, 10), 500)
    narrow = mlp_flops((196, 64, 64, 10), 500)
    return {
        "a": _problem(
            "MLP 196-64-64-10, 500 digits, full batch",
            mlp((196, 64, 64, 10)), digits, 256, 20, narrow, "mlp", onehot, "sgd", 0.05,
        ),
        "b": _problem(
            "MLP 64-16-10, minibatch 64, Adam",
            mlp((64, 16, 10), activation="relu"), labels, 1024, 100, mlp_flops((64, 16, 10), 64),
            "mlp", "cross_entropy", "adam", 1e-3, batch=64,
        ),
        "c": _problem(
            "MLP 196-256-256-10, 500 digits, full batch",
            mlp((196, 256, 256, 10)), digits, 32, 20, wide, "mlp", onehot, "sgd", 0.05,
        ),
        "d": _problem(
            "convolutional net 14x14, minibatch 32",
            conv_net(), images, 64, 50, conv_flops(32), "conv", "cross_entropy", "sgd", 0.05,
            batch=32,
        ),
        "e": _problem(
            "one-layer transformer, 32 pixels, minibatch 16, Adam",
            transformer(17, 32), pixels, 32, 40, transformer_flops(16), "transformer",
            "cross_entropy", "adam", 1e-3, batch=16,
        ),
        "f": _problem(
            "(a) with sharpness every 50 steps",
            mlp((196, 64, 64, 10)), digits, 16, 300, narrow, "mlp", onehot, "sgd", 0.05,
            sharpness=True,
        ),
    }  # fmt: skip


def _problem(
    title: str,
    model: Model,
    examples: Mapping[str, Array],
    runs: int,
    steps: int,
    flops: float,
    kind: str,
    objective: str,
    optimizer: str,
    lr: float,
    batch: int | None = None,
    sharpness: bool = False,
) -> Problem:
    process = partial(
        training,
        model=model,
        objective={"mse": mse, "cross_entropy": cross_entropy}[objective],
        optimizer={"sgd": optax.sgd, "adam": optax.adam}[optimizer](lr),
        batch=batch,
        sharpness=sharpness,
    )
    rest: Any = (kind, objective, optimizer, lr, batch, sharpness)
    return Problem(title, process, examples, runs, steps, flops, *rest)


def mlp_flops(sizes: tuple[int, ...], examples: int) -> float:
    """Forward, gradient by the weights and, but in the first layer, by the layer's input.

    >>> mlp_flops((196, 64, 64, 10), 500) / 1e6
    39.296
    """
    products = [m * n for m, n in itertools.pairwise(sizes)]
    return 2.0 * examples * (3 * sum(products) - products[0])


def conv_flops(examples: int) -> float:
    """Of `conv_net()`: 3 x 3 filters 1 -> 8 on 14 x 14, 8 -> 16 on 7 x 7, linear 144 -> 10."""
    first, second, linear = 9 * 8 * 196, 9 * 8 * 16 * 49, 144 * 10
    return 2.0 * examples * (2 * first + 3 * second + 3 * linear)


def transformer_flops(examples: int, length: int = 32, width: int = 32, tokens: int = 17) -> float:
    """Of `transformer(17, 32)`: projections, MLP, scores and mixing, logits; three times each."""
    position = 4 * width**2 + 8 * width**2 + 2 * length * width + width * tokens
    return 2.0 * examples * length * position * 3
