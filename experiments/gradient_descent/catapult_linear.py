"""Above 2 / sharpness two linear layers are thrown to where it is flatter (Lewkowycz et al. 2020).

m is the learning rate times the tangent kernel at step 0. Two linear layers on one example with
target 0 follow an exact recursion of output and kernel: m < 2 the loss falls; 2 < m < 4 it rises,
by more the wider the network, the kernel falls below 2 / lr, and the loss then vanishes; m > 4 it
diverges. The border is at 4 exactly, at every width (`lab.theory.catapult`); linearised, at 2.

    python -m experiments catapult_linear          # quick: 20 s on two cores
    python -m experiments catapult_linear paper    # 2 minutes; writes figures/

Expect borders within the grid's step of 4 and 2, and the recursion to the digits of float64. A run
has converged when its loss ends below a tenth of the first: at m = 2.01 that takes some 600 steps
(400 were too few for the widest). More than 200 lines because path and border are held to the same
recursion.

Source: Lewkowycz, Bahri, Dyer, Sohl-Dickstein and Gur-Ari 2020, arXiv 2003.02218 (two
linear layers, one example). Widths and steps were chosen on seeds from 100 on, of no preset.
"""

import math
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
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures.curves import border
from lab.models import mlp
from lab.plotting import STYLES, curve, key, panels
from lab.sweep import sweep
from lab.theory.catapult import catapult
from lab.types import BadInput, Dynamics, Params

x64 = True  # the recursion is held to its last digits
SOURCE = "lab.theory.catapult; Lewkowycz et al. 2020, arXiv 2003.02218, "
DIVERGES = {"linear": "border", "linearised": "border"}
BELOW, THROWN, STEP = 1.5, 3.0, 0.02  # an m below 2, one between 2 and 4; the grid's at 2 and 4


@dataclass(frozen=True)
class Config:
    """Settings of the two sweeps."""

    ms: tuple[float, ...] = (
        *(0.5, 1.0, 1.5, 1.9, 1.95, 1.99, 2.01, 2.05, 2.1, 2.5, 3.0, 3.5, 3.75),
        *(3.9, 3.95, 3.99, 4.01, 4.05, 4.1, 4.25, 4.5),
    )
    """Rates times initial kernel, ascending: 1.5, 3 and both sides of 2 and 4 among them."""
    widths: tuple[int, ...] = (8, 32, 128, 512, 2048)
    """Hidden units, ascending."""
    seeds: int = 16
    """How many initialisations for each."""
    first_seed: int = 0
    """The first of them."""
    steps: int = 1_000
    """Gradient steps."""

    def __post_init__(self) -> None:
        """Refuses ms that do not ascend, or without those that are claimed about."""
        need = {BELOW, THROWN, 2 - STEP / 2, 2 + STEP / 2, 4 - STEP / 2, 4 + STEP / 2}
        if not need <= {*self.ms} or [*self.ms] != sorted(self.ms):
            raise BadInput(f"ms: {self.ms}; give them ascending, with {sorted(need)}")


PRESETS = {"quick": Config(seeds=8, widths=(8, 128, 2048)), "paper": Config()}


def training(m: Array, seed: Array, width: int, *, linearised: bool = False) -> Dynamics:
    """Descent at rate m / kernel, on the network or its first-order expansion; x = 1, y = 0."""
    sizes, one = (1, width, 1), jnp.ones((1, 1))
    model = mlp(sizes, activation="identity", gain=1.0, parametrisation="ntk", bias=False)
    start = model.init(jax.random.key(seed))

    def network(params: Params) -> Array:
        return model.apply(params, one)

    def output(params: Params) -> Array:
        moved = jax.tree.map(lambda a, b: a - b, params, start)
        both = sum(jax.jvp(network, (start,), (moved,))) if linearised else network(params)
        return both[0, 0]

    def kernel(params: Params) -> Array:
        return optax.tree.norm(jax.grad(output)(params), squared=True)

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        return {"output": output(state.params), "kernel": kernel(state.params)}

    return descent(
        lambda params: output(params) ** 2 / 2,
        optax.sgd(m / kernel(start)),
        init=lambda: start,
        observe=observe,
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Networks of every width, the widest linearised; the recursion from each start."""

    def swept(name: str, widths: tuple[int, ...], linearised: bool) -> xr.Dataset:
        data = sweep(
            partial(training, linearised=linearised),
            {"m": config.ms, "seed": seeds(config)},
            static={"width": widths},
            steps=config.steps,
            every=1,
            attrs={"seed": {"vary": "initial weights"}},
            store=store / name,
        ).transpose("width", "m", "seed", "step")
        loss = data.output**2 / 2
        converged = loss.isel(step=-1) < 0.1 * loss.isel(step=0)
        limit = border(data.m.values, converged.transpose("width", "seed", "m").values)
        return data.assign(
            loss=loss,
            converged=converged,
            limit=(("width", "seed"), limit),
            lr=(data.m / data.kernel.isel(step=0)).transpose("width", "m", "seed"),
        )

    linear = swept("linear", config.widths, False)
    linear["missed"] = (("law", "seed"), np.stack([missed(linear, f) for f in (False, True)]))
    linear["recursion"] = recursion(linear)
    return {"linear": linear, "linearised": swept("linearised", config.widths[-1:], True)}


def missed(data: xr.Dataset, frozen: bool) -> np.ndarray:
    """Largest error of the recursion's next output and kernel, 2 < m < 4, by seed."""
    at = data.sel(m=slice(2, 4))
    f, kernel = at.output.values, at.kernel.values
    lr = at.lr.values[..., None]
    width = math.inf if frozen else at.width.values[:, None, None, None]
    after = catapult(f[..., :-1], kernel[..., :-1], lr=lr, width=width)
    errors = abs(after[1] - kernel[..., 1:]) / kernel[..., :-1]
    errors = errors + abs(after[0] - f[..., 1:]) / (1 + abs(f[..., :-1]))
    return errors.max((0, 1, 3))


def recursion(data: xr.Dataset) -> xr.DataArray:
    """Losses by the recursion, from each start."""
    state, outputs = (data.output.values[..., 0], data.kernel.values[..., 0]), []
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(data.sizes["step"]):
            outputs.append(state[0])
            width = data.width.values[:, None, None]
            state = catapult(*state, lr=data.lr.values, width=width)
        return data.loss.copy(data=np.stack(outputs, -1) ** 2 / 2)


def expected(config: Config) -> dict[str, Expected]:
    """The recursion, the border, and between 2 and 4 a rise and a flatter end."""
    claim = partial(Expected, vary="initial weights")
    return {
        "recursion": claim(
            "two linear layers follow the recursion of output and kernel",
            below(1e-9, why="rounding of float64, summed over up to 2048 weights"),
            Control("not with a frozen kernel", above(0.1, why="of order 1 once the loss rose")),
            kind="closed form",
            source=SOURCE + "two layers, one example",
            estimator="largest error of kernel / kernel + output / (1 + |output|), 2 < m < 4",
            scale="log",
        ),
        "border": claim(
            "at every width the limit is 4",
            about(4.0, within=0.03, why="three of the grid's half steps"),
            Control("linearised it is not", below(3.0, why="nearer the 2 of a quadratic")),
            kind="closed form",
            source=SOURCE + "two linear layers",
            estimator="midway between the first m that diverges and the last before; farthest of 4",
            grid=STEP / 2,
        ),
        "rise": claim(
            "2 < m < 4: the loss first rises",
            between(0.5, 1.0, why="in more seeds than not; the interval decides", predicted=1.0),
            Control("m < 2: it does not", between(0.0, 0.5, why="in fewer seeds than not")),
            kind="direction",
            source=SOURCE + "two linear layers",
            estimator="share of seeds in which the loss rose above the first at all m; widest",
        ),
        "landing": claim(
            f"m = {THROWN:g}: it lands flatter than 2 / lr",
            below(2 / THROWN, why="2 / lr in units of the first kernel; above, it had not landed"),
            Control(f"m = {BELOW:g}: the kernel stays", above(0.9, why="far from a third less")),
            kind="closed form",
            source=SOURCE + "two linear layers",
            estimator="kernel at the end over the first, geometric mean over widths from 100 on",
            scale="log",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """The network and its expansion; above 2 and below."""
    linear, linearised = data["linear"], data["linearised"].isel(width=0)
    off = abs(linear.limit - 4).fillna(np.inf).argmax("width")
    widest = linear.isel(width=-1)
    rose = widest.loss.max("step") > widest.loss.isel(step=0) * (1 + 1e-9)
    left = np.log(linear.kernel.isel(step=-1) / linear.kernel.isel(step=0))
    left = np.exp(left.sel(width=linear.width >= min(100, int(linear.width[-1]))).mean("width"))
    return {
        "recursion": (linear.missed.isel(law=0), linear.missed.isel(law=1)),
        "border": (linear.limit.isel(width=off), linearised.limit),
        "rise": (rose.sel(m=slice(2, 4)).all("m"), rose.sel(m=slice(0, 2)).all("m")),
        "landing": (left.sel(m=THROWN), left.sel(m=BELOW)),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Losses of three phases beside the recursion; how high they rise, by m and width."""
    linear, widest = data["linear"], data["linear"].isel(width=-1)
    with panels(2, ratio=0.8) as (result, (left, right)):
        for m, style in zip((BELOW, THROWN, 3.75, 4.1), STYLES, strict=False):
            short = widest.sel(m=m, method="nearest").isel(step=slice(0, 61))
            shown = short.isel(step=(short.loss.max("seed") < 1e9).values)
            curve(
                left,
                shown.loss.clip(1e-30),
                log=True,
                label=f"$m = {m:g}$",
                **{**style, "linestyle": "-"},
            )
            middle = np.exp(np.log(shown.recursion.clip(1e-30)).mean("seed"))
            left.plot(shown.step, middle, color="black", linestyle=(0, (4, 2)), linewidth=0.8)
        left.plot([], [], color="black", linestyle=(0, (4, 2)), linewidth=0.8, label="recursion")
        for width, style in zip(linear.width.values, STYLES, strict=False):
            at = linear.sel(width=width, m=slice(None, 4))
            peak = (at.loss.max("step") / at.loss.isel(step=0)).where(
                at.converged.all("seed"), drop=True
            )
            curve(right, peak, log=True, label=f"{width} units", **style)
        for m in (2, 4):
            right.axvline(m, color="0.6", linewidth=0.8)
        left.set(yscale="log", xlabel="step", ylabel="loss", ylim=(1e-8, 1e9), xlim=(-1, 50))
        right.set(yscale="log", xlabel="$m$ = rate × kernel", ylabel="highest loss / first")
        key(left, columns=3)
        key(right, columns=3)
    return result


if __name__ == "__main__":
    main(__name__)
