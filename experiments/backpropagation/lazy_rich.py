"""What features are worth: a product of two inputs, learned by the kernel and by moving features.

The same network, examples and method, in two regimes of the scale of its outputs: lazy, where it is
regression by its tangent kernel, which must learn all d (d - 1) / 2 products at once to learn one;
and rich, where the weights turn to the two inputs that matter. The lazy test error follows, without
a free parameter, from the kernel's spectrum on the hypercube (`lab.theory.kernels`).

    python -m experiments lazy_rich          # quick: 20 s on two cores
    python -m experiments lazy_rich paper    # a minute; writes figures/

Target x_1 x_2, x in {-1, 1}^20; f = alpha / m Σ a_i relu(w_i . x), f = 0 at the start (mirrored
pairs), both layers by gradient descent; alpha 1 is rich, 100 lazy. Expect tests of the lazy network
within a few percent of theory (1.08 at 40 examples, 0.51 at 160, 0.11 at 400, where half the width
is 13% above), the rich one 20 times better at 160, and neither better than nothing at 40.

Sources: Chizat et al. 2019, arXiv 1812.07956 (lazy training by scale); Simon et al. 2023, arXiv
2110.03922 (learning curves of kernels). Settings and tolerances are of seeds 100 to 105.
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

from lab.claims import Control, Expected, Measured, about, above, below
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.objectives import mse
from lab.plotting import STYLES, key, panels, points
from lab.sweep import sweep
from lab.theory.kernels import eigenlearning, hypercube_spectrum, relu_kernel
from lab.types import BadInput, Dynamics, Params

SOURCE = "lab.theory.kernels; Simon et al. 2023, arXiv 2110.03922"
RICH, LAZY = 1.0, 100.0
"""Scales of the outputs."""
EFFECT = 0.2
"""Of the lazy network's test error: what features are to leave of it, at most."""


@dataclass(frozen=True)
class Config:
    """Settings of the sweeps."""

    samples: tuple[int, ...] = (40, 80, 120, 160, 240, 400)  # Examples, ascending.
    dimension: int = 20  # Inputs of -1 or 1.
    width: int = 1_024  # Hidden units, half of them mirrors of the others.
    lr: float = 1.0  # Learning rate, times width / alpha^2.
    steps: int = 2_000  # Of gradient descent.
    tests: int = 2_000  # Fresh examples.
    seeds: int = 32  # How many draws of weights and examples.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses fewer than three numbers of examples, or that do not ascend; an odd width."""
        if len(self.samples) < 3 or [0, *self.samples] != sorted({0, *self.samples}):
            raise BadInput(f"samples: {self.samples}; give three or more, ascending")
        if self.width < 2 or self.width % 2:
            raise BadInput(f"width: {self.width}; give an even one: units come in pairs")
        if self.dimension < 3:
            raise BadInput(f"dimension: {self.dimension}; give at least 3: two matter")


PRESETS = {"quick": Config(samples=(40, 160, 400), seeds=16), "paper": Config()}


def training(alpha: Array, seed: Array, *, samples: int, config: Config) -> Dynamics:
    """Gradient descent on both layers, from outputs that are zero."""
    d, half = config.dimension, config.width // 2
    weights, train, test = jax.random.split(jax.random.key(seed), 3)
    w = jax.random.normal(weights, (d, half)) / d**0.5
    signs = jnp.repeat(jnp.array([1.0, -1.0]), half)
    start = {"w": jnp.concatenate([w, w], 1), "a": signs}
    x = jax.random.rademacher(train, (samples, d), float)
    z = jax.random.rademacher(test, (config.tests, d), float)

    def loss(params: Params, x: Array) -> Array:
        outputs = alpha / config.width * jax.nn.relu(x @ params["w"]) @ params["a"]
        return mse(outputs[:, None], x[:, :1] * x[:, 1:2])

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        moved = jnp.linalg.norm(state.params["w"] - start["w"]) / jnp.linalg.norm(w) / 2**0.5
        return {
            "train": 2 * loss(state.params, x),
            "test": 2 * loss(state.params, z),
            "moved": moved,
        }

    sgd = optax.sgd(config.lr * config.width / alpha**2)
    return descent(lambda params: loss(params, x), sgd, init=lambda: start, observe=observe)


def predicted(config: Config) -> xr.DataArray:
    """The lazy network's test error at each number of examples."""
    d = config.dimension
    spectrum = hypercube_spectrum(lambda c: relu_kernel(c, inner=d), d)
    power = np.eye(d + 1)[2]  # a product of two
    theory = [eigenlearning(spectrum, power, n).test for n in config.samples]
    return xr.DataArray(theory, {"samples": [*config.samples]})


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Both regimes at each number of examples."""
    runs = [
        sweep(
            partial(training, samples=n, config=config),
            {"alpha": [RICH, LAZY], "seed": seeds(config)},
            steps=config.steps,
            every=config.steps,
            attrs={"seed": {"vary": "weights and examples"}},
            store=store / f"{n}",
        ).isel(step=-1, drop=True)
        for n in config.samples
    ]
    data = xr.concat(runs, xr.Variable("samples", [*config.samples]))
    return {"trained": data.assign(theory=predicted(config))}


def expected(config: Config) -> dict[str, Expected]:
    """The lazy curve is predicted; the rich network is far below it."""
    by = partial(Expected, source=SOURCE, vary="weights and examples", scale="log")
    few, at, many = (config.samples[i] for i in (0, len(config.samples) // 2, -1))
    rich = Control("the rich network's is not", below(0.5, why="features are worth half at least"))
    return {
        **{
            f"lazy {n}": by(
                f"{n} examples: the lazy network's test error is the kernel's, predicted",
                about(
                    1.0, within=0.15, why="theory is of many examples (+1%), the network 1,024 wide"
                ),
                rich,
                "closed form",
                estimator="test error over the prediction",
            )
            for n in (at, many)
        },
        "rich": by(
            f"{at} examples: features leave at most a fifth of the lazy test error",
            below(EFFECT, why="a fortieth is what other seeds gave"),
            Control(f"{few} examples are too few for either", above(0.5, why="no better by half")),
            "direction",
            estimator="test error of the rich network over that of the lazy one",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Test errors at the end, over the prediction and over one another."""
    trained = data["trained"]
    few, at, many = (trained.samples.values[i] for i in (0, trained.sizes["samples"] // 2, -1))
    ratio = trained.test / trained.theory
    gain = trained.test.sel(alpha=RICH) / trained.test.sel(alpha=LAZY)
    return {
        **{
            f"lazy {n}": (ratio.sel(alpha=LAZY, samples=n), ratio.sel(alpha=RICH, samples=n))
            for n in (at, many)
        },
        "rich": (gain.sel(samples=at), gain.sel(samples=few)),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Test error against the number of examples, and how far the weights moved."""
    trained = data["trained"]
    with panels(2, ratio=0.9) as (result, (left, right)):
        for alpha, name, style in ((RICH, "rich", STYLES[1]), (LAZY, "lazy", STYLES[0])):
            at = trained.sel(alpha=alpha)
            style = style | {"linestyle": "none" if name == "lazy" else style["linestyle"]}
            points(left, at.test, log=True, label=f"{name}: alpha = {alpha:g}", **style)
            points(right, at.moved, log=True, label=name, **style)
        left.plot(trained.samples, trained.theory, color="0.3", lw=0.8, label="lazy, predicted")
        left.set(ylabel=r"test error of $x_1 x_2$, mean square", yscale="log")
        right.set(ylabel="relative change of weights", yscale="log")
        for axes in (left, right):
            axes.set(xlabel="examples")
            key(axes, columns=1)
    return result


if __name__ == "__main__":
    main(__name__)
