"""Linear algebra as XLA's CPU backend does it well: a traced computation, rewritten.

**Decompositions** are taken one after another where a batch of them may hang.
On a CPU a batch of decompositions is spread over XLA's thread pool by a kernel that holds one of
the pool's threads while it waits; batches at the same time may come to wait for each other for
good. With jaxlib 0.10.2 this hung seven times in eight on two cores, with 0.11.2 and 0.12.0 never:

    one = lambda a: lax.fori_loop(0, 1000, lambda i, s: s + jnp.linalg.eigvalsh(a @ a.T + s), b)
    batch = jax.jit(jax.vmap(one))  # of 16 matrices a: (16, 16)
    threads = [Thread(target=lambda: jax.block_until_ready(batch(a))) for _ in range(8)]

One matrix at a time needs no other thread.

**Products** contract the last axes of their left operand. XLA's fast kernels (YNNPACK) take no
others, such as the gradient by a layer's weights, dᵀ x of examples x and derivatives d: those run
by slower ones (100 of 245 GFLOP/s on one core, where 500 x 64 meets 500 x 64). One operand is
transposed before, which costs less: that of the data where it is of use, for as it is the same at
each step it is transposed once; else the smaller one.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib import metadata
from typing import Any

import jax
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

DECOMPOSITIONS = {
    "cholesky", "cholesky_update", "eig", "eigh", "geqp3", "geqrf", "hessenberg",
    "householder_product", "lu", "ormqr", "qr", "schur", "svd", "triangular_solve", "tridiagonal",
}  # fmt: skip
"""Names of the primitives that are LAPACK's on a CPU."""

PRODUCTS = {"dot_general"}

REMAT = {"checkpoint", "remat", "remat2"}
"""Names that `jax.checkpoint` had and has."""

MENDED = (0, 11)
"""The first jaxlib not seen to hang."""


SMALL, NARROW = 4_096, 32
"""Numbers in an operand, and its columns, below which transposing gains nothing. Measured."""


def suited(closed: ClosedJaxpr, fixed: Collection[int] = ()) -> ClosedJaxpr:
    """The same computation as this backend does it well.

    Args:
        closed: traced.
        fixed: which of its arguments are the same at each step.
    """
    if jax.default_backend() != "cpu":
        return closed
    return _rewritten(closed, DECOMPOSITIONS | PRODUCTS if hangs() else PRODUCTS, fixed)


def hangs() -> bool:
    """Whether this backend has the fault of decompositions."""
    version = tuple(int(n) for n in metadata.version("jaxlib").split(".")[:2])
    return jax.default_backend() == "cpu" and version < MENDED


def one_by_one(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same computation, its decompositions mapped over batches, also those `vmap` will make.

    >>> import jax.numpy as jnp
    >>> jaxpr = one_by_one(jax.make_jaxpr(jnp.linalg.cholesky)(jnp.ones((3, 2, 2))))
    >>> "scan" in str(jaxpr)  # a loop over the three
    True
    """
    return _rewritten(closed, DECOMPOSITIONS)


def upright(closed: ClosedJaxpr, fixed: Collection[int] = ()) -> ClosedJaxpr:
    """The same computation, its products contracting their left operands' last axes.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((500, 64))
    >>> jaxpr = upright(jax.make_jaxpr(lambda x: jnp.einsum("ki,kj->ij", x, x))(x))
    >>> "(([1], [0]), ([], []))" in str(jaxpr)
    True
    """
    return _rewritten(closed, PRODUCTS, fixed)


def _rewritten(
    closed: ClosedJaxpr, wanted: Collection[str], fixed: Collection[int] = ()
) -> ClosedJaxpr:
    """The same computation, all that is wanted done another way."""
    if not primitives(closed.jaxpr) & {*wanted}:
        return closed

    def again(*arguments: Any) -> list[Any]:
        return _evaluated(closed.jaxpr, closed.consts, arguments, wanted, fixed)

    return jax.make_jaxpr(again)(*closed.in_avals)


def primitives(jaxpr: Jaxpr) -> set[str]:
    """Names of all that a jaxpr calls, whatever it is wrapped in."""
    names = {eqn.primitive.name for eqn in jaxpr.eqns}
    return names.union(*(primitives(j) for eqn in jaxpr.eqns for j in _within(eqn.params.values())))


def _within(values: Iterable[Any]) -> list[Jaxpr]:
    """The jaxprs among an equation's parameters."""
    found = []
    for value in values:
        if isinstance(value, ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, Jaxpr):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _within(value)
    return found


def _evaluated(
    jaxpr: Jaxpr,
    consts: Iterable[Any],
    arguments: Iterable[Any],
    wanted: Collection[str],
    fixed: Collection[int] = (),
) -> list[Any]:
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)
    same = {*jaxpr.constvars, *(jaxpr.invars[i] for i in fixed)}  # at each step

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        still = [i for i, v in enumerate(eqn.invars) if isinstance(v, Literal) or v in same]
        outputs = _applied(eqn, [read(v) for v in eqn.invars], jaxpr, wanted, still)
        values |= zip(eqn.outvars, outputs, strict=True)
        if len(still) == len(eqn.invars):
            same.update(eqn.outvars)
    return [read(atom) for atom in jaxpr.outvars]


def _applied(
    eqn: Any, inputs: list[Any], parent: Jaxpr, wanted: Collection[str], fixed: Collection[int]
) -> list[Any]:
    """The outputs of an equation; one that contains others is entered only where it must be."""
    name, params = eqn.primitive.name, eqn.params
    if name in wanted:
        return (
            [_upright(eqn, inputs[0], inputs[1], fixed)]
            if name in PRODUCTS
            else _alone(eqn)(*inputs)
        )
    inside = set().union(*(primitives(inner) for inner in _within(params.values())))
    if not inside & {*wanted} or (name in REMAT and not inside & DECOMPOSITIONS):
        return _alike(eqn, inputs, parent)  # what is computed anew to save memory stays so
    if name == "custom_linear_solve":  # differentiated already: what is left is to solve
        counts, jaxprs = params["const_lengths"], params["jaxprs"]
        before = counts.matvec + counts.vecmat
        after = before + counts.solve + counts.transpose_solve
        inputs = [*inputs[before : before + counts.solve], *inputs[after:]]
        return _evaluated(jaxprs.solve.jaxpr, jaxprs.solve.consts, inputs, wanted)
    if name in ("scan", "while", "cond"):
        inner = {key: _all_rewritten(value, wanted) for key, value in params.items()}
        return eqn.primitive.bind(*inputs, **inner)
    for key in ("jaxpr", "call_jaxpr"):  # a call: jit, remat, a function with a rule of its own
        called = params.get(key)
        if isinstance(called, ClosedJaxpr):
            return _evaluated(called.jaxpr, called.consts, inputs, wanted, fixed)
        if isinstance(called, Jaxpr):
            return _evaluated(called, (), inputs, wanted, fixed)
    return _alike(eqn, inputs, parent)


def _all_rewritten(value: Any, wanted: Collection[str]) -> Any:
    if isinstance(value, ClosedJaxpr):
        return _rewritten(value, wanted)
    if isinstance(value, tuple):
        return tuple(_all_rewritten(one, wanted) for one in value)
    return value


def _upright(eqn: Any, lhs: Any, rhs: Any, fixed: Collection[int]) -> Any:
    """The product, contracting its left operand's last axes; barriers keep XLA from undoing it."""
    (of_left, of_right), (left, right) = eqn.params["dimension_numbers"]
    rows, columns = _free(lhs, of_left, left), _free(rhs, of_right, right)
    if not (of_left and rows and columns) or min(lhs.size, rhs.size) < SMALL or _last(lhs, of_left):
        return eqn.primitive.bind(lhs, rhs, **eqn.params)
    wide = math.prod(lhs.shape[i] for i in rows) >= NARROW
    better = rhs.size < lhs.size if (0 in fixed) == (1 in fixed) else (1 in fixed and wide)
    swapped = _last(rhs, of_right) or better
    if swapped:
        lhs, of_left, left, rhs, of_right, right = rhs, of_right, right, lhs, of_left, left
        rows, columns = columns, rows
    lhs = lax.optimization_barrier(lax.transpose(lhs, (*left, *rows, *of_left)))
    b, r, n = len(left), len(rows), lhs.ndim
    numbers = ((tuple(range(b + r, n)), of_right), (tuple(range(b)), right))
    params = {**eqn.params, "dimension_numbers": numbers}
    product = lax.optimization_barrier(eqn.primitive.bind(lhs, rhs, **params))
    if swapped:
        order = (*range(b), *range(b + r, product.ndim), *range(b, b + r))
        product = lax.transpose(product, order)
    return product


def _free(x: Any, contracted: Sequence[int], batched: Sequence[int]) -> list[int]:
    return [i for i in range(x.ndim) if i not in (*contracted, *batched)]


def _last(x: Any, axes: Sequence[int]) -> bool:
    return tuple(axes) == tuple(range(x.ndim - len(axes), x.ndim))


def _alike(eqn: Any, inputs: list[Any], parent: Jaxpr) -> list[Any]:
    invars = [v for v in eqn.invars if not isinstance(v, Literal)]
    given = [x for v, x in zip(eqn.invars, inputs, strict=True) if not isinstance(v, Literal)]
    names = dict(zip(invars, given, strict=True))  # a variable may be given twice
    about = parent.debug_info._replace(arg_names=None, result_paths=None)
    one = Jaxpr((), [*names], eqn.outvars, [eqn], eqn.effects, about)
    return jaxpr_as_fun(ClosedJaxpr(one, ()))(*names.values())


def _alone(eqn: Any) -> Callable[..., list[Any]]:
    """The decomposition, of one matrix at a time."""
    batch = eqn.invars[0].aval.shape[:-2]

    def one(*matrices: Any) -> list[Any]:
        out = eqn.primitive.bind(*matrices, **eqn.params)
        return list(out) if eqn.primitive.multiple_results else [out]

    if math.prod(batch) == 1:
        return sequential_vmap(one)

    def each(*inputs: Any) -> list[Any]:
        flat = [x.reshape(math.prod(batch), *x.shape[len(batch) :]) for x in inputs]
        outputs = lax.map(lambda matrices: one(*matrices), flat)
        return [x.reshape(*batch, *x.shape[1:]) for x in outputs]

    return sequential_vmap(each)
