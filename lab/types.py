"""The four shapes of the lab. Everything else makes, runs or judges one of them.

A `Model` is a pair of pure functions. A `Dynamics` is one learning process: ONE hyperparameter
point, ONE seed. A sweep (`lab.sweep`) runs thousands of them. A `Claim` (`lab.claims`) holds what
was measured against what was predicted.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxtyping import Array, PRNGKeyArray, PyTree

Params: TypeAlias = PyTree[Array]
"""The parameters of a model: any pytree of arrays."""

State: TypeAlias = PyTree[Array]
"""The whole state of a learning process: params, optimiser state, moving averages, own clock."""

Record: TypeAlias = Mapping[str, Array]
"""What is observed at one step: a flat dict of arrays of any (fixed) shape."""

Verdict: TypeAlias = Literal["pass", "fail", "inconclusive"]

Kind: TypeAlias = Literal["closed form", "published value", "direction", "goal"]
"""What a claim is held against: a value that theory gives without a free parameter, one that a
paper measured, an effect of a stated size and sign, or what was set out to be reached."""


class Model(NamedTuple):
    """A network as a pair of pure functions.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, x) -> y`.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[..., Any]


class Dynamics(NamedTuple):
    """One learning process as a discrete-time dynamical system, at one hyperparameter point.

    Gradient descent, Adam, a moving-average target, gradient flow and feedback alignment are all
    of this shape, so one engine runs them all. `t` is the index of the step, an int32 scalar; draw
    a batch from `fold_in(batch_key, t)`, so that a trajectory depends neither on how often it is
    recorded nor on where it was cut and resumed.

    Attributes:
        init: `init() -> state`.
        step: `step(state, t) -> state`; same structure, shapes and dtypes as `init`'s.
        observe: `observe(state, t) -> {name: array}`; cheap, recorded each `every` steps.
        inspect: `inspect(state, t) -> {name: array}`; costly, recorded each `inspect_every` steps.
    """

    init: Callable[[], State]
    step: Callable[[State, Array], State]
    observe: Callable[[State, Array], Record]
    inspect: Callable[[State, Array], Record] | None = None


class Claim(NamedTuple):
    """One sentence about how networks learn, and what a measurement says of it.

    Attributes:
        name: of the claim in its experiment.
        statement: the sentence.
        kind: what it is held against.
        source: the paper, or the closed form it comes from.
        predicted: the value that theory gives (in the units of `measured`), or None where it
            gives a direction only and the tolerance says which.
        estimator: how one seed's value was measured, in words.
        vary: what a seed varies (initialisation, batches, the draw of the data).
        measured: the mean over seeds; of logarithms, where they are averaged.
        interval: confidence interval (low, high) over seeds.
        level: of the interval.
        tolerance: (low, high), set before looking; either end may be infinite.
        why: the reason for the width of the tolerance.
        verdict: `pass` when the whole interval lies inside the tolerance, `fail` when it lies
            outside, `inconclusive` otherwise.
        reason: of a verdict that the numbers alone do not explain, else "".
        values: one measured value per seed; NaN marks a seed that could not be measured.
        control: the same estimator where the effect must be absent; its verdict is `pass` when
            it is absent. None of a control itself.
    """

    name: str
    statement: str
    kind: Kind
    source: str
    predicted: float | None
    estimator: str
    vary: str
    measured: float
    interval: tuple[float, float]
    level: float
    tolerance: tuple[float, float]
    why: str
    verdict: Verdict
    reason: str
    values: tuple[float, ...]
    control: "Claim | None" = None


class BadInput(ValueError):
    """What the caller gave cannot be run: one line with the field, its value and what would do.

    Values of the caller's are shown as they show themselves, cut to one line of bearable length.

    >>> str(BadInput("steps: [[1]\\n [2]] is not a positive int"))
    'steps: [[1] [2]] is not a positive int'
    """

    def __init__(self, line: str):
        line = " ".join(part.strip() for part in line.splitlines())
        super().__init__(line if len(line) <= 1000 else f"{line[:600]} ... {line[-300:]}")
