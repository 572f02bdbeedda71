"""One run, traced once: what the engine checks, hashes, costs and runs is the same jaxpr."""

import functools
import hashlib
import inspect
import re
import sysconfig
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from lab.sweep import linalg
from lab.sweep.axes import exact, refuse_half_bytes
from lab.sweep.layout import Cost
from lab.types import BadInput, Dynamics

NEEDS_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What JAX raises where a traced array's value is asked for."""

STREAMS = {"step": "observe", "step_rare": "inspect"}
"""{the dimension that records lie along: the function of a `Dynamics` that makes them}."""

RESERVED = ("diverged_at", "finite", *STREAMS)
"""Names the engine gives to its own coordinates."""

PLAIN = re.compile(r"[^\W\d][\w .-]*(/[^\W\d][\w .-]*)*")
"""Names of records: a variable of a Dataset, an entry of a file."""

MOVES = {
    "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "mul", "neg", "pad",
    "reshape", "select_n", "squeeze", "transpose",
}  # fmt: skip
"""Primitives that hand an infinite number on."""

ELSEWHERE = (*sysconfig.get_paths().values(), str(Path(__file__).parents[1]))
"""Folders of code that is not the caller's."""

CALLBACKS = {"debug_callback", "debug_print", "io_callback", "pure_callback", "python_callback"}
"""Primitives that call Python, whose work no hash of the computation knows."""


class Function(NamedTuple):
    """A traced pure function: callable on pytrees, with its jaxpr and the shapes it returns."""

    jaxpr: Any
    returns: Any

    def __call__(self, *arguments: Any) -> Any:
        leaves = jaxpr_as_fun(self.jaxpr)(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(self.returns), leaves)

    def lowered(self) -> Any:
        """The function of one run, lowered but not compiled."""
        return _lowered(self.jaxpr)

    def digest(self) -> str:
        """A hash of the computation, the arrays it closes over included."""
        return _digest(self.jaxpr)


@functools.lru_cache(16)
def _lowered(jaxpr: Any) -> Any:
    # Arguments that are not used stay, or the text would not say which are.
    return jax.jit(jaxpr_as_fun(jaxpr), keep_unused=True).lower(*jaxpr.in_avals)


@functools.lru_cache(16)
def _digest(jaxpr: Any) -> str:
    text = hashlib.sha256(_lowered(jaxpr).as_text().encode())
    for const in jaxpr.consts:
        text.update(plain(const).tobytes())
    return text.hexdigest()[:16]


class Process(NamedTuple):
    """The traced functions of one run.

    Attributes:
        init: init(point, shared) -> state.
        step: step(point, shared, state, t) -> state.
        streams: {dimension: function}, of the arguments of `step`: `observe`'s records, `finite`
            among them, along `step`, and `inspect`'s, where asked for, along `step_rare`.
    """

    init: Function
    step: Function
    streams: dict[str, Function]

    @property
    def records(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{name: shape and dtype} of all that is recorded, but `finite`."""
        both = {name: leaf for f in self.streams.values() for name, leaf in f.returns.items()}
        return {name: leaf for name, leaf in both.items() if name != "finite"}

    @property
    def functions(self) -> dict[str, Function]:
        """{name in `Dynamics`: function}."""
        named = {STREAMS[stream]: function for stream, function in self.streams.items()}
        return {"init": self.init, "step": self.step, **named}

    def names(self) -> dict[str, str]:
        """{name in `Dynamics`: names of what it returns}, of init those of the state's leaves."""
        named = {name: function.returns for name, function in self.functions.items()}
        return {
            name: ", ".join(
                jax.tree_util.keystr(path, simple=True, separator="/")
                for path, _ in jax.tree_util.tree_leaves_with_path(returns)
            )
            for name, returns in named.items()
            if name != "step"
        }

    def digests(self) -> dict[str, str]:
        """{name in `Dynamics`: a hash of what it computes}."""
        return {name: function.digest() for name, function in self.functions.items()}

    def cost(self, steps: int, counts: Mapping[str, int]) -> Cost:
        """What one run costs, as the compiler counts it before compilation.

        Args:
            steps: of a run.
            counts: {stream: how many records of it}.
        """
        counted = self.step.lowered().cost_analysis() or {}
        recorded = sum(
            counts[stream] * leaf.size * leaf.dtype.itemsize
            for stream, function in self.streams.items()
            for leaf in jax.tree.leaves(function.returns)
        )
        step_bytes, flops = counted.get("bytes accessed", 0.0), counted.get("flops", 0.0)
        return Cost(step_bytes, flops, recorded / steps)

    def run_bytes(self) -> float:
        """Bytes that a run holds at once, at most: all that one of its functions touches."""
        counted = (f.lowered().cost_analysis() or {} for f in self.functions.values())
        return max(one.get("bytes accessed", 0.0) for one in counted)

    def callbacks(self) -> Iterator[str]:
        """The functions that call back to Python while they run."""
        for name, function in self.functions.items():
            if linalg.primitives(function.jaxpr.jaxpr) & CALLBACKS:
                yield name


def traced(
    dynamics: Callable[..., Any],
    point: Mapping[str, Any],
    shared: Mapping[str, Any],
    static: Mapping[str, Any],
    *,
    inspected: bool,
    taken: Collection[str] = (),
) -> Process:
    """Trace one run, and say in one line what the engine cannot run.

    Args:
        dynamics: (**shared, **point, **static) -> Dynamics.
        point: one run's traced hyperparameters.
        shared: arrays that every run reads.
        static: hyperparameters that stay Python values.
        inspected: whether `inspect` is asked for.
        taken: names that a record must not have.

    Raises:
        BadInput: a traced value is needed concretely, the state changes structure in `step`, a
            record is not a flat dict of arrays or has a name that is taken.
    """

    def made(point: Mapping[str, Any], shared: Mapping[str, Any]) -> Dynamics:
        result = dynamics(**shared, **point, **static)
        if not isinstance(result, Dynamics):
            given = type(result).__name__
            raise BadInput(f"dynamics: returned a {given}; return a lab.types.Dynamics")
        if inspected and result.inspect is None:
            raise BadInput("inspect_every: given, but the Dynamics has no inspect; give it one")
        if result.inspect is not None and not inspected:
            raise BadInput("inspect_every: None, but the Dynamics has an inspect; say how often")
        _refuse_signatures(result)
        return result

    def init(point: Any, shared: Any) -> Any:
        return _arrays("init", made(point, shared).init())

    def step(point: Any, shared: Any, state: Any, t: Any) -> Any:
        return _arrays("step", made(point, shared).step(state, t))

    def observe(point: Any, shared: Any, state: Any, t: Any) -> Any:
        record = _record("observe", made(point, shared).observe(state, t), taken)
        return {**record, "finite": _still_finite(state, endless(point, shared))}

    def inspect(point: Any, shared: Any, state: Any, t: Any) -> Any:
        costly = made(point, shared).inspect
        assert costly is not None
        return _record("inspect", costly(state, t), taken)

    t = jax.ShapeDtypeStruct((), jnp.int32)
    start = _function(init, point, shared)
    never = _infinite(start.jaxpr.jaxpr, start.jaxpr.consts)

    def endless(point: Any, shared: Any) -> dict[int, jax.Array]:
        """The leaves of the initial state that may hold infinite numbers; to XLA, constants."""
        if not any(never):
            return {}
        leaves = jaxpr_as_fun(start.jaxpr)(*jax.tree.leaves((point, shared)))
        return {i: leaf for i, leaf in enumerate(leaves) if never[i]}

    at = (point, shared, start.returns, t)
    moved = _function(step, *at)
    _same_structure(start.returns, moved.returns)
    streams = {"step": _function(observe, *at)}
    if inspected:
        streams["step_rare"] = _function(inspect, *at)
        if both := {*streams["step"].returns} & {*streams["step_rare"].returns}:
            raise BadInput(f"inspect: {min(both)!r} is observed too; record each name once")
    process = Process(start, moved, streams)
    for name, function in process.functions.items():
        if "io_callback" in linalg.primitives(function.jaxpr.jaxpr):
            raise BadInput(
                f"{name}: calls back by io_callback, which a compiled sweep cannot order; "
                "sweep(on_segment=...) is called on the host with what is recorded"
            )
    return process


def _refuse_signatures(made: Dynamics) -> None:
    """Raise unless each function of a `Dynamics` is one, of as many arguments as it is given."""
    for name, function in made._asdict().items():
        arguments = [] if name == "init" else ["state", "t"]
        if function is None and name == "inspect":
            continue
        try:
            signature = inspect.signature(function)
        except TypeError:
            raise BadInput(f"{name}: {function!r} is no function; give one") from None
        except ValueError:  # of some callables written in C
            continue
        try:
            signature.bind(*arguments)
        except TypeError:
            raise BadInput(
                f"{name}: takes {signature}; let it take ({', '.join(arguments)})"
            ) from None


def _function(function: Callable[..., Any], point: Mapping[str, Any], *rest: Any) -> Function:
    """`function` traced, naming the hyperparameter to blame when a tracer was needed concretely."""
    try:
        jaxpr, returns = jax.make_jaxpr(function, return_shape=True)(point, *rest)
    except BadInput:
        raise
    except Exception as error:
        blame = _blame(function, error, point, *rest)
        if blame is None:
            raise
        raise BadInput(blame) from error
    shared = range(len(first := jax.tree.leaves(point)), len(first) + len(jax.tree.leaves(rest[0])))
    return Function(linalg.suited(jaxpr, shared), returns)


def _blame(
    function: Callable[..., Any], error: Exception, point: Mapping[str, Any], *rest: Any
) -> str | None:
    """The input to blame, if one is: make one concrete at a time, and see which cures it."""
    ones = {axis: _one(value) for axis, value in point.items()}
    name, where = function.__name__, _where(error)
    for axis in point:
        free = {other: value for other, value in point.items() if other != axis}

        def fixed(free: Any, *rest: Any, axis: str = axis) -> Any:
            return function({**free, axis: ones[axis]}, *rest)

        if _traces(fixed, free, *rest):
            schedule = f"; a schedule of peak 1 may be multiplied by {axis!r}"
            return (
                f"{name}: {axis!r} is traced (one compilation serves all values), but its value "
                f"is asked for{where}; use jnp there, or make {axis!r} a static axis"
                f"{schedule if 'optax' in _files(error) else ''}"
            )
    if rest[1:] and _traces(lambda *most: function(*most, np.int32(0)), point, *rest[:-1]):
        return (
            f"{name}: the step index t is traced, but its value is asked for{where}; use "
            "jnp.where, lax.cond or an array to index, or let `every` choose when to record"
        )
    if isinstance(error, NEEDS_VALUE):
        return f"{name}: a traced array's value is asked for{where}; use jnp functions throughout"
    return None


def _one(like: Any) -> Any:
    """A value of this shape and dtype, a number if it can be one."""
    one = np.ones(like.shape, like.dtype)
    return one if one.ndim else one.item()


def _files(error: Exception) -> str:
    """The files on the way to an error."""
    return " ".join(frame.filename for frame in traceback.extract_tb(error.__traceback__))


def _where(error: Exception) -> str:
    """The last line of the caller's own on the way to an error: " in train.py, line 3: if lr:"."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(ELSEWHERE)]
    if not own:
        return ""
    return f" in {Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line}"


def _traces(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        jax.eval_shape(function, *arguments)
    except Exception:  # whatever else is wrong, this input is not to blame
        return False
    return True


def _arrays(name: str, state: Any) -> Any:
    """The state with strong-typed array leaves: a Python `0.` would cost a second trace."""

    def array(path: Any, leaf: Any) -> Any:
        where = f"state{jax.tree_util.keystr(path)}"
        if isinstance(leaf, bool | int | float | complex | np.ndarray | np.generic):
            leaf = jnp.asarray(exact(name, where, leaf))
        if not isinstance(leaf, jax.Array):
            kind = type(leaf).__name__
            raise BadInput(f"{name}: {where} is a {kind}; a state is a pytree of arrays")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        refuse_half_bytes(name, where, leaf.dtype)
        return lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree_util.tree_map_with_path(array, state)


def _record(name: str, record: Any, taken: Collection[str]) -> dict[str, jax.Array]:
    """The record, if it is a dict of arrays under names that are free; one in another is `a/b`."""
    if not isinstance(record, Mapping):
        raise BadInput(f"{name}: returns a {type(record).__name__}; return {{name: array}}")
    pairs = [*_flat(name, record)]
    flat = dict(pairs)
    for key, value in pairs:
        if [other for other, _ in pairs].count(key) > 1:
            raise BadInput(f"{name}: names {key!r} twice, once within another; rename one")
        if not isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float):
            raise BadInput(f"{name}: {key!r} is a {type(value).__name__}; record an array")
        if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            raise BadInput(f"{name}: {key!r} is a random key; record its jax.random.key_data")
        if key in taken or key in RESERVED:
            raise BadInput(f"{name}: {key!r} is taken by an axis or the engine; rename it")
    return {
        key: value if isinstance(value, jax.Array) else jnp.asarray(exact(name, key, value))
        for key, value in flat.items()
    }


def _flat(name: str, record: Mapping[Any, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if not isinstance(key, str) or not PLAIN.fullmatch(key):
            raise BadInput(f"{name}: names a record {key!r}; give letters, digits, spaces and _-.")
        if isinstance(value, Mapping):
            yield from _flat(name, value, f"{within}{key}/")
        else:
            yield within + key, value


def _still_finite(state: Any, endless: Mapping[int, jax.Array]) -> jax.Array:
    """Whether all numbers are finite, but for those that were not at init."""
    found = [
        (jnp.isfinite(leaf) | ~jnp.isfinite(endless.get(i, 0.0))).all()
        for i, leaf in enumerate(jax.tree.leaves(state))
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.array(found))


def _infinite(jaxpr: Jaxpr, consts: Sequence[Any], given: Sequence[bool] = ()) -> list[bool]:
    """Which results are made from infinite constants by moving them about alone.

    >>> from jax import numpy as jnp
    >>> made = jax.make_jaxpr(lambda x: (jnp.full(3, jnp.inf), x, jnp.exp(-jnp.inf * x)))(1.0)
    >>> _infinite(made.jaxpr, made.consts)
    [True, False, False]
    """
    found = dict(zip(jaxpr.invars, given, strict=False))
    found |= {var: _never_finite(c) for var, c in zip(jaxpr.constvars, consts, strict=True)}

    def of(atom: Any) -> bool:
        return _never_finite(atom.val) if isinstance(atom, Literal) else found.get(atom, False)

    for eqn in jaxpr.eqns:
        inputs, inner = [of(atom) for atom in eqn.invars], eqn.params.get("jaxpr")
        if isinstance(inner, ClosedJaxpr) and len(inner.jaxpr.outvars) == len(eqn.outvars):
            outputs = _infinite(inner.jaxpr, inner.consts, inputs)
        else:
            outputs = [any(inputs) and eqn.primitive.name in MOVES] * len(eqn.outvars)
        found |= zip(eqn.outvars, outputs, strict=True)
    return [of(atom) for atom in jaxpr.outvars]


def _never_finite(value: Any) -> bool:
    """Whether it holds numbers that are not finite."""
    value = value if hasattr(value, "dtype") else np.asarray(value)
    real = jnp.issubdtype(value.dtype, jnp.inexact)
    return real and not bool(np.isfinite(np.asarray(value)).all())


def _same_structure(before: Any, after: Any) -> None:
    one: Any = jax.tree.structure(before)
    other: Any = jax.tree.structure(after)
    if one != other:
        raise BadInput(f"step: returns a state {other}, where init gave {one}; make them alike")
    leaves = jax.tree_util.tree_leaves_with_path(before)
    for (path, leaf), new in zip(leaves, jax.tree.leaves(after), strict=True):
        if (leaf.shape, leaf.dtype) != (new.shape, new.dtype):
            raise BadInput(
                f"step: returns state{jax.tree_util.keystr(path)} as {new.dtype}{list(new.shape)}, "
                f"where init gave {leaf.dtype}{list(leaf.shape)}; make them alike"
            )


def plain(leaf: Any) -> np.ndarray:
    """A leaf as bytes NumPy can keep: random keys as their data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def restored(array: np.ndarray, like: Any) -> Any:
    """The inverse of `plain`, by the dtype of a leaf like it."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(jnp.empty((0,), like.dtype))
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    return array
