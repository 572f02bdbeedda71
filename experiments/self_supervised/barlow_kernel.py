"""Wide networks learn Barlow Twins' modes at their tangent kernel's rates (Simon et al. 2023).

One hidden layer (ReLU, NTK parametrisation) on pairs of MNIST digits (14 x 14), full batch; the
embedding is what outputs gained since init, plus a hundredth of those at init. Were features fixed,
mode j would grow at rate 8 g_j, g_j of the tangent kernel at init and of which views are pairs
(`lab.theory.barlow`); nothing is fitted. They move by width^(-1/2), so the wider, the closer. The
control divides outputs by a further root of width over the narrowest's and multiplies the rate by
width over the narrowest's (mean field): there features move as much at any width.

    python -m experiments barlow_kernel          # quick: 20 s on two cores
    python -m experiments barlow_kernel paper    # two minutes; writes figures/

Expect |log(rate / 8 g)| of 0.152, 0.067, 0.034 at widths 64, 256, 1024: an exponent of -0.54
[-0.62, -0.46]; of mean field -0.15; an error of 0.69 by the plain kernel. Quick is inconclusive.

Source: arXiv 2303.15438 (kernels). Tolerances were set on seeds 100 to 103, of no preset."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below
from lab.data import Augmentation, mnist, several_views
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures.curves import reached
from lab.measures.kernel import output_mean, tangent_kernel
from lab.models import mlp
from lab.plotting import STYLES, key, panels, points
from lab.sweep import sweep
from lab.theory import barlow
from lab.types import BadInput, Dynamics, Params

VIEWS = Augmentation(shift=1.5, rotation=0.3, stretch=0.1, elastic=0.5)


@dataclass(frozen=True)
class Config:
    """Settings of the sweep; refuses one width, and too few or too many pairs."""

    widths: tuple[int, ...] = (64, 256, 1024)  # Hidden units, ascending.
    outputs: int = 5  # Embedding dimensions.
    pairs: int = 64  # Digits, each in two views that stay the same.
    lr: float = 0.015  # Rate of descent.
    steps: int = 2_400  # Steps of each run.
    every: int = 2  # Steps between two records.
    seeds: int = 12  # How many first weights, each with its own digits and views.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        if not 5 <= self.pairs <= 1_000:
            raise BadInput(f"pairs: {self.pairs}; give 5 to 1000")
        if len(self.widths) < 2 or list(self.widths) != sorted(set(self.widths)):
            raise BadInput(f"widths: {self.widths}; give two or more, ascending")


PRESETS = {"quick": Config(seeds=6, widths=(64, 512)), "paper": Config()}


def training(field: Array, seed: Array, few: Array, *, width: int, config: Config) -> Dynamics:
    """Full-batch descent from outputs that are nearly none; of mean field at `field` 1."""
    sizes = (few.shape[-1], width, config.outputs)
    model = mlp(sizes, activation="relu", parametrisation="ntk", gain=2.0)
    views = few[seed - config.first_seed]
    size = jnp.sqrt(config.widths[0] / width) ** field

    def init() -> Params:
        params = model.init(jax.random.key(seed))
        return {"network": params, "outputs": model.apply(params, views)}

    def moment(params: Params) -> Array:
        at_init = jax.lax.stop_gradient(params["outputs"])  # carried along, never changed
        embedding = size * (model.apply(params["network"], views) - 0.99 * at_init)
        return barlow.cross_moment(*jnp.split(embedding, 2))

    def inspect(state: Descent, t: Array) -> dict[str, Array]:
        kernel = output_mean(tangent_kernel(model.apply, state.params["network"], views))
        spectra = {"tangent": kernel, "plain": views @ views.T}
        return {n: barlow.pair_spectrum(k)[: config.outputs] for n, k in spectra.items()}

    return descent(
        lambda params: barlow.loss(moment(params)),
        optax.sgd(config.lr / size**2),
        init=init,
        observe=lambda state, t: {"strength": jnp.linalg.eigvalsh(moment(state.params))[::-1]},
        inspect=inspect,
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Every width in both parametrisations; each mode's rate."""
    x = mnist(1_000, pool=2).train.x
    known = several_views(jax.random.key(0), x, VIEWS, count=2, fill=x.min(0))
    chosen = [np.random.default_rng(s).permutation(1_000)[: config.pairs] for s in seeds(config)]
    networks = sweep(
        partial(training, config=config),
        {"field": [0.0, 1.0], "seed": seeds(config)},
        static={"width": config.widths},
        shared={"few": jnp.concatenate([known[np.array(chosen), i] for i in (0, 1)], axis=1)},
        steps=config.steps,
        every=config.every,
        inspect_every=config.steps,
        dims=dict.fromkeys(("strength", "tangent", "plain"), ("mode",)),
        attrs={"seed": {"vary": "weights, digits and views"}},
        store=store,
    )
    networks = networks.assign_coords(step=config.lr * networks.step).rename(step="time")
    rise = reached(networks.strength, 0.8) - reached(networks.strength, 0.2)
    spectra = networks[["tangent", "plain"]].isel(step_rare=0, drop=True)
    level = np.exp(np.log(spectra.tangent / spectra.plain).mean("mode"))
    found = {"rate": 2 * math.log(4) / rise, "plain": 8 * level * spectra.plain}
    return {"networks": xr.Dataset(found | {"tangent": 8 * spectra.tangent}, None, networks.attrs)}


def expected(config: Config) -> dict[str, Expected]:
    """Rates at the largest width, and how their error falls with width."""
    by = partial(
        Expected,
        kind="closed form",
        source="Simon et al. 2023, arXiv 2303.15438: kernels; lab.theory.barlow",
        vary="weights, digits and views",
    )
    error = "mean over modes of |log(rate / 8 g)|, rates from the time between 0.2 and 0.8"
    return {
        "rates": by(
            f"width {config.widths[-1]}: rates are 8 g of the tangent kernel at init",
            below(0.1, why="a tenth; corrections fall as 1 / sqrt(width)"),
            Control("not of the plain kernel x · x', scaled", above(0.2, why="twice as much")),
            estimator=error,
            scale="log",
        ),
        "width": by(
            "the error falls as the root of width",
            about(-0.5, within=0.25, why="midway to 0, no fall, and to -1, an average's error"),
            Control("of mean field it does not", above(-0.25, why="outside of the claim's band")),
            estimator=f"slope of the logarithm in log width of the {error}",
        ),
    }


def missed(networks: xr.Dataset, spectrum: str) -> xr.DataArray:
    """Mean over modes of |log(rate / theirs)|; NaN where a mode was not learned."""
    return abs(np.log(networks.rate / networks[spectrum])).mean("mode", skipna=False)


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """By the tangent kernel and the plain one; slopes in both parametrisations."""
    networks = data["networks"]
    ntk, error = networks.sel(field=0.0).isel(width=-1), missed(networks, "tangent")
    x = np.log(networks.width / networks.width[0])
    slope = xr.cov(x, np.log(error), "width") / x.var("width", ddof=1)
    return {
        "rates": (missed(ntk, "tangent"), missed(ntk, "plain")),
        "width": (slope.sel(field=0.0), slope.sel(field=1.0)),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Every mode's rate against its kernel's, all seeds; the error by width."""
    networks = data["networks"]
    dashed: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 0.8}
    with panels(2, ratio=0.75) as (result, (rates, errors)):
        for width, style in zip(networks.width.values, STYLES, strict=False):
            at = networks.sel(width=width, field=0.0).transpose("mode", "seed")
            dots = {**style, "linestyle": "none", "markersize": 3, "markerfacecolor": "none"}
            rates.plot(at.tangent.values.ravel(), at.rate.values.ravel(), **dots, label=f"{width}")
        ends = [float(networks.tangent.min()), float(networks.tangent.max())]
        rates.plot(ends, ends, **dashed, label="theory")
        rates.set(xscale="log", yscale="log", ylabel="measured rate of a mode")
        rates.set_xlabel("8 × eigenvalue of the tangent kernel at init")
        for field, name in ((0.0, "tangent kernel"), (1.0, "mean field")):
            error = missed(networks.sel(field=field), "tangent")
            points(errors, error, log=True, label=name, **STYLES[int(field)])
        plain = missed(networks.sel(field=0.0), "plain")
        points(errors, plain, log=True, label="plain kernel", **STYLES[2])
        first = missed(networks.sel(field=0.0), "tangent").isel(width=0)
        line = np.exp(np.log(first).mean()) * np.sqrt(networks.width[0] / networks.width)
        errors.plot(networks.width, line, **dashed, label="theory: width$^{-1/2}$")
        errors.set(xscale="log", yscale="log", xlabel="width", ylabel="mean |log(rate / theory's)|")
        errors.set_xticks(networks.width, labels=networks.width.astype(str).values)
        errors.set_yticks([0.03, 0.1, 0.3, 1], labels=["0.03", "0.1", "0.3", "1"])
        errors.minorticks_off()
        key(rates, columns=4, title="width")
        key(errors, columns=2)
    return result


if __name__ == "__main__":
    main(__name__)
