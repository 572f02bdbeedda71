"""A wide network learns low frequencies first, each at its kernel's rate, and some of them never.

On points of a circle the tangent kernel of two ReLU layers has waves as eigenfunctions: descent
shrinks the residual at frequency k by 1 - lr l_k a step. Without biases l_k is in closed form,

    l_0 = 6 / pi^2,  l_1 = 1/2,  l_k = 2 (k^2 + 3) / (pi^2 (k^2 - 1)^2) if k is even, else 0,

as relu(u) - relu(-u) = u makes odd functions but linear ones out of reach, at any width. Biases
lend them eigenvalues.

    python -m experiments spectral_bias          # quick: 20 s on two cores
    python -m experiments spectral_bias paper    # a minute; writes figures/

64 points, target 0.02 Σ cos(k th + 0.3 k), network less its start, full batch, lr = 1 / l_0. Expect
half-times as predicted to some percent on average at width 2,048 (a network's own scatter by 5%),
and residuals of frequencies 3 and 5 at 1 for ever. A larger target moves the kernel: of size 0.1
half-times are 2% longer at frequency 6, 5% at 8, at any width up to 8,192.

Sources: Rahaman et al. 2019, arXiv 1806.08734 (low frequencies first); Basri et al. 2019, arXiv
1906.00425 (rates on the circle, odd ones). Tolerances were set on seeds 100 to 107.
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

from lab.claims import Control, Expected, Measured, about, below
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures import reached
from lab.models import mlp
from lab.objectives import mse
from lab.plotting import STYLES, curve, key, panels, points
from lab.sweep import sweep
from lab.theory import relu_kernel
from lab.types import BadInput, Dynamics, Params

SOURCE = "lab.theory.kernels on the circle; Basri et al. 2019, arXiv 1906.00425"
POINTS = 64
EVEN, ODD = (2, 4, 6, 8), (3, 5)
WAVES = (1, *sorted(EVEN + ODD))
"""Frequencies of the target."""
SIZE = 0.02
"""Of each of them."""


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    width: int = 2_048  # Hidden units.
    steps: int = 640  # Of gradient descent.
    seeds: int = 40  # How many initial weights.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses runs that are too short for the highest frequency to be half learned."""
        if self.steps < (least := 1 + int(half_times(biases=True)[-1])):
            raise BadInput(f"steps: {self.steps}; give at least {least}")


def spectrum(biases: bool) -> np.ndarray:
    """Eigenvalues l_k of the kernel over the points' number, k = 0 ... POINTS / 2.

    A bias is a third coordinate, 1: inputs of squared length 2.
    """
    c = np.cos(2 * np.pi * np.arange(POINTS) / POINTS)
    kernel = 2 * relu_kernel((c + 1) / 2) if biases else relu_kernel(c)
    return np.fft.rfft(kernel).real / POINTS


def half_times(biases: bool) -> np.ndarray:
    """Steps in which the residual at each of WAVES is halved; infinite where it never is."""
    share = np.maximum(spectrum(biases)[[*WAVES]] / spectrum(biases).max(), 1e-15)
    with np.errstate(divide="ignore"):
        return np.log(0.5) / np.log1p(-share)


PRESETS = {"quick": Config(seeds=20), "paper": Config()}


def training(seed: Array, *, biases: bool, config: Config) -> Dynamics:
    """Gradient descent on the circle; the size of the residual at each frequency."""
    th = 2 * np.pi * jnp.arange(POINTS) / POINTS
    coordinates = [jnp.cos(th), jnp.sin(th)] + [jnp.ones(POINTS)] * biases
    k = jnp.array(WAVES)
    y = SIZE * jnp.sum(jnp.cos(th[:, None] * k[None] + 0.3 * k[None]), 1, keepdims=True)
    d = len(coordinates)
    # mlp divides by the root of d / 2: inputs of length 1, or the root of 2, for the rest of it.
    x = jnp.stack(coordinates, 1) * (d / 2) ** 0.5
    model = mlp((d, config.width, 1), activation="relu", parametrisation="ntk", gain=2, bias=False)
    start = model.init(jax.random.key(seed))

    def outputs(params: Params) -> Array:
        return model.apply(params, x) - model.apply(start, x)

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        off = outputs(state.params) - y
        parts = [jnp.mean(wave(th[:, None] * k[None]) * off, 0) for wave in (jnp.cos, jnp.sin)]
        return {"residual": 2 * jnp.hypot(*parts) / SIZE}

    sgd = optax.sgd(1 / float(spectrum(biases).max()))
    return descent(lambda p: mse(outputs(p), y), sgd, init=lambda: start, observe=observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Without biases and with them."""
    data = sweep(
        partial(training, config=config),
        {"seed": seeds(config)},
        static={"biases": [False, True]},
        steps=config.steps,
        every=1,
        dims={"residual": ["frequency"]},
        attrs={"seed": {"vary": "initial weights"}},
        store=store,
    ).assign_coords(frequency=[*WAVES])
    halved = reached(-data.residual.rename(step="time"), -0.5)
    predicted = xr.DataArray([half_times(b) for b in (False, True)], dims=("biases", "frequency"))
    return {"trained": data.assign(halved=halved, predicted=predicted)}


def expected(config: Config) -> dict[str, Expected]:
    """Half-times in closed form; odd frequencies never, but with biases."""
    by = partial(Expected, kind="closed form", source=SOURCE, vary="initial weights", scale="log")
    near = about(1.0, within=0.1, why=f"a kernel of width {config.width} scatters by some percent")
    halved = partial(by, estimator="steps until its residual is halved, over those predicted")
    return {
        **{
            f"wave {k}": halved(
                f"frequency {k}, no biases: learned when predicted",
                near,
                Control(f"not when {k + 2} is", below(0.8, why="its eigenvalue is far smaller")),
            )
            for k in EVEN[:-1]
        },
        "odd": by(
            "frequency 3, no biases: never learned",
            about(1.0, within=0.01, why="rounding"),
            Control("with biases it is", below(0.5, why="the half")),
            estimator="its residual after the last step, over that at first",
        ),
        "biased": halved(
            "frequency 3, with biases: learned when predicted",
            about(1.0, within=0.15, why="as for the others; its eigenvalue is smaller"),
            Control("not when 5 is", below(0.8, why="its eigenvalue is smaller")),
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Half-times over predictions, and what of frequency 3 is left."""
    plain, biased = (data["trained"].sel(biases=b) for b in (False, True))

    def over(of: xr.Dataset, k: int, other: int) -> xr.DataArray:
        return of.halved.sel(frequency=k) / of.predicted.sel(frequency=other)

    left = [of.residual.sel(frequency=3) for of in (plain, biased)]
    return {
        **{f"wave {k}": (over(plain, k, k), over(plain, k, k + 2)) for k in EVEN[:-1]},
        "odd": tuple(of.isel(step=-1) / of.isel(step=0) for of in left),
        "biased": (over(biased, 3, 3), over(biased, 3, 5)),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Residuals by step, without biases; half-times by frequency."""
    trained = data["trained"]
    plain = trained.residual.sel(biases=False).isel(step=slice(1, None))
    with panels(2, ratio=0.85) as (result, (left, right)):
        for k, style in zip((1, 2, 3, 4, 8), STYLES, strict=False):
            curve(left, plain.sel(frequency=k), label=f"frequency {k}", **style)
            rate = float(spectrum(False)[k] / spectrum(False).max())
            left.plot(plain.step, (1 - rate) ** plain.step, color="0.3", lw=0.6, zorder=3)
        for b, style in zip((False, True), STYLES, strict=False):
            at = trained.sel(biases=b, frequency=[k for k in WAVES[1:] if b or k not in ODD])
            label = "with biases" if b else "without"
            points(right, at.halved, log=True, **{**style, "linestyle": "none"}, label=label)
            right.plot(at.frequency, at.predicted, color="0.3", lw=0.6, zorder=1)
        left.set(xlabel="step", ylabel="residual", xscale="log", ylim=(-0.02, 1.05))
        right.set(xlabel="frequency", ylabel="steps to half", yscale="log")
        key(left, title="no biases; lines: predicted")
        key(right, title="lines: predicted")
    return result


if __name__ == "__main__":
    main(__name__)
