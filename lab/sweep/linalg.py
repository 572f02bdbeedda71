"""Matrix decompositions of a block, taken one after another where a batch of them may hang.

On a CPU a batch of decompositions is spread over XLA's thread pool by a kernel that holds one of
the pool's threads while it waits; batches at the same time may come to wait for each other for
good. With jaxlib 0.10.2 this hung seven times in eight on two cores, with 0.11.2 and 0.12.0 never:

    one = lambda a: lax.fori_loop(0, 1000, lambda i, s: s + jnp.linalg.eigvalsh(a @ a.T + s), b)
    batch = jax.jit(jax.vmap(one))  # of 16 matrices a: (16, 16)
    threads = [Thread(target=lambda: jax.block_until_ready(batch(a))) for _ in range(8)]

One matrix at a time needs no other thread.
"""

import math
from collections.abc import Callable, Iterable
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

MENDED = (0, 11)
"""The first jaxlib not seen to hang."""


def hangs() -> bool:
    """Whether this backend has the fault."""
    version = tuple(int(n) for n in metadata.version("jaxlib").split(".")[:2])
    return jax.default_backend() == "cpu" and version < MENDED


def one_by_one(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same computation, its decompositions mapped over batches, also those `vmap` will make.

    >>> import jax.numpy as jnp
    >>> jaxpr = one_by_one(jax.make_jaxpr(jnp.linalg.cholesky)(jnp.ones((3, 2, 2))))
    >>> "scan" in str(jaxpr)  # a loop over the three
    True
    """
    if not primitives(closed.jaxpr) & DECOMPOSITIONS:
        return closed

    def rewritten(*arguments: Any) -> list[Any]:
        return _evaluated(closed.jaxpr, closed.consts, arguments)

    return jax.make_jaxpr(rewritten)(*closed.in_avals)


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


def _evaluated(jaxpr: Jaxpr, consts: Iterable[Any], arguments: Iterable[Any]) -> list[Any]:
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        outputs = _applied(eqn, [read(v) for v in eqn.invars], jaxpr)
        values |= zip(eqn.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _applied(eqn: Any, inputs: list[Any], parent: Jaxpr) -> list[Any]:
    """The outputs of an equation; one that contains others is entered only where it must be."""
    name, params = eqn.primitive.name, eqn.params
    if name in DECOMPOSITIONS:
        return _alone(eqn)(*inputs)
    if not any(primitives(inner) & DECOMPOSITIONS for inner in _within(params.values())):
        return _alike(eqn, inputs, parent)
    if name == "custom_linear_solve":  # differentiated already: what is left is to solve
        counts, jaxprs = params["const_lengths"], params["jaxprs"]
        before = counts.matvec + counts.vecmat
        after = before + counts.solve + counts.transpose_solve
        inputs = [*inputs[before : before + counts.solve], *inputs[after:]]
        return _evaluated(jaxprs.solve.jaxpr, jaxprs.solve.consts, inputs)
    if name in ("scan", "while", "cond"):
        inner = {key: _rewritten(value) for key, value in params.items()}
        return eqn.primitive.bind(*inputs, **inner)
    for key in ("jaxpr", "call_jaxpr"):  # a call: jit, remat, a function with a rule of its own
        called = params.get(key)
        if isinstance(called, ClosedJaxpr):
            return _evaluated(called.jaxpr, called.consts, inputs)
        if isinstance(called, Jaxpr):
            return _evaluated(called, (), inputs)
    return _alike(eqn, inputs, parent)


def _rewritten(value: Any) -> Any:
    if isinstance(value, ClosedJaxpr):
        return one_by_one(value)
    return tuple(map(_rewritten, value)) if isinstance(value, tuple) else value


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
