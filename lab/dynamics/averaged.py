"""Beside a process: a moving average of its parameters, or the best of them so far."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Real

from lab.dynamics.descent import strong
from lab.numerics import Number, single
from lab.types import BadInput, Dynamics, Params, Record, State

Beside = TypeVar("Beside", "Averaged", "Best")


class Averaged(NamedTuple):
    """State of a process and an average beside it.

    Attributes:
        state: of the process.
        average: of its params.
        count: how many went into it; 0 while it only follows, before its start.
    """

    state: State
    average: Params
    count: Int[Array, ""]  # type: ignore[assignment]  # tuples have a method of that name


class Best(NamedTuple):
    """State of a process and the best of it so far.

    Attributes:
        state: of the process.
        params: those of the least score so far.
        score: theirs.
        step: after how many steps they were reached.
    """

    state: State
    params: Params
    score: Real[Array, ""]
    step: Int[Array, ""]


def averaged(
    process: Dynamics,
    params: Callable[[State], Params] = lambda state: state.params,
    *,
    decay: Number | None = None,
    start: int = 0,
    every: int = 1,
    observe: Callable[[Averaged, Array], Record] | None = None,
    inspect: Callable[[Averaged, Array], Record] | None = None,
) -> Dynamics:
    """`process`, with an average of its params beside it, which does not act on it.

    The params after `start`, `start + every`, ... steps are averaged, those of init being after 0:

        decay None   average <- average + (params - average) / count: the equal mean of them all,
                     stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407)
        decay a      average <- a average + (1 - a) params: the exponential moving average, which
                     starts as the first of them, so that it needs no correction for bias

    Before `start` the average is the params themselves. Integers among them are not averaged, but
    taken as they are, and the average of bfloat16 or float16 is float32. (`optax.ema` averages
    updates, and from zero.)

    Args:
        process: any.
        params: params(state) -> what is averaged.
        decay: a, from 0 to 1, or None; may be a tracer.
        start: steps before the first that is averaged; with a rate that falls and then stays, when
            it stays.
        every: steps between two that are averaged, such as the steps of an epoch.
        observe: observe(averaged, t) -> record, of an `Averaged`; the process's own unless given.
        inspect: as `observe`, for what is costly.

    Raises:
        BadInput: `decay` not from 0 to 1, `start` below 0, `every` not positive.

    >>> halving = Dynamics(
    ...     init=lambda: jnp.float32(8), step=lambda x, t: x / 2, observe=lambda x, t: {"x": x}
    ... )
    >>> mean = averaged(halving, lambda x: x, observe=lambda both, t: {"mean": both.average})
    >>> state = mean.step(mean.step(mean.init(), jnp.int32(0)), jnp.int32(1))
    >>> round(float(mean.observe(state, jnp.int32(2))["mean"]), 4)  # (8 + 4 + 2) / 3
    4.6667
    """
    if not isinstance(decay, jax.core.Tracer | None) and not 0 <= decay <= 1:
        raise BadInput(f"decay: {decay}; give 0 to 1, or None for the equal mean")
    if start < 0:
        raise BadInput(f"start: {start} steps before the average; give 0 or more")
    _check_every(every)

    def init() -> Averaged:
        state = process.init()
        return Averaged(state, single(strong(params(state))), jnp.int32(start == 0))

    def step(both: Averaged, t: Array) -> Averaged:
        state, after = process.step(both.state, t), jnp.asarray(t) + 1
        counted = (after >= start) & ((after - start) % every == 0)
        count = both.count + counted
        share = 1 / jnp.maximum(count, 1) if decay is None else jnp.where(count <= 1, 1, 1 - decay)
        share = jnp.where(after < start, 1, jnp.where(counted, share, 0))

        def moved(old: Array, new: Array) -> Array:
            if not jnp.issubdtype(old.dtype, jnp.inexact):
                return lax.select(jnp.broadcast_to(share > 0, old.shape), new, old)
            part, new = share.astype(old.dtype), new.astype(old.dtype)
            mixed = (1 - part) * old + part * new  # exactly new at 1; a NaN of old must go, too
            return jnp.where(share == 1, new, jnp.where(share == 0, old, mixed))

        return Averaged(state, jax.tree.map(moved, both.average, params(state)), count)

    return _beside(process, init, step, observe, inspect)


def best_so_far(
    process: Dynamics,
    score: Callable[[State], Real[Array, ""]],
    params: Callable[[State], Params] = lambda state: state.params,
    *,
    every: int = 1,
    observe: Callable[[Best, Array], Record] | None = None,
    inspect: Callable[[Best, Array], Record] | None = None,
) -> Dynamics:
    """`process`, with the params of the least score so far beside it, the first of equal ones.

    The score is asked of the initial state and after each `every` steps; one that is NaN is worse
    than any other.

    Args:
        process: any.
        score: score(state) -> scalar, the less the better, such as the loss of `state.params` on
            validation. (`state.loss` of a `Descent` is of the params before its last step.)
        params: params(state) -> what is kept.
        every: steps between two scores.
        observe: observe(best, t) -> record, of a `Best`; the process's own unless given.
        inspect: as `observe`, for what is costly.

    Raises:
        BadInput: `every` not positive.

    >>> falling = Dynamics(
    ...     init=lambda: jnp.float32(3), step=lambda x, t: x - 2, observe=lambda x, t: {"x": x}
    ... )
    >>> best = best_so_far(falling, lambda x: x**2, lambda x: x)
    >>> state = best.step(best.step(best.init(), jnp.int32(0)), jnp.int32(1))
    >>> float(state.params), float(state.score), int(state.step)
    (1.0, 1.0, 1)
    """
    _check_every(every)

    def init() -> Best:
        state = process.init()
        return Best(state, strong(params(state)), strong(score(state)), jnp.int32(0))

    def step(both: Best, t: Array) -> Best:
        state, after = process.step(both.state, t), jnp.asarray(t) + 1

        def asked() -> tuple[Params, Array, Array]:
            new = jnp.asarray(score(state)).astype(both.score.dtype)
            better = (new < both.score) | (jnp.isnan(both.score) & ~jnp.isnan(new))
            found = (params(state), new, after.astype(jnp.int32))
            return jax.tree.map(lambda a, b: jnp.where(better, a, b), found, kept)

        kept = (both.params, both.score, both.step)
        if every == 1:
            return Best(state, *asked())
        return Best(state, *lax.cond(after % every == 0, asked, lambda: kept))

    return _beside(process, init, step, observe, inspect)


def _check_every(every: int) -> None:
    if every < 1:
        raise BadInput(f"every: {every} steps between two; give at least 1")


def _beside(
    process: Dynamics,
    init: Callable[[], Beside],
    step: Callable[[Beside, Array], Beside],
    observe: Callable[[Beside, Array], Record] | None,
    inspect: Callable[[Beside, Array], Record] | None,
) -> Dynamics:
    """A process with more beside its state, observed as it is itself unless told otherwise."""

    def observed(both: Beside, t: Array) -> Record:
        return process.observe(both.state, t)

    def inspected(both: Beside, t: Array) -> Record:
        assert process.inspect is not None
        return process.inspect(both.state, t)

    own = None if process.inspect is None else inspected
    return Dynamics(init, step, observe or observed, inspect or own)
