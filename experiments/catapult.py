"""Above 2 / sharpness gradient descent is thrown, and lands where it is flatter; up to a limit.

m is the learning rate times the largest eigenvalue of the tangent kernel at step 0. Two linear
layers (one example, target 0) follow an exact recursion of output and kernel: m < 2 the loss falls;
2 < m < 4 it rises, by more the wider the network, the kernel falls below 2 / lr, and the loss then
vanishes; m > 4 it diverges. The border is at 4 exactly, at every width (`lab.theory.catapult`).
Networks of 512 ReLU or tanh units in one or two hidden layers (NTK parametrisation) on 20 MNIST
digits (7 x 7; below 5 against the rest as -1 and 1) have limits of their own; linearised, any
network diverges from 2 on.

    python -m experiments.catapult          # quick: 2 minutes on two cores
    python -m experiments.catapult paper    # 16 minutes on two busy cores; writes figures/

Expect borders at 4.00 (linear, and ReLU with one hidden layer) and 2.0 (linearised), about 12 for
ReLU with two hidden layers, and 4 to 5 for tanh. A run has converged when its loss ends below a
tenth of the first: a dead ReLU network, whose loss stays at 1/2, has not.

Source: Lewkowycz, Bahri, Dyer, Sohl-Dickstein and Gur-Ari 2020, arXiv 2003.02218: section 2 and
equations 4 and 5 (linear), section 3 (ReLU: limit about 12). Tolerances were set, and widths and
steps chosen, on seeds from 100 on, which no preset uses.
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
from lab.data import mnist
from lab.dynamics import Descent, descent
from lab.experiment import main
from lab.measures.curves import border
from lab.models import mlp
from lab.objectives import mse
from lab.plotting import OKABE_ITO, paper_style, shades
from lab.sweep import sweep
from lab.theory.catapult import catapult
from lab.types import Claim, Dynamics, Params

x64 = True  # the recursion is held to its last digits
SOURCE = "Lewkowycz et al. 2020, arXiv 2003.02218, "
SEEDS = "initial weights"
BORDER = partial(
    claim,
    estimator="midway between the first m that does not converge and the one before",
    seeds=SEEDS,
)
GAINS = {"relu": 2.0, "tanh": 1.0}


@dataclass(frozen=True)
class Config:
    """Settings of the three sweeps."""

    ms: tuple[float, ...] = (
        *(0.5, 1.0, 1.5, 1.9, 1.95, 2.05, 2.1, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75),
        *(3.9, 3.95, 3.98, 3.99, 4.01, 4.02, 4.05, 4.1, 4.25, 4.5),
    )
    """Rates times initial kernel, ascending, of the linear network."""
    widths: tuple[int, ...] = (8, 32, 128, 512, 2048)
    """Its widths."""
    curved: tuple[float, ...] = (
        *(1.0, 1.9, 2.5, 3.0, 3.5, 3.75, 4.25, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0),
        *(11.0, 12.0, 13.0, 14.0, 16.0, 20.0),
    )
    """The same of ReLU and tanh networks."""
    straight: tuple[float, ...] = (1.0, 1.9, 2.1, 3.0, 6.0, 12.0, 20.0)
    """The same of those linearised."""
    hidden: int = 512
    """Their width."""
    layers: tuple[int, ...] = (1, 2)
    """Their hidden layers, ascending."""
    curved_steps: int = 160
    """Their gradient steps."""
    examples: int = 20
    """Digits that they learn."""
    seeds: int = 16
    """Initialisations for each."""
    first_seed: int = 0
    """The first of them."""
    steps: int = 400
    """Gradient steps of the linear network."""
    every: int = 1
    """Steps between two records."""


PRESETS = {"quick": Config(seeds=6, widths=(8, 128, 2048), hidden=128), "paper": Config()}


def training(
    m: Array,
    seed: Array,
    width: int,
    *,
    activation: str = "identity",
    linearised: bool = False,
    layers: int = 1,
    x: np.ndarray,
    y: np.ndarray,
) -> Dynamics:
    """Descent at rate m / kernel, on the network or its first-order expansion."""
    sizes, gain = (x.shape[1], *[width] * layers, 1), GAINS.get(activation, 1.0)
    model = mlp(sizes, activation=activation, gain=gain, parametrisation="ntk", bias=False)
    start = model.init(jax.random.key(seed))

    def network(params: Params) -> Array:
        return model.apply(params, jnp.array(x, float))

    def predict(params: Params) -> Array:
        moved = jax.tree.map(lambda a, b: a - b, params, start)
        return sum(jax.jvp(network, (start,), (moved,))) if linearised else network(params)

    def loss(params: Params) -> Array:
        return mse(predict(params), jnp.array(y, float))

    def kernel(params: Params) -> Array:
        slopes = jax.tree.leaves(jax.jacobian(predict)(params))
        flat = [slope.reshape(len(x), -1) for slope in slopes]
        return jnp.linalg.eigvalsh(sum(J @ J.T for J in flat) / len(x))[-1]

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        return {"loss": loss(state.params), "output": predict(state.params)[0, 0]}

    def inspect(state: Descent, t: Array) -> dict[str, Array]:
        return {"kernel": kernel(state.params)}

    lr = m / kernel(start)
    return descent(loss, optax.sgd(lr), init=lambda: start, observe=observe, inspect=inspect)


def run(config: Config, store: Path) -> xr.Dataset:
    """Linear networks of every width, the widest linearised, ReLU and tanh with and without."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    engine = partial(sweep, steps=config.steps, every=config.every)
    one = partial(training, x=np.ones((1, 1)), y=np.zeros((1, 1)))
    linear = engine(
        one,
        {"m": config.ms, "seed": seeds},
        inspect_every=config.every,
        static={"width": config.widths},
        store=store / "linear",
    )
    expanded = engine(
        partial(one, linearised=True),
        {"m": config.ms, "seed": seeds},
        inspect_every=config.every,
        static={"width": [max(config.widths)]},
        store=store / "expanded",
    )
    digits = mnist(config.examples, pool=4).train
    small = np.argmax(digits.y, axis=1) < 5
    own = partial(
        sweep,
        steps=config.curved_steps,
        every=config.every,
        inspect_every=config.curved_steps,
        static={"activation": [*GAINS], "layers": config.layers},
    )
    y = np.where(small, -1.0, 1.0)[:, None]
    process = partial(training, width=config.hidden, x=np.asarray(digits.x), y=y)
    curved = own(process, {"m": config.curved, "seed": seeds}, store=store / "curved")
    straight = own(
        partial(process, linearised=True),
        {"m": config.straight, "seed": seeds},
        store=store / "straight",
    )
    shorter = {"step": "curved_step", "step_rare": "ends"}
    curved, straight = curved.rename(shorter), straight.rename(shorter)
    expanded = expanded.isel(width=0, drop=True)
    others = {f"expanded_{name}": expanded[name] for name in ("loss", "kernel")}
    others |= {f"curved_{n}": curved[n].rename(m="curved_m") for n in ("loss", "kernel")}
    others |= {"straight_loss": straight.loss.rename(m="straight_m")}
    return linear.assign(others)


def converged(loss: xr.DataArray) -> xr.DataArray:
    """Whether the last loss is below a tenth of the first; one that blew up is not."""
    step = next(dim for dim in loss.dims if str(dim).endswith("step"))
    return loss.isel({step: -1}) < 0.1 * loss.isel({step: 0})


def limit(loss: xr.DataArray) -> np.ndarray:
    """Midway between the first m that does not converge (NaN if all do) and the one before."""
    dim = next(str(dim) for dim in loss.dims if str(dim).endswith("m"))
    return border(loss[dim].values, converged(loss).transpose("seed", dim).values)


def missed(data: xr.Dataset, *, frozen: bool) -> np.ndarray:
    """Largest error of the recursion from record to record, m from 2 to 4, by seed."""
    at = data.sel(m=slice(2, 4)).rename(step_rare="record").drop_vars("record")
    f, kernel = at.output.rename(step="record").drop_vars("record"), at.kernel
    lr = at.m / kernel.isel(record=0)
    before, after = {"record": slice(None, -1)}, {"record": slice(1, None)}
    width = math.inf if frozen else at.width
    state = (f.isel(before), kernel.isel(before))
    for _ in range(int(data.step[1])):
        state = catapult(*state, lr=lr, width=width)
    errors = abs(state[1] - kernel.isel(after)) / kernel.isel(before)
    errors += abs(state[0] - f.isel(after)) / (1 + abs(f.isel(before)))
    return errors.max(("m", "width", "record"), skipna=False).values


def claims(data: xr.Dataset) -> list[Claim]:
    """Recursion, border, phases, other activations; tolerances were set before the paper run."""
    return [*recursion(data), *borders(data), *phases(data), *activations(data)]


def recursion(data: xr.Dataset) -> list[Claim]:
    """Output and kernel alone determine the next ones."""
    holds = partial(
        claim,
        source=SOURCE + "equations 4 and 5",
        estimator="largest error of kernel / kernel + output / (1 + |output|) a record, 2 < m < 4",
        seeds=SEEDS,
    )
    return [
        holds(
            "two linear layers follow the recursion of output and kernel",
            missed(data, frozen=False),
            predicted=0.0,
            tolerance=(0.0, 1e-9),
            why="rounding of float64, summed over up to 2048 weights",
            control=holds(
                "not with a frozen kernel",
                missed(data, frozen=True),
                predicted=None,
                tolerance=(0.1, math.inf),
                why="the terms of order 1 / width are of order one once the loss has risen",
            ),
        )
    ]


def borders(data: xr.Dataset) -> list[Claim]:
    """4 at every width; 2 linearised."""
    linearised = BORDER(
        "linearised: the limit is 2",
        limit(data.expanded_loss),
        source="a quadratic",
        predicted=2.0,
        tolerance=(1.9, 2.1),
        why="the grid's neighbours of 2",
    )
    return [
        BORDER(
            f"linear, width {width}: the limit is 4",
            limit(data.loss.sel(width=width)),
            source="lab.theory.catapult; " + SOURCE + "section 2",
            predicted=4.0,
            tolerance=(3.98, 4.02),
            why="the grid's second neighbours of 4",
            control=linearised,
        )
        for width in data.width.values
    ]


def phases(data: xr.Dataset) -> list[Claim]:
    """Between 2 and 4 the loss rises, and the kernel ends below 2 / lr."""
    loss = data.loss.sel(width=data.width.max())
    rose = loss.max("step") > loss.isel(step=0) * (1 + 1e-9)
    catapulted = data.sel(m=slice(2, 4))
    landed = (
        catapulted.m * catapulted.kernel.isel(step_rare=-1) / catapulted.kernel.isel(step_rare=0)
    )
    frozen = data.expanded_kernel.sel(m=slice(2, 4))
    stayed = frozen.m * frozen.isel(step_rare=-1) / frozen.isel(step_rare=0)
    rises = partial(
        claim,
        source=SOURCE + "section 2",
        estimator="did the loss rise above the first at every m in the range (1 or 0), widest",
        seeds=SEEDS,
    )
    lands = partial(
        claim,
        source="lab.theory.catapult; " + SOURCE + "section 2",
        estimator="learning rate times kernel at the end, largest over 2 < m < 4 and widths",
        predicted=None,
        seeds=SEEDS,
    )
    return [
        rises(
            "2 < m < 4: the loss first rises",
            rose.sel(m=slice(2, 4)).all("m").values,
            predicted=1.0,
            tolerance=(0.5, 1.0),
            why="in more seeds than not; the interval decides",
            control=rises(
                "m < 2: it never does",
                rose.sel(m=slice(0, 2)).any("m").values,
                predicted=0.0,
                tolerance=(0.0, 0.5),
                why="in fewer seeds than not; the interval decides",
            ),
        ),
        lands(
            "2 < m < 4: and lands flatter than 2 / lr",
            landed.max(("m", "width"), skipna=False).values,
            tolerance=(0.0, 2.0),
            why="above 2 it would not have landed",
            control=lands(
                "linearised: the kernel stays above 2 / lr",
                stayed.max("m", skipna=False).values,
                tolerance=(2.0, math.inf),
                why="the complement",
            ),
        ),
    ]


def activations(data: xr.Dataset) -> list[Claim]:
    """ReLU and tanh networks pass 2 too, to limits of their own."""

    def linearised(activation: str, layers: int) -> Claim:
        return BORDER(
            f"{activation}, {layers} hidden, linearised: the limit is 2",
            limit(data.straight_loss.sel(activation=activation, layers=layers)),
            source="a quadratic",
            predicted=2.0,
            tolerance=(1.9, 2.1),
            why="the grid's neighbours of 2",
        )

    def own(activation: str, layers: int, expected: str, **options: Any) -> Claim:
        return BORDER(
            f"{activation}, {layers} hidden: the limit is {expected}",
            limit(data.curved_loss.sel(activation=activation, layers=layers)),
            control=linearised(activation, layers),
            **options,
        )

    shallow, deep = int(data.layers.min()), int(data.layers.max())
    return [
        own(
            "relu",
            deep,
            "about 12",
            source=SOURCE + "section 3: about 12 / kernel",
            predicted=12.0,
            tolerance=(10.0, 14.0),
            why="'about', and a grid of steps of 1",
        ),
        own(
            "relu",
            shallow,
            "that of the linear network",
            source="linear in each layer but for units that switch; found on other seeds",
            predicted=4.0,
            tolerance=(3.5, 4.5),
            why="the grid's neighbours of 4, twice",
        ),
        own(
            "tanh",
            deep,
            "above 2.5",
            source=SOURCE + "section 3: other activations are catapulted too",
            predicted=None,
            tolerance=(2.5, math.inf),
            why="beyond any doubt of the linearised one",
        ),
    ]


def tables(data: xr.Dataset) -> dict[str, dict[str, float]]:
    """ReLU and tanh networks: the share converged by m, and runs left without any slope."""
    down = converged(data.curved_loss).mean("seed")
    dead = (data.curved_kernel.isel(ends=-1) < 1e-12).sum(("seed", "curved_m"))
    shares = {
        f"share converged, {activation}, {layers} hidden": {
            f"{m:g}": float(down.sel(activation=activation, layers=layers, curved_m=m))
            for m in data.curved_m.values
        }
        for activation in data.activation.values
        for layers in data.layers.values
    }
    return {
        **shares,
        "dead": {a: float(dead.sel(activation=a).sum()) for a in dead.activation.values},
    }


def figure(data: xr.Dataset) -> Figure:
    """One start's three phases; its landscape; the phase diagram; who converges."""
    dashed: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 0.8}
    widest = data.sel(width=data.width.max())
    with paper_style("neurips", rows=2, columns=2, ratio=0.62):
        result, ((left, land), (middle, right)) = plt.subplots(2, 2)
        draw_landscape(land, widest.sel(m=3.0, method="nearest").isel(seed=0))
        for m, colour in zip((1.5, 3.0, 3.75, 4.1), shades(4), strict=True):
            at = widest.sel(m=m, method="nearest").isel(seed=0)
            loss = at.loss.where(at.loss < 1e9)
            left.plot(at.step, loss, color=colour, label=f"{float(at.m):g}")
            state: Any = (float(at.output[0]), float(at.kernel[0]))
            path, lr = [state], float(at.m / at.kernel[0])
            for _ in range(int(at.step[-1])):
                if abs(state[0]) < 1e5:
                    state = catapult(*state, lr=lr, width=int(at.width))
                    path.append(state)
            left.plot(np.array(path)[:, 0] ** 2 / 2, **dashed)
        peak = np.log10(data.loss.max("step") / data.loss.isel(step=0)).mean("seed")
        shown = peak.where(converged(data.loss).mean("seed") > 0.5).transpose("width", "m")
        colours = middle.pcolormesh(data.m, np.arange(data.sizes["width"]), shown, cmap="viridis")
        middle.set_yticks(range(data.sizes["width"]), labels=[f"{n}" for n in data.width.values])
        middle.set_facecolor("0.85")
        result.colorbar(colours, ax=middle, label="log$_{10}$ peak / first loss")
        curves = {"linear, 1": widest.loss, "linearised": data.expanded_loss}
        for activation, name in {"relu": "ReLU", "tanh": "tanh"}.items():
            for layers in data.layers.values:
                at = data.curved_loss.sel(activation=activation, layers=layers)
                curves[f"{name}, {layers}"] = at
        for (name, loss), hue in zip(curves.items(), OKABE_ITO, strict=False):
            share = converged(loss).mean("seed")
            right.plot(share[share.dims[0]], share, ".-", ms=3, color=hue, label=name)
        for m in (2, 4, 12):
            right.axvline(m, ymax=0.5, **dashed)
        left.set(yscale="log", xlim=(0, 60), ylim=(1e-6, 1e7), xlabel="step", ylabel="loss")
        left.legend(title="$m$", loc="upper right")
        middle.set(xlabel="$m$ = rate $\\times$ kernel", ylabel="width")
        right.set(xscale="log", xlabel="$m$ = rate $\\times$ kernel", ylabel="share converged")
        right.set_xticks([1, 2, 4, 12], labels=["1", "2", "4", "12"])
        right.minorticks_off()
        right.set(ylim=(-0.05, 2.1))
        right.set_yticks([0, 0.5, 1])
        right.legend(
            title="hidden layers",
            fontsize="x-small",
            title_fontsize="x-small",
            loc="upper right",
            ncols=2,
            columnspacing=0.5,
            handlelength=0.8,
        )
    return result


def draw_landscape(axes: Any, at: xr.Dataset) -> None:
    """A path through the plane of u + v and u - v, which it never leaves, and the loss there.

    The two layers u, v with output f = u · v / √n move by `u + v <- (1 - lr f / √n) (u + v)` and
    `u - v <- (1 + lr f / √n) (u - v)`: two lengths are all there is. As the kernel is
    `(|u|² + |v|²) / n`, their squares over n are `kernel ± 2 f / √n`.
    """
    root, kernel = math.sqrt(float(at.width)), at.kernel.rename(step_rare="step")
    first = float(kernel[0])
    shift = 2 * at.output / root
    plus, minus = (np.sqrt(np.maximum(kernel + s * shift, 0) / first) for s in (1, -1))
    grid = np.linspace(0, 1.9, 200)
    output = root * first * (grid[None] ** 2 - grid[:, None] ** 2) / 4
    levels = np.logspace(-1, 5, 13)
    heights = axes.contourf(
        grid, grid, output**2 / 2, levels, norm="log", cmap="Greys", alpha=0.6, extend="both"
    )
    axes.figure.colorbar(heights, ax=axes, label="loss", ticks=[1e-1, 1e1, 1e3, 1e5])
    angle = np.linspace(0, np.pi / 2, 100)
    edge = 2 / math.sqrt(float(at.m))
    axes.plot(edge * np.cos(angle), edge * np.sin(angle), color="black", lw=0.8, ls=(0, (4, 2)))
    axes.plot(plus, minus, ".-", color=OKABE_ITO[1], markersize=2, linewidth=0.6)
    axes.plot(plus[0], minus[0], "o", color=OKABE_ITO[1], markersize=4)
    axes.text(0.1, edge + 0.03, "kernel = 2 / lr", fontsize="x-small")
    axes.set(xlabel=r"$|u + v| / \sqrt{n \lambda_0}$", ylabel=r"$|u - v| / \sqrt{n \lambda_0}$")
    axes.set(xlim=(0, 1.9), ylim=(0, 1.9))


if __name__ == "__main__":
    main(__name__)
