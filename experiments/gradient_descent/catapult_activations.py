"""ReLU and tanh networks are thrown above 2 / sharpness, to limits of their own (Lewkowycz 2020).

m is the learning rate times the largest eigenvalue of the tangent kernel at step 0. Networks of 512
units in one or two hidden layers (NTK parametrisation, no bias) on 20 MNIST digits (7 x 7; below 5
against the rest as -1 and 1), half squared error, full batch. Linearised, any network diverges from
m = 2 on; the network itself is thrown to where it is flatter, and converges up to a limit.

    python -m experiments catapult_activations          # quick: 20 s on two cores
    python -m experiments catapult_activations paper    # 8 minutes; writes figures/

Expect 10.4 to 12.1 with two hidden ReLU layers (128 units: 8.6 to 10.5), 4.5 to 4.9 with two of
tanh. One hidden ReLU layer has its limit at 3.6 to 3.8, below that of linear layers, 4.2 to 4.8. A
run has converged when its loss ends below a tenth of the first: a dead ReLU network, whose loss
stays at 1/2, has not. More than 200 lines because each network has its grid.

Source: Lewkowycz, Bahri, Dyer, Sohl-Dickstein and Gur-Ari 2020, arXiv 2003.02218 (ReLU:
limit about 12). Grids, steps and what is said of one ReLU layer are of seeds 100 to 105, which no
preset uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import Control, Expected, Measured, about, above, below
from lab.data import mnist
from lab.dynamics import descent
from lab.experiment import main, seeds
from lab.measures.curves import border
from lab.models import mlp
from lab.objectives import mse
from lab.plotting import STYLES, key, panels
from lab.sweep import sweep
from lab.types import BadInput, Dynamics, Params

SOURCE = "Lewkowycz et al. 2020, arXiv 2003.02218: in practice"
STEP = 0.1  # of the grids of m, but for two ReLU layers


class Network(NamedTuple):
    """Activation, hidden layers, and the grid of m on which its limit is read off."""

    activation: str
    layers: int
    ms: tuple[float, ...]


def grid(low: float, high: float, step: float = STEP) -> tuple[float, ...]:
    """From low to high."""
    return tuple(np.arange(low, high + step / 2, step).round(6).tolist())


FINE = (1.0, 1.5, *grid(1.75, 2.35), 3.0, 4.0, 6.0)
NETWORKS = {
    "ReLU, 2 hidden": Network("relu", 2, (1.0, 2.0, 4.0, *grid(6.0, 18.0, 0.5))),
    "ReLU, 1 hidden": Network("relu", 1, (1.0, 2.0, *grid(2.95, 5.05))),
    "linear, 1 hidden": Network("identity", 1, (1.0, 2.0, *grid(2.95, 8.05))),
    "tanh, 2 hidden": Network("tanh", 2, (1.0, 1.5, *grid(1.95, 7.05))),
}
EXPANDED = ("ReLU, 2 hidden", "tanh, 2 hidden")
DIVERGES = dict.fromkeys((*NETWORKS, *(f"{name}, linearised" for name in EXPANDED)), "its limit")


@dataclass(frozen=True)
class Config:
    """Settings of the sweeps."""

    hidden: int = 512
    """Units of a hidden layer."""
    examples: int = 20
    """Digits to be learned."""
    seeds: int = 16
    """How many initialisations."""
    first_seed: int = 0
    """The first of them."""
    steps: int = 200
    """Gradient steps."""

    def __post_init__(self) -> None:
        """Refuses fewer than two digits."""
        if self.examples < 2:
            raise BadInput(f"examples: {self.examples}; give two or more")


PRESETS = {"quick": Config(seeds=8, hidden=128), "paper": Config()}


def training(
    m: Array, seed: Array, x: Array, y: Array, *, network: Network, hidden: int, linearised: bool
) -> Dynamics:
    """Descent at rate m / kernel, on the network or its first-order expansion."""
    sizes, gain = (x.shape[1], *[hidden] * network.layers, 1), 1.0 + (network.activation == "relu")
    model = mlp(sizes, activation=network.activation, gain=gain, parametrisation="ntk", bias=False)
    start = model.init(jax.random.key(seed))

    def outputs(params: Params) -> Array:
        return model.apply(params, x)

    def loss(params: Params) -> Array:
        moved = jax.tree.map(lambda a, b: a - b, params, start)
        both = sum(jax.jvp(outputs, (start,), (moved,))) if linearised else outputs(params)
        return mse(both, y)

    slopes = jax.tree.leaves(jax.jacobian(outputs)(start))
    flat = [slope.reshape(len(x), -1) for slope in slopes]
    kernel = jnp.linalg.eigvalsh(sum(J @ J.T for J in flat) / len(x))[-1]
    return descent(
        loss,
        optax.sgd(m / kernel),
        init=lambda: start,
        observe=lambda state, t: {"loss": loss(state.params)},
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Every network on its grid of m, and its expansion on one around 2."""
    digits = mnist(config.examples, pool=4).train
    y = np.where(np.argmax(digits.y, axis=1) < 5, -1.0, 1.0)[:, None]
    data = {}
    for name, network in NETWORKS.items():
        for linearised in (False, True) if name in EXPANDED else (False,):
            found = sweep(
                partial(training, network=network, hidden=config.hidden, linearised=linearised),
                {"m": FINE if linearised else network.ms, "seed": seeds(config)},
                steps=config.steps,
                every=config.steps // 20,
                shared={"x": digits.x, "y": y.astype(np.float32)},
                attrs={"seed": {"vary": "initial weights"}},
                store=store / name.replace(", ", "_").replace(" ", "_") / str(linearised),
            ).transpose("seed", "m", "step")
            converged = found.loss.isel(step=-1) < 0.1 * found.loss.isel(step=0)
            limit = border(found.m.values, converged.values)
            whole = f"{name}, linearised" if linearised else name
            data[whole] = found.assign(converged=converged, limit=("seed", limit))
    return data


def expected(config: Config) -> dict[str, Expected]:
    """Where the limits lie; linearised, at 2."""
    claim = partial(
        Expected,
        vary="initial weights",
        estimator="midway between the first m that does not converge and the one before",
    )
    quadratic = Control("linearised: it is not", below(2.5, why="the 2 of a quadratic, and half"))
    return {
        "ReLU, 2 hidden": claim(
            "two hidden ReLU layers: the limit is about 12",
            about(12.0, within=2.0, why="'about'; the grid has steps of 0.5"),
            quadratic,
            kind="published value",
            source=SOURCE + ": about 12 / kernel",
            grid=0.25,
        ),
        "ReLU, 1 hidden": claim(
            "one hidden ReLU layer: the limit lies below 4",
            below(3.95, why="the grid's step below 4"),
            Control("one hidden linear layer: it does not", above(3.95, why="4, less half a step")),
            kind="direction",
            source="units that switch; found on seeds 100 to 105",
            grid=STEP / 2,
        ),
        "tanh, 2 hidden": claim(
            "two hidden tanh layers: the limit lies beyond 2.5",
            above(2.5, why="beyond any doubt of a limit at 2"),
            quadratic,
            kind="direction",
            source=SOURCE + ": other activations are catapulted too",
            grid=STEP / 2,
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Each network's limit, and its control's."""
    return {
        **{name: (data[name].limit, data[f"{name}, linearised"].limit) for name in EXPANDED},
        "ReLU, 1 hidden": (data["ReLU, 1 hidden"].limit, data["linear, 1 hidden"].limit),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """The share of starts that converge, against m."""
    with panels(ratio=0.5) as (result, (axes,)):
        shown = {**{n: n for n in NETWORKS}, "ReLU, 2 hidden, linearised": "ReLU, 2, linearised"}
        for (name, label), style in zip(shown.items(), STYLES, strict=False):
            share = data[name].converged.mean("seed")
            axes.plot(share.m, share, label=label, **style, markersize=3, markevery=2)
        for m in (2, 4, 12):
            axes.axvline(m, color="0.6", linewidth=0.8, zorder=0)
        axes.set(xscale="log", xlabel="$m$ = rate × kernel", ylabel="share of starts that converge")
        axes.set_xticks([1, 2, 4, 8, 12, 16], labels=["1", "2", "4", "8", "12", "16"])
        axes.minorticks_off()
        key(axes, columns=3)
    return result


if __name__ == "__main__":
    main(__name__)
