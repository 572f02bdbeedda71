"""What width costs a network beyond the test error its kernel foretells: it falls as 1 / width.

Networks that learn 128 digits, their weights drawn back to the start as ridge regression does,
beside what the kernel's eigenvalues on 1,200 other digits say (`learning_curves`).

    python -m experiments curve_of_width          # quick: 20 seconds on two cores
    python -m experiments curve_of_width paper    # 15 seconds; writes figures/

MNIST, 14 x 14, centred, of one length; targets one-hot less 0.1, squared error summed over outputs;
two ReLU layers, NTK parametrisation, less their start, ridge 1. Expect 32% above the prediction at
32 units, 10% at 128, 4% at 512, for shuffled labels 5, 2 and 0.5%: the further weights move the
worse, not the better, it learns. Tolerances are of seeds 100 to 107, which no preset uses.
Sources: Simon et al. 2023, arXiv 2110.03922; the limit: Jacot et al. 2018, arXiv 1806.07572.
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

from lab.claims import Control, Expected, Measured, about, above
from lab.data import mnist
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.models import mlp
from lab.objectives import mse
from lab.plotting import STYLES, key, panels, points, theory_line
from lab.sweep import sweep
from lab.theory import eigenlearning, empirical_spectrum, relu_kernel
from lab.types import BadInput, Dynamics, Params

VARY = "split of the digits, draw, initial weights"
SHARED = "more weights share a change of outputs"
CASES = {  # how near the widest must come and why; how far the narrowest is at least
    "true": (0.1, "one draw a seed, 512 wide: +4% on other seeds", 1.2),
    "shuffled": (0.02, "one draw a seed, 512 wide: +0.5% on other seeds", 1.025),
}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)  # Hidden units, ascending.
    examples: int = 128  # Of each seed.
    population: int = 1_200  # Digits that theory knows; of the others some are learned.
    steps: int = 300  # Of gradient descent.
    seeds: int = 16  # How many splits of the digits, draws and initial weights.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses fewer than two widths, or that do not ascend; a population not above examples."""
        if len(self.widths) < 2 or [0, *self.widths] != sorted({0, *self.widths}):
            raise BadInput(f"widths: {self.widths}; give two or more above 0, ascending")
        if not self.examples < self.population <= 4_000:
            raise BadInput(f"population: {self.population}; give {self.examples + 1} to 4000")


PRESETS = {"quick": Config(widths=(32, 128, 512), seeds=8), "paper": Config()}


def drawn(seed: Array | int, count: int, config: Config) -> tuple[Array, ...]:
    """Rows that theory knows, of the examples, of tests; whose label a row takes, shuffled."""
    divide, shuffle, _ = jax.random.split(jax.random.key(seed), 3)
    order, N = jax.random.permutation(divide, count), config.population
    parts = jnp.split(order, [N, N + config.examples])
    return *parts, jax.random.permutation(shuffle, count)


def training(
    shuffled: Array, seed: Array, x: Array, y: Array, *, width: int, config: Config
) -> Dynamics:
    """A network, less its start, drawn back to it; its test error, and kernel regression's."""
    d, n = x.shape[1], config.examples
    _, train, test, instead = drawn(seed, len(x), config)
    y = y[jnp.where(shuffled, instead, jnp.arange(len(x)))]
    model = mlp((d, width, 10), activation="relu", parametrisation="ntk", gain=2.0, bias=False)
    start = model.init(jax.random.split(jax.random.key(seed), 3)[2])

    def error(params: Params, rows: Array) -> Array:
        # mlp divides by the root of d / 2: inputs of length 1 for the rest of it.
        given = x[rows] * (d / 2) ** 0.5
        return mse(model.apply(params, given) - model.apply(start, given), y[rows])

    def loss(params: Params) -> Array:
        moved = optax.tree.norm(optax.tree.sub(params, start), squared=True)
        return error(params, train) + moved / (2 * n)

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        within, across = (relu_kernel(x[rows] @ x[train].T) for rows in (train, test))
        at = jnp.linalg.solve(within + jnp.eye(n), y[train])
        moved = optax.tree.norm(optax.tree.sub(state.params, start)) / optax.tree.norm(start)
        kernel, network = mse(across @ at, y[test]), error(state.params, test)
        return {"network": 2 * network, "kernel": 2 * kernel, "moved": moved}

    return descent(loss, optax.sgd(2.0), init=lambda: start, observe=observe)


def theory(config: Config, x: np.ndarray, y: np.ndarray) -> xr.DataArray:
    """The test error that the digits known to theory foretell, in float64."""
    told = []
    for seed in seeds(config):
        rows, _, _, instead = map(np.asarray, drawn(seed, len(x), config))
        both = np.concatenate([y[rows], y[instead[rows]]], 1)
        spectrum, power = empirical_spectrum(relu_kernel(x[rows] @ x[rows].T), both)
        foretold = partial(eigenlearning, spectrum, ridge=1.0, population=config.population)
        told.append([foretold(of.sum(1), config.examples).test for of in np.split(power, 2, 1)])
    return xr.DataArray(told, dims=("seed", "labels"))


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Networks of all widths, and what theory says of the widest."""
    x, y = (np.asarray(of, float) for of in mnist(pool=2).train[:2])
    x, y = x / np.linalg.norm(x, axis=1, keepdims=True), y - 0.1
    data = sweep(
        partial(training, config=config),
        {"shuffled": [0, 1], "seed": seeds(config)},
        static={"width": [*config.widths]},
        steps=config.steps,
        every=config.steps,
        shared={"x": jnp.asarray(x, "float32"), "y": jnp.asarray(y, "float32")},
        attrs={"seed": {"vary": VARY}},
        store=store,
    ).isel(step=-1, drop=True)
    named = data.rename(shuffled="labels").assign_coords(labels=[*CASES])
    return {"trained": named.assign(told=theory(config, x, y))}


def expected(config: Config) -> dict[str, Expected]:
    """The widest as foretold; what narrower ones err more, as 1 / width."""
    by = partial(Expected, kind="closed form", vary=VARY)
    return {
        labels: by(
            f"{labels} labels: a network {config.widths[-1]} wide errs as predicted",
            about(1.0, within=within, why=why),
            Control(f"not one {config.widths[0]} wide", above(far, why="of what other seeds gave")),
            source="lab.theory.kernels; Simon et al. 2023",
            estimator=f"test error after {config.examples} examples over the prediction",
            scale="log",
        )
        for labels, (within, why, far) in CASES.items()
    } | {
        "excess": by(
            "true labels: what a network errs more than its kernel falls as 1 / width",
            about(-1.0, within=0.3, why="higher orders at 32 units: -0.9 on other seeds"),
            Control("how far weights move: as the root", about(-0.5, within=0.1, why=SHARED)),
            source="fluctuations of the kernel have variance 1 / width",
            estimator="slope of log (error over kernel regression's, less 1), widest to narrowest",
        )
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Test errors over the prediction, and the excess by width."""
    trained = data["trained"]
    true = trained.sel(labels="true")
    wide, narrow = ((trained.network / trained.told)[{"width": i}] for i in (-1, 0))

    def slope(of: xr.DataArray) -> xr.DataArray:
        first, last = (of.where(of > 0)[{"width": i}] for i in (0, -1))
        return np.log(last / first) / np.log(of.width[-1] / of.width[0])

    return {
        **{of: (wide.sel(labels=of), narrow.sel(labels=of)) for of in CASES},
        "excess": (slope(true.network / true.kernel - 1), slope(true.moved)),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Test error over the prediction, and the excess over kernel regression, against width."""
    trained = data["trained"]
    with panels(2, ratio=0.9) as (result, (left, right)):
        for labels, style in zip(CASES, STYLES, strict=False):
            of, bare = trained.sel(labels=labels), style | {"linestyle": "none", "label": labels}
            excess = of.network / of.kernel - 1
            points(left, of.network / of.told, **bare)
            points(right, excess, **bare)
            line = excess[{"width": -1}].mean() * of.width[-1] / of.width
            right.plot(of.width, line, **style | {"marker": "", "lw": 0.8})
        theory_line(left, 1.0)
        for panel, title in ((left, "dashed: predicted"), (right, "lines: 1 / width")):
            panel.set(xscale="log", xlabel="hidden units")
            panel.set_xticks(trained.width.values, [f"{m}" for m in trained.width.values])
            panel.minorticks_off()
            key(panel, title=f"labels; {title}")
        left.set(ylabel="test error / predicted")
        right.set(ylabel="error / kernel regression's, less 1", yscale="log")
    return result


if __name__ == "__main__":
    main(__name__)
