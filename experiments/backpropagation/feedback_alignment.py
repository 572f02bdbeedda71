"""Forward weights align with the random matrix that brings the error back, as theory says.

Two linear layers 20-64-5 learn a random target of singular values 2, 1.5, 1, 0.7, 0.4 from fresh
normal inputs, batches of 50, by feedback alignment: a fixed random B, here with orthonormal
columns, stands where backpropagation has W_2^T. From zero the angle between W_2 and B^T follows a
closed form in t, rate times steps; from any start B W_2 + W_2^T B^T - W_1 W_1^T stays as it was.

    python -m experiments feedback_alignment          # quick: 10 s on two cores
    python -m experiments feedback_alignment paper    # half a minute; writes figures/

Expect 35.4, 25.3, 20.0, 19.5 degrees at t = 1, 2, 4, 12 to 0.3, the last to 0.05: a limit that is
not 0. From random weights of standard deviation 0.5 / sqrt(fan-in), which are not forgotten, it is
far above.

Source of the rule: Lillicrap et al. 2016, "Random synaptic feedback weights support error
backpropagation for deep learning"; the forms are derived in `lab.theory.feedback`. Settings and
tolerances are of seeds 100 to 107, which no preset uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below, between
from lab.dynamics import Descent, feedback
from lab.experiment import main, seeds
from lab.measures import angle
from lab.models import mlp
from lab.objectives import mse
from lab.plotting import STYLES, curve, key, panels, theory_line
from lab.sweep import sweep
from lab.theory import alignment_angle, alignment_limits, conserved_matrix
from lab.types import BadInput, Dynamics, Params

S = np.array([2.0, 1.5, 1.0, 0.7, 0.4])  # singular values of the target
INPUTS, HIDDEN, BATCH = 20, 64, 50
TIMES = (1.0, 2.0, 4.0, 12.0)  # rate x steps at which the angle is held against theory
CASES = {  # rule, size of the start
    "from zero": ("alignment", 0.0),
    "from random": ("alignment", 0.5),
    "backpropagation": ("backpropagation", 0.5),
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    lr: float = 0.005  # Learning rate, one over a whole number.
    seeds: int = 16  # How many draws of target, feedback, start and batches.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses a rate at which the times are not steps."""
        if not 0 < self.lr <= 1 / 20 or abs(round(1 / self.lr) * self.lr - 1) > 1e-9:
            raise BadInput(f"lr: {self.lr}; give one over a whole number, 1/20 at most")


PRESETS = {"quick": Config(seeds=8), "paper": Config(lr=0.002)}


def training(seed: Array, *, case: tuple[str, float], config: Config) -> Dynamics:
    """SGD by a rule, from zero or from random weights."""
    (rule, size), keys = case, jax.random.split(jax.random.key(seed), 6)
    U, V, B, other = (
        jax.random.orthogonal(one, n)[:, : len(S)]
        for one, n in zip(keys, (len(S), INPUTS, HIDDEN, HIDDEN), strict=False)
    )
    start = mlp((INPUTS, HIDDEN, len(S)), gain=size**2, bias=False).init(keys[4])
    target = V * jnp.asarray(S, V.dtype)[None] @ U.T

    def batch(t: Array) -> tuple[Array, Array]:
        x = jax.random.normal(jax.random.fold_in(keys[5], t), (BATCH, INPUTS))
        return x, x @ target

    def kernels(params: Params) -> tuple[Array, Array]:
        return params["layer_1"]["kernel"], params["layer_2"]["kernel"]

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        (first, second), (was, _) = kernels(state.params), kernels(start)
        moved = conserved_matrix(first, second, B) - conserved_matrix(*kernels(start), B)
        learned = jnp.linalg.norm(first.T @ first - was.T @ was)
        return {
            "angle": angle(second, B),
            "other": angle(second, other),
            "moved": jnp.linalg.norm(moved) / learned,
        }

    return feedback(
        mse,
        optax.sgd(config.lr),
        rule=rule,
        matrices=(B,) if rule == "alignment" else (),
        init=lambda: start,
        batch=batch,
        observe=observe,
        activation=lambda h: h,
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Each case; records from the first quarter of a unit of time on."""
    each = round(1 / config.lr)
    steps = round(TIMES[-1]) * each
    data = sweep(
        partial(training, config=config),
        {"seed": seeds(config)},
        static={"case": CASES},
        steps=steps,
        every=[each // 20, *range(each // 4, steps + 1, each // 4)],
        attrs={"seed": {"vary": "target, feedback, start and batches"}},
        store=store,
    )
    return {"layers": data.assign_coords(time=data.step / each)}


def expected(config: Config) -> dict[str, Expected]:
    """Closed forms, and where they must not hold."""
    by = partial(
        Expected,
        kind="closed form",
        source="lab.theory.feedback",
        vary="target, feedback, start and batches",
    )
    at = ", ".join(f"{t:g}" for t in TIMES)
    late = alignment_limits(S)[1]
    return {
        "path": by(
            "from zero the angle between W_2 and B^T follows its closed form",
            below(1.0, why="batches of 50 scatter by 0.3 early, the rate adds 0.05"),
            Control("from random weights it does not", above(10.0, why="ten times as much")),
            estimator=f"largest |angle - closed form| at t = {at}, degrees",
        ),
        "late": by(
            "from zero the angle ends at its limit",
            about(late, within=0.3, why="the rate takes 0.03 off, and t is not infinite"),
            Control(
                "to an unrelated matrix it stays near 90 degrees",
                between(75.0, 105.0, why="1 / sqrt(320) of a random one is 3", predicted=90.0),
            ),
            estimator=f"angle at t = {TIMES[-1]:g}, degrees",
        ),
        "conserved": by(
            "from random weights B W_2 + W_2^T B^T - W_1 W_1^T stays",
            below(0.02, why="four times what steps of finite size and batches make of it"),
            Control("by backpropagation it does not", above(0.5, why="as large as what it is of")),
            estimator="|change of it| / |change of W_1 W_1^T| at the end",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Of each case at the times that theory is held against."""
    at = data["layers"].swap_dims(step="time").sel(time=[*TIMES])
    theory = xr.DataArray(alignment_angle(S, np.array(TIMES)), dims="time")
    off, end = abs(at.angle - theory).max("time", skipna=False), at.isel(time=-1)
    return {
        "path": (off.sel(case="from zero"), off.sel(case="from random")),
        "late": (end.angle.sel(case="from zero"), end.other.sel(case="from zero")),
        "conserved": (end.moved.sel(case="from random"), end.moved.sel(case="backpropagation")),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """The angle, and what is conserved, against time."""
    layers = data["layers"].swap_dims(step="time")
    time = np.geomspace(0.03, TIMES[-1])
    with panels(2, ratio=0.85) as (result, (left, right)):
        lines = [("angle", case, f"$B^T$, {case}") for case in CASES]
        lines.append(("other", "from zero", "unrelated, from zero"))
        for (name, case, label), style in zip(lines, STYLES, strict=False):
            curve(left, layers[name].sel(case=case), label=label, **style)
        dots = {"color": "black", "linestyle": (0, (2, 2)), "linewidth": 1.2, "zorder": 3}
        left.plot(time, alignment_angle(S, time), **dots, label="closed form")
        for limit in alignment_limits(S):
            theory_line(left, limit, colour="0.6")
        left.plot([], [], color="0.6", linestyle=(0, (4, 2)), linewidth=0.8, label="its limits")
        for case, style in zip(CASES, STYLES, strict=False):
            curve(right, layers.moved.sel(case=case), log=True, label=case, **style)
        left.set(ylabel="angle of $W_2$, degrees", ylim=(0, 100))
        right.set(ylabel=r"$|\Delta C|\,/\,|\Delta W_1 W_1^T|$", yscale="log")
        for axes in (left, right):
            axes.set(xlabel="time (rate × steps)")
        key(left, columns=2, title="to which matrix")
        key(right, columns=1, title=r"$C = BW_2 + W_2^T B^T - W_1W_1^T$")
    return result


if __name__ == "__main__":
    main(__name__)
