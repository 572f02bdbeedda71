"""Models of other libraries, as pairs of pure functions of arrays."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from lab.types import BadInput, Model, Params


class Stateful(NamedTuple):
    """A network with more than params: batch statistics that move, units that drop out.

    `lab.dynamics.descent` takes it with the rest carried, and a key where it draws:

        def loss(params, rest, batch, *, key):
            y, rest = model.apply(params, rest, batch[0], key=key)
            return mse(y, batch[1]), rest

        descent(loss, optimizer, init=lambda: model.init(init_key)[0],
                carry=lambda: model.init(init_key)[1], batch=batch, key=draw_key, observe=...)

    Attributes:
        init: `init(key) -> (params, rest)`, both nested dicts of arrays; no key is in them.
        apply: `apply(params, rest, x, key=None, train=True) -> (y, new rest)`.
    """

    init: Callable[[PRNGKeyArray], tuple[Params, PyTree]]
    apply: Callable[..., Any]


def from_equinox(make: Callable[[PRNGKeyArray], Any]) -> Model:
    """An Equinox module as a `Model`: its arrays are the params, the rest of it is held fixed.

    Params are {path of an array in the module: it}, such as "layers/0/weight". `apply(params, x)`
    is what the module makes of x, keywords such as `key` and `inference` being passed on. Layers of
    Equinox take ONE example: `jax.vmap(model.apply, (None, 0))` takes a batch.

    Args:
        make: make(key) -> eqx.Module; all that is not an array must be the same for each key.

    Raises:
        BadInput: the module has an array of other than real or complex numbers, which no gradient
            moves (hold it as a NumPy array), or is no function; Equinox is not installed.

    >>> import equinox as eqx
    >>> model = from_equinox(lambda key: eqx.nn.MLP(3, 2, 8, 1, key=key))
    >>> params = model.init(jax.random.key(0))
    >>> jax.vmap(model.apply, (None, 0))(params, jnp.ones((5, 3))).shape
    (5, 2)
    """
    try:
        import equinox as eqx
    except ImportError:
        raise BadInput("make: of Equinox, which is not installed; pip install equinox") from None

    def is_shape(leaf: Any) -> bool:
        return isinstance(leaf, jax.ShapeDtypeStruct)

    shapes = eqx.filter_eval_shape(make, jax.random.key(0))
    if not callable(shapes):
        raise BadInput(f"make: gives a {type(shapes).__name__}; give a module that can be called")
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if is_shape(leaf) and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            where = jax.tree_util.keystr(path)
            raise BadInput(f"make: {where} is of {leaf.dtype}; hold it as a NumPy array")
    fixed = eqx.filter(shapes, is_shape, inverse=True)
    paths, arrays = jax.tree_util.tree_flatten_with_path(eqx.filter(shapes, is_shape))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]

    def init(key: PRNGKeyArray) -> Params:
        return dict(zip(names, jax.tree.leaves(eqx.filter(make(key), eqx.is_array)), strict=True))

    def apply(params: Params, x: Any, **more: Any) -> Any:
        module = jax.tree.unflatten(arrays, [params[name] for name in names])
        return eqx.combine(module, fixed)(x, **more)

    return Model(init, apply)


def from_nnx(make: Callable[[Any], Any]) -> Stateful:
    """An nnx module as pure functions of its params and of the rest of its state.

    Under plain `jit` and `vmap` nnx forgets what its modules change: batch statistics stay, and
    dropout draws the same units for ever. Here both are arguments and results: statistics are the
    rest, new at each call with `train`, and what is drawn is drawn from `key` alone, which is given
    at each call. Without `train` the module is in its `eval` mode: running statistics, nothing
    dropped. An `nnx.Intermediate` is not kept. Params are what is an `nnx.Param`.

    Args:
        make: make(rngs) -> nnx.Module, of an `nnx.Rngs`.

    Raises:
        BadInput: `make` gives no module; in `apply`, a module that draws is trained without a key.

    >>> from flax import nnx
    >>> model = from_nnx(lambda rngs: nnx.BatchNorm(2, momentum=0.5, rngs=rngs))
    >>> params, rest = model.init(jax.random.key(0))
    >>> y, rest = model.apply(params, rest, jnp.array([[1.0, 0.0], [3.0, 0.0]]))
    >>> rest["mean"]
    Array([1., 0.], dtype=float32)
    """
    from flax import nnx

    def parts(module: Any) -> tuple[Any, Any, Any, Any]:
        """Its graph, params, what it draws from, and the rest."""
        graph, params, draws, _, rest = nnx.split(
            module, nnx.Param, nnx.RngState, nnx.Intermediate, ...
        )
        return graph, params, draws, rest

    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    if not isinstance(module, nnx.Module):
        raise BadInput(f"make: gives a {type(module).__name__}; give a flax.nnx.Module")
    graph, *like = parts(module)

    def init(key: PRNGKeyArray) -> tuple[Params, PyTree]:
        _, params, _, rest = parts(make(nnx.Rngs(key)))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def apply(
        params: Params, rest: PyTree, x: Any, *, key: PRNGKeyArray | None = None, train: bool = True
    ) -> tuple[Any, PyTree]:
        drawn = _drawn(nnx.to_pure_dict(like[1]), key, needed=train)
        states = [
            _filled(nnx, state, values)
            for state, values in zip(like, (params, drawn, rest), strict=True)
        ]
        whole = nnx.merge(graph, *states)
        (whole.train if train else whole.eval)()
        y = whole(x)
        return y, nnx.to_pure_dict(parts(whole)[3])

    return Stateful(init, apply)


def _drawn(draws: PyTree, key: PRNGKeyArray | None, *, needed: bool) -> PyTree:
    """Streams as if new: the i-th has the key `fold_in(key, i)` and a count of 0."""
    leaves, structure = jax.tree.flatten(draws)
    if leaves and needed and key is None:
        raise BadInput(
            "key: None, where the module draws in training; give key=..., or train=False"
        )
    key = jax.random.key(0) if key is None else key

    numbers = itertools.count()

    def fresh(leaf: Any) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            own = jax.random.fold_in(key, next(numbers))
            return jax.random.split(own, leaf.shape) if leaf.shape else own
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.unflatten(structure, [fresh(leaf) for leaf in leaves])


def _filled(nnx: Any, state: Any, values: PyTree) -> Any:
    """A copy of an nnx state that holds these values."""
    copied = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(copied, values)
    return copied
