"""How well a wide network's kernel learns digits is foretold by its spectrum on other digits.

From the eigenvalues of a network's tangent kernel on 1,200 digits, and the power of labels along
its eigenvectors, theory gives the test error after n of 3,800 others, without a free parameter;
for shuffled labels too, which teach nothing and cost the more the better they are fitted.

    python -m experiments learning_curves          # quick: half a minute on two cores
    python -m experiments learning_curves paper    # a minute; writes figures/

MNIST, 14 x 14, centred, of one length; targets one-hot less 0.1, squared error summed over outputs;
two layers, both trained. A seed splits the digits anew. Expect errors from .75 to .33 at ridge 1,
1.10 to 1.24 for shuffled labels without ridge; measured, 1% and 0.3% above. The formula of
independent examples is 27% off at 256. Tolerances are of seeds 100 to 107, which no preset uses.

Source: Simon et al. 2023, arXiv 2110.03922; of a finite population: `lab.theory.kernels`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below
from lab.data import mnist
from lab.experiment import main, seeds
from lab.plotting import STYLES, key, panels, points, theory_line
from lab.sweep import sweep
from lab.theory import eigenlearning, empirical_spectrum, relu_kernel
from lab.types import BadInput, Dynamics

SOURCE = "lab.theory.kernels; Simon et al. 2023, arXiv 2110.03922"
VARY = "split of the digits, and draws"
LABELS, RIDGES = ("true", "shuffled"), (0.0, 1.0)
NORMAL, FEW = "images are not normal, some nearly alike", "few draws; half a percent elsewhere"
CASES = {  # labels, ridge; whose theory errs; how near their own is, and why; how far the other
    "ridge 1": ("true", 1.0, "shuffled", 0.05, NORMAL, below(0.8, why="they teach nothing")),
    "ridgeless": ("true", 0.0, "shuffled", 0.1, NORMAL, below(0.8, why="they teach nothing")),
    "shuffled": ("shuffled", 0.0, "independent", 0.02, FEW, above(1.05, why="27% off at 256")),
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    samples: tuple[int, ...] = (16, 32, 64, 128, 256)  # Examples, ascending.
    population: int = 1_200  # Digits that theory knows; the others are learned and tested.
    draws: int = 8  # Of examples from the others, of each seed.
    seeds: int = 16  # How many splits of the digits.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses fewer than two samples, or that do not ascend; a population they leave not."""
        if len(self.samples) < 2 or [0, *self.samples] != sorted({0, *self.samples}):
            raise BadInput(f"samples: {self.samples}; give two or more above 0, ascending")
        if not self.samples[-1] < self.population <= 4_000:
            raise BadInput(f"population: {self.population}; give {self.samples[-1] + 1} to 4000")


PRESETS = {"quick": Config(draws=4, seeds=8), "paper": Config()}


def split(seed: Array | int, *, count: int, known: int) -> tuple[Array, Array, Array]:
    """Rows that theory knows, the others, and whose labels rows take where they are shuffled."""
    divide, shuffle = jax.random.split(jax.random.split(jax.random.key(seed))[0])
    order = jax.random.permutation(divide, count)
    return order[:known], order[known:], jax.random.permutation(shuffle, count)


def drawing(seed: Array, x: Array, y: Array, *, samples: int, config: Config) -> Dynamics:
    """Kernel regression from a draw of examples a step; its mean error on the others so far."""
    _, others, shuffled = split(seed, count=len(x), known=config.population)
    draws, both = jax.random.split(jax.random.key(seed))[1], jnp.concatenate([y, y[shuffled]], 1)

    def step(total: Array, t: Array) -> Array:
        drawn = jnp.argsort(jax.random.uniform(jax.random.fold_in(draws, t), others.shape))
        train, test = jnp.split(others[drawn], [samples])
        within, across = (relu_kernel(x[rows] @ x[train].T) for rows in (train, test))

        def errors(ridge: float) -> Array:
            at = jnp.linalg.solve(within + ridge * jnp.eye(samples), both[train])
            return jnp.mean((across @ at - both[test]) ** 2, 0).reshape(len(LABELS), -1).sum(1)

        return total + jnp.stack([errors(ridge) for ridge in RIDGES], 1)

    return Dynamics(lambda: jnp.zeros((2, 2)), step, lambda of, t: {"error": of / config.draws})


def theory(config: Config, x: np.ndarray, y: np.ndarray) -> xr.Dataset:
    """What the digits that theory knows foretell, in float64; and were examples independent."""
    told, N = [], config.population
    for seed in seeds(config):
        rows, _, shuffled = map(np.asarray, split(seed, count=len(x), known=N))
        both = np.concatenate([y[rows], y[shuffled[rows]]], 1)
        spectrum, power = empirical_spectrum(relu_kernel(x[rows] @ x[rows].T), both)
        told += [
            eigenlearning(spectrum, of.sum(1), n, ridge=ridge, population=population).test
            for of in np.split(power, len(LABELS), 1)
            for ridge in RIDGES
            for n in config.samples
            for population in (N, np.inf)
        ]
    dims = ("seed", "labels", "ridge", "samples", "of")
    of = (seeds(config), LABELS, RIDGES, config.samples, ("error", "independent"))
    coords = {dim: [*values] for dim, values in zip(dims, of, strict=True)}
    return xr.DataArray(np.reshape(told, [*map(len, of)]), coords, dims).to_dataset("of")


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Kernel regression, and what theory says of it."""
    x, y = (np.asarray(of, float) for of in mnist(pool=2).train[:2])
    x, y = x / np.linalg.norm(x, axis=1, keepdims=True), y - 0.1
    data = sweep(
        partial(drawing, config=config),
        {"seed": seeds(config)},
        static={"samples": [*config.samples]},
        steps=config.draws,
        every=config.draws,
        shared={"x": jnp.asarray(x, "float32"), "y": jnp.asarray(y, "float32")},
        dims={"error": ("labels", "ridge")},
        attrs={"seed": {"vary": VARY}},
        store=store,
    ).isel(step=-1, drop=True)
    named = data.assign_coords(labels=[*LABELS], ridge=[*RIDGES])
    return {"kernel": named, "theory": theory(config, x, y)}


def expected(config: Config) -> dict[str, Expected]:
    """Levels of three curves, and the slope of one."""
    by = partial(Expected, kind="closed form", source=SOURCE, vary=VARY)
    return {
        name: by(
            f"{labels} labels, ridge {ridge:g}: the test error is the predicted one",
            about(1.0, within=within, why=why),
            Control(f"by the theory of {other} ones not", bound),
            estimator="test error over the prediction, geometric mean over examples",
            scale="log",
        )
        for name, (labels, ridge, other, within, why, bound) in CASES.items()
    } | {
        "slope": by(
            "true labels, ridge 1: the error falls with the number of examples as predicted",
            about(1.0, within=0.1, why="2% at either end is 5% of it"),
            Control("that of shuffled labels does not", below(0.3, why="they teach nothing")),
            estimator="slope of log test error over log examples, over that predicted",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Errors and slopes, over what was predicted of these labels and of others."""
    error, theory = data["kernel"].error, data["theory"]
    told = {labels: theory.error.sel(labels=labels) for labels in LABELS}
    told["independent"] = theory.independent.sel(labels="shuffled")

    def level(labels: str, by: str, ridge: float) -> xr.DataArray:
        return np.exp(np.log(error.sel(labels=labels) / told[by]).sel(ridge=ridge).mean("samples"))

    def slope(of: xr.DataArray) -> xr.DataArray:
        apart = np.log(of.samples) - np.log(of.samples).mean()
        return (np.log(of.sel(ridge=1.0)) * apart).sum("samples")

    slopes = slope(error) / slope(told["true"])
    out: dict[str, Measured] = {"slope": (slopes.sel(labels="true"), slopes.sel(labels="shuffled"))}
    for name, (of, ridge, other, *_) in CASES.items():
        out[name] = level(of, of, ridge), level(of, other, ridge)
    return out


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Test error against examples, and over the prediction."""
    error, told = (data[of].error for of in ("kernel", "theory"))
    cases = [(f"{of}, ridge {at:g}", {"labels": of, "ridge": at}) for of in LABELS for at in RIDGES]
    with panels(2, ratio=0.9) as (result, axes):
        for i, ((name, at), style) in enumerate(zip(cases, STYLES, strict=False)):
            axes[0].plot(told.samples, told.sel(at).mean("seed"), **style | {"marker": ""})
            style = style | {"linestyle": "none", "label": name}
            points(axes[0], error.sel(at), log=True, **style)
            beside = (error / told).assign_coords(samples=told.samples * (0.91 + 0.06 * i))
            points(axes[1], beside.sel(at), log=True, **style)
        axes[0].set(yscale="log", yticks=[0.3, 0.5, 1], yticklabels=[0.3, 0.5, 1])
        theory_line(axes[1], 1.0)
        titles = "test error; lines: predicted from other digits", "error over the prediction"
        for panel, title in zip(axes, titles, strict=True):
            panel.set(xscale="log", xlabel="examples", ylabel=title.split(";")[0])
            panel.set_xticks(told.samples.values, [f"{n}" for n in told.samples.values])
            panel.minorticks_off()
            key(panel, title=title)
    return result


if __name__ == "__main__":
    main(__name__)
