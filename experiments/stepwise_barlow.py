"""Barlow Twins learns one dimension at a time, each when a closed form says (Simon et al. 2023).

Linear: an embedding W x of views of cross-moment G, loss |W G Wᵀ - I|², gradient flow from a small
random start. Each eigenvalue of W G Wᵀ is logistic at rate 8 γ_j, its half-time follows from the
start (`lab.theory.barlow`), and the loss falls by one at each. Without off-diagonal terms every
output learns the same dimension; from a large start the steps overlap.

Wide: one hidden layer (ReLU, NTK parametrisation) on pairs of MNIST digits, full batch, the
embedding being what the outputs have gained since init, plus a hundredth of those at init. The
wider, the closer its modes' rates are to 8 γ_j of its tangent kernel at init; nothing is fitted.

In practice: two hidden layers, SGD on minibatches of pairs. Sorted eigenvalues are in order
by construction; what is claimed is that from a small last layer few are in transit at a time.

    python -m experiments.stepwise_barlow          # quick: 75 seconds
    python -m experiments.stepwise_barlow paper    # 3.5 minutes, shared; writes figures/

Expect half-times to 0.03%, the loss to 0.02 of an integer, |log(rate / 8 γ)| of 0.04 at width 1024
against 0.16 at 64 and 0.68 with the plain kernel. Steps in practice are 5 rises apart, 1.7 from a
larger start; that they do not overlap is inconclusive: one of eight seeds has two rise at once for
a while, and from a larger start there is overlap in half of the seeds only.

Source: Simon et al. 2023, arXiv 2303.15438. Tolerances were set on seeds 100 and above.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import claim
from lab.data import Augmentation, mnist, pairs, several_views
from lab.dynamics import Descent, Flow, descent, gradient_flow
from lab.experiment import main
from lab.measures.curves import crossing
from lab.measures.kernel import output_mean, tangent_kernel
from lab.models import mlp
from lab.plotting import OKABE_ITO, paper_style, shades, theory_line
from lab.sweep import sweep
from lab.theory.barlow import half_time, pair_spectrum, starting_strength
from lab.types import BadInput, Claim, Dynamics, Params

SIMON = "Simon et al. 2023, arXiv 2303.15438, "
VIEWS = Augmentation(shift=1.5, rotation=0.3, stretch=0.1, elastic=0.5)
"""Of digits 14 x 14."""


@dataclass(frozen=True)
class Config:
    """Settings of the three sweeps."""

    gammas: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625)
    """Eigenvalues of the linear problem's G, descending."""
    outputs: int = 5
    """Embedding dimensions, of all three; no more than gammas."""
    scales: tuple[float, ...] = (1e-3, 0.3)
    """Standard deviation of the first weights; the last is the control."""
    steps: int = 2_000
    """Steps of gradient flow."""
    dt: float = 0.03
    """Time of each."""
    every: int = 2
    """Steps between two records."""
    widths: tuple[int, ...] = (64, 256, 1024)
    """Of the network that its tangent kernel is to predict, ascending."""
    pairs: int = 64
    """Digits, each in two views that stay the same."""
    kernel_lr: float = 0.015
    """Rate of its descent."""
    kernel_steps: int = 2_400
    """Its steps."""
    kernel_every: int = 2
    """Steps between two records."""
    practical_lr: float = 0.002
    """Rate of SGD on minibatches."""
    practical_steps: int = 2_000
    """Its steps."""
    practical_every: int = 5
    """Steps between two records."""
    practical_scales: tuple[float, ...] = (0.001, 0.3)
    """Factor of the last layer's first weights; the last is the control."""
    seeds: int = 8
    """First weights of each; the wide network's pairs and the minibatches too."""
    first_seed: int = 0
    """The first of them."""


PRESETS = {"quick": Config(seeds=3, widths=(64, 512)), "paper": Config()}


def cross_moment(first: Array, second: Array) -> Array:
    """Of two views' embeddings, symmetric: `E[z z'ᵀ + z' zᵀ] / 2`."""
    cross = first.T @ second / len(first)
    return (cross + cross.T) / 2


def twins(moment: Array, off_diagonal: float | Array = 1.0) -> Array:
    """The loss `|C - I|²`, with a weight for what is off the diagonal."""
    away = (moment - jnp.eye(len(moment))) ** 2
    same = jnp.trace(away)
    return same + off_diagonal * (jnp.sum(away) - same)


def descending(moment: Array) -> Array:
    """Eigenvalues, largest first."""
    return jnp.linalg.eigvalsh(moment)[::-1]


def linear(scale: Array, off_diagonal: Array, seed: Array, *, config: Config) -> Dynamics:
    """Gradient flow of a linear embedding."""
    weight_key, key = jax.random.split(jax.random.key(seed))
    G = jnp.diag(jnp.array(config.gammas))
    shape = (config.outputs, len(config.gammas))

    def init() -> Array:
        return scale * jax.random.normal(weight_key, shape)

    def observe(state: Flow, t: Array) -> dict[str, Array]:
        moment = state.params @ G @ state.params.T
        return {"linear": descending(moment), "loss": twins(moment)}

    def inspect(state: Flow, t: Array) -> dict[str, Array]:
        start, gamma = starting_strength(state.params, G)
        alone = jnp.sum(state.params**2, 0)[: config.outputs] * gamma
        return {"half_time": half_time(start, gamma), "alone": half_time(alone, gamma)}

    return gradient_flow(
        lambda W: twins(W @ G @ W.T, off_diagonal),
        init=init,
        dt=config.dt,
        key=key,
        observe=observe,
        inspect=inspect,
    )


def wide(seed: Array, few: Array, *, width: int, config: Config) -> Dynamics:
    """Full-batch descent of a network of one hidden layer, from outputs that are nearly none."""
    sizes = (few.shape[-1], width, config.outputs)
    model = mlp(sizes, activation="relu", parametrisation="ntk", gain=2.0)
    views = few[seed - config.first_seed]

    def init() -> Params:
        params = model.init(jax.random.key(seed))
        return {"network": params, "outputs": model.apply(params, views)}

    def moment(params: Params) -> Array:
        at_init = jax.lax.stop_gradient(params["outputs"])  # carried along, never changed
        embedding = model.apply(params["network"], views) - 0.99 * at_init
        return cross_moment(*jnp.split(embedding, 2))

    def inspect(state: Descent, t: Array) -> dict[str, Array]:
        kernel = output_mean(tangent_kernel(model.apply, state.params["network"], views))
        spectra = {"tangent": pair_spectrum(kernel), "plain": pair_spectrum(views @ views.T)}
        return {name: values[: config.outputs] for name, values in spectra.items()}

    return descent(
        lambda params: twins(moment(params)),
        optax.sgd(config.kernel_lr),
        init=init,
        observe=lambda state, t: {"wide": descending(moment(state.params))},
        inspect=inspect,
    )


def practical(
    last: Array, seed: Array, views: Array, held_out: Array, *, config: Config
) -> Dynamics:
    """SGD on minibatches of pairs, two hidden layers, the last one's weights times `last`."""
    model = mlp((views.shape[-1], 128, 128, config.outputs), activation="relu", gain=2.0)
    init_key, batch_key = jax.random.split(jax.random.key(seed))

    def init() -> Params:
        params = model.init(init_key)
        return params | {"layer_3": jax.tree.map(lambda w: last * w, params["layer_3"])}

    def moment(params: Params, pair: tuple[Array, Array]) -> Array:
        return cross_moment(*(model.apply(params, view) for view in pair))

    return descent(
        lambda params, pair: twins(moment(params, pair)),
        optax.sgd(config.practical_lr),
        init=init,
        observe=lambda state, t: {"practical": descending(moment(state.params, (*held_out,)))},
        batch=lambda t: pairs(batch_key, t, views, size=128),
    )


def run(config: Config, store: Path) -> xr.Dataset:
    """The linear embedding, the wide networks, and practice.

    Raises:
        BadInput: more outputs than gammas; gammas, scales or widths in another order; one scale.
    """
    if not 3 <= config.outputs <= len(config.gammas):
        raise BadInput(f"outputs: {config.outputs}; give 3 to {len(config.gammas)}, one a gamma")
    if list(config.gammas) != sorted({*config.gammas} - {0.0}, reverse=True):
        raise BadInput(f"gammas: {config.gammas}; give them descending")
    for name in ("scales", "practical_scales", "widths"):
        values = getattr(config, name)
        if len(values) < 2 or list(values) != sorted(set(values)):
            raise BadInput(f"{name}: {values}; give two or more, ascending")
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    flow = sweep(
        partial(linear, config=config),
        {"scale": config.scales, "off_diagonal": [0.0, 1.0], "seed": seeds},
        steps=config.steps,
        every=config.every,
        inspect_every=config.steps,
        dims=dict.fromkeys(("linear", "half_time", "alone"), ("mode",)),
        store=store / "linear",
    )
    train, test = mnist(1_000, pool=2, test=500)
    digits = jnp.concatenate([train.x, test.x])
    views = several_views(jax.random.key(0), digits, VIEWS, count=16, fill=train.x.min(0))
    known, held_out = views[: len(train.x)], jnp.moveaxis(views[len(train.x) :, :2], 1, 0)
    chosen = [np.random.default_rng(s).permutation(len(known))[: config.pairs] for s in seeds]
    few = jnp.concatenate([known[np.array(chosen), i] for i in (0, 1)], axis=1)
    networks = sweep(
        partial(wide, config=config),
        {"seed": seeds},
        static={"width": config.widths},
        shared={"few": few},
        steps=config.kernel_steps,
        every=config.kernel_every,
        inspect_every=config.kernel_steps,
        dims=dict.fromkeys(("wide", "tangent", "plain"), ("mode",)),
        store=store / "wide",
    )
    minibatches = sweep(
        partial(practical, config=config),
        {"last": config.practical_scales, "seed": seeds},
        shared={"views": known, "held_out": held_out},
        steps=config.practical_steps,
        every=config.practical_every,
        dims={"practical": ("mode",)},
        store=store / "practical",
    )
    diverged = [part.diverged_at.values.ravel() for part in (flow, networks, minibatches)]
    start = flow[["half_time", "alone"]].isel(step_rare=0, off_diagonal=0, drop=True)
    flow = flow.drop_vars(["step_rare", *start]).assign(start)
    clocks = {
        "time": (flow, config.dt, ["linear", "loss", "half_time", "alone"]),
        "wide_time": (networks, config.kernel_lr, ["wide"]),
        "practical_time": (minibatches, config.practical_lr, ["practical"]),
    }
    parts = [
        part[names].assign_coords(step=part.step * rate).rename(step=name)
        for name, (part, rate, names) in clocks.items()
    ]
    parts.append(networks[["tangent", "plain"]].rename(step_rare="kernel_step"))
    data = xr.merge(parts, combine_attrs="drop").assign_attrs(flow.attrs)
    return data.assign(
        gamma=("mode", np.array(config.gammas[: config.outputs])),
        diverged_at=("run", np.concatenate(diverged)),
    )


def clock(curves: xr.DataArray) -> str:
    """The dimension that is time."""
    (name,) = (str(dim) for dim in curves.dims if str(dim).endswith("time"))
    return name


def reached(curves: xr.DataArray, level: float) -> xr.DataArray:
    """When a curve first passes a level; NaN where never."""
    time = clock(curves)
    found = crossing(curves[time].values, curves.transpose(..., time).values, level)
    return curves.isel({time: 0}, drop=True).copy(data=found)


def in_transit(curves: xr.DataArray, top: float) -> xr.DataArray:
    """How many modes are between a tenth and `top`, at each time."""
    return ((curves > 0.1) & (curves < top)).sum("mode")


def misses(data: xr.Dataset, gamma: xr.DataArray) -> xr.DataArray:
    """Mean over modes of |log(rate / 8 γ)| of the wide networks."""
    ratio = rates(data) / (8 * gamma)
    missed: xr.DataArray = xr.apply_ufunc(lambda r: np.abs(np.log(r)), ratio)
    return missed.mean("mode", skipna=False)


def rates(data: xr.Dataset) -> xr.DataArray:
    """Of each mode of the wide networks, from the time between 0.2 and 0.8, were it logistic."""
    return 2 * math.log(4) / (reached(data.wide, 0.8) - reached(data.wide, 0.2))


def claims(data: xr.Dataset) -> list[Claim]:
    """Half-times, steps, rank; kernel; practice. Tolerances precede the paper preset."""
    return [*of_the_linear(data), *of_the_wide(data), *of_practice(data)]


def off_step(at: xr.Dataset) -> np.ndarray:
    """Largest distance of the loss from the modes left, where it is flattest between two steps."""
    half_times = np.nan_to_num(reached(at.linear, 0.5).values)  # 0 if it starts above
    time, count = at.time.values, at.sizes["mode"]
    result = []
    for curve, steps in zip(at.loss.values, half_times, strict=True):
        slope = np.abs(np.gradient(curve, time))
        away = []
        for j in range(count - 1):
            slope_between = np.where((time >= steps[j]) & (time <= steps[j + 1]), slope, np.inf)
            away.append(abs(curve[slope_between.argmin()] - (count - 1 - j)))
        result.append(max(away))
    return np.array(result)


def of_the_linear(data: xr.Dataset) -> list[Claim]:
    """What the closed form says of every mode, and of the loss between two."""
    by = partial(claim, seeds="first weights")
    whole, outputs = data.sel(off_diagonal=1.0), data.sizes["mode"]
    small, large = whole.isel(scale=0), whole.isel(scale=-1)

    def missed(predicted: xr.DataArray) -> np.ndarray:
        found = reached(small.linear, 0.5).transpose(*predicted.dims)
        return np.abs(found.values / predicted.values - 1).max(-1)

    time = partial(by, estimator="largest relative error of a half-time, of all modes")
    step = partial(
        by,
        source=SIMON + "figure 1 and section 4",
        estimator="largest distance of the loss from the number of modes left, "
        "where it is flattest between two half-times",
    )
    overlap = partial(
        by,
        source=SIMON + "proposition 4.2; lab.theory.barlow",
        estimator="most modes between 0.1 and 0.9 at one time",
    )
    learned = (data.linear.isel(time=-1, scale=0) > 0.5).sum("mode")
    rank = partial(
        by,
        source="each output alone learns the strongest mode; derived here",
        estimator="modes above a half at the end",
    )
    return [
        time(
            "each mode is half learned when the start says",
            missed(small.half_time),
            source="lab.theory.barlow; " + SIMON + "proposition 4.2",
            predicted=0.0,
            tolerance=(0.0, 0.005),
            why="corrections are of the order of the first eigenvalues, 1e-6, to a small power",
            control=time(
                "not if each mode is taken alone",
                missed(small.alone),
                source="columns of W V instead of their parts orthogonal to the stronger",
                predicted=None,
                tolerance=(0.03, math.inf),
                why="six times the band above",
            ),
        ),
        step(
            "between two steps the loss is the number of modes left",
            off_step(small),
            predicted=0.0,
            tolerance=(0.0, 0.05),
            why="tails of two logistic curves, e^-4 and less",
            control=step(
                "not from a large start",
                off_step(large),
                predicted=None,
                tolerance=(0.2, math.inf),
                why="well outside of the band above",
            ),
        ),
        overlap(
            "from a small start one mode moves at a time",
            in_transit(small.linear, 0.9).max("time").values,
            predicted=1.0,
            tolerance=(0.5, 1.5),
            why="a count",
            control=overlap(
                "from a large one several do",
                in_transit(large.linear, 0.9).max("time").values,
                predicted=None,
                tolerance=(1.5, math.inf),
                why="a count",
            ),
        ),
        rank(
            "all dimensions are learned",
            learned.sel(off_diagonal=1.0).values,
            predicted=float(outputs),
            tolerance=(outputs - 0.5, outputs + 0.5),
            why="a count",
            control=rank(
                "without the off-diagonal terms one is",
                learned.sel(off_diagonal=0.0).values,
                predicted=1.0,
                tolerance=(0.5, 1.5),
                why="a count",
            ),
        ),
    ]


def of_the_wide(data: xr.Dataset) -> list[Claim]:
    """Rates against the tangent kernel at init, at the largest width, and how the error falls."""
    by = partial(claim, source=SIMON + "section 5", seeds="weights, digits, views")
    start = data[["tangent", "plain"]].isel(kernel_step=0)
    tangent = misses(data, start.tangent)
    offset = np.log(start.tangent / start.plain).mean("mode")
    plain = misses(data, start.plain * np.exp(offset))
    wide, narrow = int(data.width[-1]), int(data.width[0])
    rate = partial(by, estimator="mean over modes of |log(rate / 8 γ)|")
    falls = partial(by, estimator=f"that of width {wide} over that of width {narrow}")

    def ratio(missed: xr.DataArray) -> np.ndarray:
        return (missed.sel(width=wide) / missed.sel(width=narrow)).values

    return [
        rate(
            f"width {wide}: rates are 8 γ of the tangent kernel at init",
            tangent.sel(width=wide).values,
            predicted=0.0,
            tolerance=(0.0, 0.1),
            why="corrections fall as 1 / sqrt(width)",
            control=rate(
                "not of the plain kernel x · x', scaled to the same geometric mean",
                plain.sel(width=wide).values,
                predicted=None,
                tolerance=(0.1, math.inf),
                why="outside of the band above",
            ),
        ),
        falls(
            "the wider, the closer",
            ratio(tangent),
            predicted=None,
            tolerance=(0.0, 0.6),
            why="1 / 4 if errors fall as 1 / sqrt(width), 1 if they do not",
            control=falls(
                "the plain kernel's error does not fall so",
                ratio(plain),
                predicted=None,
                tolerance=(0.6, math.inf),
                why="it is no error of width",
            ),
        ),
    ]


def of_practice(data: xr.Dataset) -> list[Claim]:
    """Modes of minibatch training from a small start: how many move at a time, how far apart."""
    by = partial(claim, source=SIMON + "section 6", seeds="weights and batches")
    small, large = (data.practical.isel(last=i) for i in (0, -1))
    moving = partial(
        by, estimator="share of the time with a mode between 0.1 and 0.5 in which there are more"
    )
    apart = partial(
        by,
        predicted=None,
        estimator="mean time between half-times over mean time from 0.1 to 0.5, from mode 2 on",
    )

    def overlap(curves: xr.DataArray) -> np.ndarray:
        count = in_transit(curves, 0.5)
        some = np.maximum((count > 0).sum("practical_time").values, 1)
        return (count > 1).sum("practical_time").values / some

    def spacing(curves: xr.DataArray) -> np.ndarray:
        half = reached(curves, 0.5).isel(mode=slice(1, None))
        rise = half - reached(curves, 0.1).isel(mode=slice(1, None))
        return (
            (half.diff("mode") / rise.mean("mode", skipna=False)).mean("mode", skipna=False).values
        )

    return [
        moving(
            "in practice too, from a small last layer one mode rises at a time",
            overlap(small),
            predicted=0.0,
            tolerance=(0.0, 0.05),
            why="a brief meeting of two; above a half noise of batches slows all",
            control=moving(
                "from a larger one several do",
                overlap(large),
                predicted=None,
                tolerance=(0.05, math.inf),
                why="outside of the band above",
            ),
        ),
        apart(
            "in practice too, steps are spaced",
            spacing(small),
            tolerance=(3.0, math.inf),
            why="logarithmic in the start: log(1000) / log(3) times that of the control, or so",
            control=apart(
                "from a larger last layer less so",
                spacing(large),
                tolerance=(-math.inf, 3.0),
                why="outside of the band above",
            ),
        ),
    ]


def figure(data: xr.Dataset) -> Figure:
    """Eigenvalues and loss of the linear embedding; rates against the kernel's; practice."""
    dashed: dict[str, Any] = {"color": "0.2", "linestyle": (0, (4, 2)), "linewidth": 0.7}
    modes = data.sizes["mode"]
    with paper_style("neurips", columns=3, ratio=1.0):
        result, (left, middle, right) = plt.subplots(1, 3)
        at = data.sel(off_diagonal=1.0).isel(scale=0, seed=0)
        left.plot(at.time, at.loss / modes, color=OKABE_ITO[1], label="loss / outputs")
        for j, colour in enumerate(shades(modes)):
            one = at.isel(mode=j)
            left.plot(at.time, one.linear, color=colour)
            gamma, when = float(one.gamma), float(one.half_time)
            left.plot(at.time, 1 / (1 + np.exp(-8 * gamma * (at.time - when))), **dashed)
        left.set(xlabel="time, rate × steps", ylabel="eigenvalue", ylim=(-0.03, 1.3))
        left.legend(loc="upper right", fontsize="small", borderaxespad=0)
        measured, kernel = rates(data), 8 * data.tangent.isel(kernel_step=0)
        for width, colour in zip(data.width.values, shades(data.sizes["width"]), strict=True):
            x, y = (values.sel(width=width).values.ravel() for values in (kernel, measured))
            middle.plot(x, y, ".", ms=3, color=colour, label=f"{width}")
        ends = [float(kernel.min()), float(kernel.max())]
        middle.plot(ends, ends, **dashed)
        middle.set(xscale="log", yscale="log", ylabel="measured rate")
        middle.set_xlabel("8 × eigenvalue of tangent kernel")
        middle.legend(title="width", loc="upper left", handletextpad=0, fontsize="small")
        for j, colour in enumerate(shades(modes)):
            each = data.practical.isel(last=0, mode=j).transpose("practical_time", "seed")
            right.plot(data.practical_time, each, color=colour, linewidth=0.4, alpha=0.7)
        theory_line(right, 1.0)
        right.set(xlabel="time, rate × steps", ylabel="eigenvalue, minibatches")
    return result


if __name__ == "__main__":
    main(__name__)
