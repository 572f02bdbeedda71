"""How long a wide network takes to fit its labels: as long as its kernel's eigenmodes say.

Near its start a wide network is linear in its weights, so gradient descent shrinks the residual by
1 - lr l_j a step along eigenvector j of the kernel over n. True labels lie along large eigenvalues,
random ones along all: theory gives the step at which either is fitted, and the test error there.

    python -m experiments time_to_fit          # quick: 20 seconds on two cores
    python -m experiments time_to_fit paper    # 40 seconds; writes figures/

MNIST 3 against 8 (14 x 14, scaled to one length), 100 examples a seed, some of their labels drawn
anew; two ReLU layers, both trained, less what they give at the start; lr = 1 / l_max. Expect 13
steps for true labels, 47 with 40% random, 59 with all, each as predicted to some percent, and the
test error too, which first falls and then rises where 40% are random.

Source: Arora et al. 2019, arXiv 1901.08584 (there the first layer alone is trained); kernel and
path: `lab.theory.kernels`. Tolerances were set on seeds 100 to 115, which no preset uses.
"""

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
from lab.data import Digits, mnist
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures import reached
from lab.models import mlp
from lab.objectives import mse
from lab.plotting import STYLES, curve, key, panels
from lab.sweep import sweep
from lab.theory import descent_path, relu_kernel
from lab.types import BadInput, Dynamics, Params

SOURCE = "lab.theory.kernels; Arora et al. 2019, arXiv 1901.08584"
FITTED = 0.1
"""Mean squared residual that counts as fitted, of labels -1 and 1."""
SHARES = {0.0: "true labels", 0.4: "40% random", 1.0: "random labels"}


@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""

    width: int = 1_024  # Hidden units.
    examples: int = 100  # Of each seed, and as many fresh ones, of 1,000.
    steps: int = 250  # Of gradient descent.
    seeds: int = 24  # How many draws of weights, examples and labels.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses more examples than leave as many to test on."""
        if not 2 <= self.examples <= 500:
            raise BadInput(f"examples: {self.examples}; give 2 to 500, half of the 1,000")


PRESETS = {"quick": Config(width=512, seeds=16), "paper": Config()}


def drawn(key: Array, share: Array | float, pool: Digits, *, examples: int) -> tuple[Array, ...]:
    """x of length 1, y with a share drawn anew; as many fresh x, and their true y."""
    draw, which, anew = jax.random.split(key, 3)
    one, other = jax.random.permutation(draw, len(pool.x))[: 2 * examples].reshape(2, -1)
    unit, labels = pool.x / jnp.linalg.norm(pool.x, axis=1, keepdims=True), 2 * pool.y[:, 0] - 1
    random = jax.random.uniform(which, (examples,)) < share
    y = jnp.where(random, jax.random.rademacher(anew, (examples,), float), labels[one])
    return unit[one], y, unit[other], labels[other]


def training(seed: Array, lr: Array, share: Array, pool: Digits, *, config: Config) -> Dynamics:
    """Gradient descent on the network less its start; residual and test error."""
    init, draw = jax.random.split(jax.random.key(seed))
    x, y, z, true = drawn(draw, share, pool, examples=config.examples)
    d = x.shape[1]
    model = mlp((d, config.width, 1), activation="relu", parametrisation="ntk", gain=2, bias=False)
    start = model.init(init)

    def error(params: Params, x: Array, y: Array) -> Array:
        # mlp divides by the root of d / 2: inputs of length 1 for the rest of it.
        x = x * (d / 2) ** 0.5
        return mse(model.apply(params, x) - model.apply(start, x), y[:, None])

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        return {"residual": 2 * error(state.params, x, y), "test": 2 * error(state.params, z, true)}

    return descent(lambda p: error(p, x, y), optax.sgd(lr), init=lambda: start, observe=observe)


def theory(config: Config, pool: Digits) -> tuple[list[float], xr.Dataset]:
    """Each seed's rate; residual and test error of the kernel, in float64."""
    times = np.arange(config.steps + 1)
    draw = jax.jit(partial(drawn, pool=pool, examples=config.examples))
    rates, paths = [], []
    for seed in seeds(config):
        key = jax.random.split(jax.random.key(seed))[1]
        for share in SHARES:
            x, y, z, true = (np.asarray(of, float) for of in draw(key, share))
            kernel, across = relu_kernel(x @ x.T), relu_kernel(z @ x.T)
            lr = config.examples / float(np.linalg.eigvalsh(kernel)[-1])
            residual = descent_path(kernel, y, times, lr=lr) - y
            test = descent_path(kernel, y, times, lr=lr, across=across) - true
            paths.append([np.mean(of**2, 1) for of in (residual, test)])
        rates.append(lr)
    coords = {"seed": [*seeds(config)], "share": [*SHARES], "of": ["residual", "test"]}
    shape = [*map(len, coords.values()), len(times)]
    both = xr.DataArray(np.reshape(paths, shape), {**coords, "step": times})
    return rates, both.to_dataset("of")


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """True, partly random and random labels; and what theory says of each."""
    pool = mnist(1_000, pool=2, classes=(3, 8)).train
    rates, predicted = theory(config, pool)
    axes: Any = {("seed", "lr"): [*zip(seeds(config), rates, strict=True)], "share": [*SHARES]}
    data = sweep(
        partial(training, config=config),
        axes,
        steps=config.steps,
        every=1,
        shared={"pool": pool},
        attrs={"seed_lr": {"vary": "weights, examples and labels"}},
        store=store,
    )
    return {"network": data.swap_dims(seed_lr="seed"), "kernel": predicted}


def expected(config: Config) -> dict[str, Expected]:
    """Times as predicted, and not as predicted of other labels."""
    by = partial(
        Expected, kind="closed form", source=SOURCE, vary="weights, examples, labels", scale="log"
    )
    band = about(1.0, within=0.1, why=f"a network {config.width} wide: kernels scatter by as much")
    steps = f"steps until the mean squared residual is {FITTED:g}, over those predicted"
    on_random = Control("by the theory of random labels not", below(0.5, why="it is 4 times off"))
    on_true = Control("by the theory of true labels not", above(2.0, why="it is 4 times off"))
    return {
        **{
            name: by(f"{name} are fitted when predicted", band, control, estimator=steps)
            for name, control in zip(SHARES.values(), (on_random, on_true, on_true), strict=True)
        },
        "test": by(
            "true labels: when fitted, the test error is the kernel's",
            about(1.0, within=0.15, why="as for times; and it goes on falling meanwhile"),
            Control("not that of random labels", below(0.5, why="they teach nothing")),
            estimator="test error of the network, over that of the kernel, each when fitted",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Times to fit, and test errors then."""
    network, kernel = data["network"], data["kernel"]
    took, predicted = (
        reached(-np.log(of.residual.rename(step="time")), -np.log(FITTED))
        for of in (network, kernel)
    )
    true, random = predicted.sel(share=0.0), predicted.sel(share=1.0)
    out: dict[str, Measured] = {
        name: (at / predicted.sel(share=share), at / (true if share else random))
        for share, name in SHARES.items()
        for at in [took.sel(share=share)]
    }
    then, told = (of.test.interp(step=at) for of, at in ((network, took), (kernel, predicted)))
    out["test"] = tuple(then.sel(share=0.0) / told.sel(share=share) for share in (0.0, 1.0))
    return out


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Residual and test error against step; lines: the kernel's."""
    with panels(2, ratio=0.8) as (result, axes):
        for panel, of in zip(axes, ("residual", "test"), strict=True):
            for (share, name), style in zip(SHARES.items(), STYLES, strict=False):
                at, told = (data[who][of].sel(share=share) for who in ("network", "kernel"))
                curve(panel, at, label=name, **style)
                panel.plot(told.step, told.mean("seed"), "k:", lw=0.8)
            panel.set(xlabel="step", ylabel=f"{of}, mean square")
            key(panel, columns=1, title="dotted: the kernel, predicted")
        axes[0].set(yscale="log")
        axes[0].axhline(FITTED, color="0.7", lw=0.6, zorder=0)
    return result


if __name__ == "__main__":
    main(__name__)
