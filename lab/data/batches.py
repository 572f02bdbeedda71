"""Minibatches, each a pure function of a key and a step."""

import jax
from jaxtyping import Array, Float, Int, Key, PyTree

from lab.types import BadInput


def minibatch(
    key: Key[Array, ""], t: int | Int[Array, ""], examples: PyTree[Array], *, size: int
) -> PyTree[Array]:
    """The batch of step t: `size` examples drawn uniformly, WITH replacement.

    It depends on (key, t) alone, so a run that is cut and resumed sees the same batches.

    Args:
        key: of the batches; fold nothing else into it.
        t: the step.
        examples: arrays with a leading axis of examples, as many in each.
        size: of the batch, at least 1.

    Raises:
        BadInput: the size is not positive, or the arrays differ in their number of examples.

    >>> import jax.numpy as jnp
    >>> x = jnp.arange(10)
    >>> a, b = minibatch(jax.random.key(0), 3, (x, x**2), size=4)
    >>> a.shape, bool((b == a**2).all())
    ((4,), True)
    """
    counts = {leaf.shape[0] for leaf in jax.tree.leaves(examples)}
    if len(counts) != 1:
        raise BadInput(f"examples: {sorted(counts)} of them in different arrays; give as many each")
    if size < 1:
        raise BadInput(f"size: {size} examples in a batch; give at least 1")
    (count,) = counts
    index = jax.random.randint(jax.random.fold_in(key, t), (size,), 0, count)
    return jax.tree.map(lambda leaf: leaf[index], examples)


def pairs(
    key: Key[Array, ""], t: int | Int[Array, ""], views: Float[Array, "n k d"], *, size: int
) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
    """The pairs of step t: two different views of each of `size` examples, drawn as `minibatch`.

    Args:
        key: of the batches; fold nothing else into it.
        t: the step.
        views: k of each example, as `several_views` makes them; k at least 2.
        size: of the batch, at least 1.

    Raises:
        BadInput: fewer than two views, or a size that is not positive.

    >>> import jax.numpy as jnp
    >>> a, b = pairs(jax.random.key(0), 3, jnp.arange(12.0).reshape(3, 4, 1), size=5)
    >>> bool((a != b).all()), bool((a // 4 == b // 4).all())  # of one example
    (True, True)
    """
    k = views.shape[1]
    if k < 2:
        raise BadInput(f"views: {k} of each example; give at least 2")
    example_key, first_key, other_key = jax.random.split(key, 3)
    of = minibatch(example_key, t, jax.numpy.arange(len(views)), size=size)
    first = jax.random.randint(jax.random.fold_in(first_key, t), (size,), 0, k)
    apart = jax.random.randint(jax.random.fold_in(other_key, t), (size,), 1, k)
    return views[of, first], views[of, (first + apart) % k]
