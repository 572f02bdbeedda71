"""The lazy limit: a network's tangent kernel moves as 1 / (width x output scale), then not at all.

Trained networks follow their linearisation where the kernel of it stays. Scale the outputs by
alpha, from zero, the loss by alpha^-2: to fit the same labels weights move as 1 / alpha. In the NTK
parametrisation the kernel's slope along that way falls as 1 / width, so its relative change by
1 / (width alpha), and the distance to linearised training, in closed form, by the same.

    python -m experiments lazy_limit          # quick: half a minute on two cores
    python -m experiments lazy_limit paper    # a minute; writes figures/

MNIST 3 against 8 (14 x 14), 32 examples a seed, tanh 196-n-n-1, full batch. Expect exponents of
-1.0; in the maximal-update parametrisation 0 against width, and 0 against alpha where the outputs
do not start from zero, as the network must first undo alpha times what it started with.

Sources: Chizat et al. 2019, arXiv 1812.07956 (scale, and why from zero); Dyer and Gur-Ari 2020,
arXiv 1909.11304 (1 / width). Set on seeds 100 to 123: alphas from 10 up, as 1 is not lazy yet.
More than 200 lines because three laws are read off one process.
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

from lab.claims import Control, Expected, Measured, about
from lab.data import Digits, mnist
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures import kernel_drift, linearised, tangent_kernel
from lab.models import mlp
from lab.objectives import mse
from lab.plotting import STYLES, key, panels, points
from lab.sweep import sweep
from lab.types import BadInput, Dynamics, Params

SOURCE = "Chizat et al. 2019, arXiv 1812.07956; Dyer and Gur-Ari 2020, arXiv 1909.11304"
RATES = {"ntk": 0.3, "mup": 0.05}
"""Of each parametrisation, at alpha 1."""


@dataclass(frozen=True)
class Config:
    """Settings of the sweeps."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)  # Units of either hidden layer, ascending.
    alphas: tuple[float, ...] = (10.0, 20.0, 40.0, 80.0)  # Scales of the outputs, ascending.
    width: int = 128  # Where alpha varies.
    examples: int = 32  # Of each seed; as many fresh ones, to compare with linearised training.
    steps: int = 300  # Of gradient descent.
    seeds: int = 8  # How many draws of weights and examples.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses fewer than two widths or scales, or such as do not ascend."""
        for name, grid in (("widths", self.widths), ("alphas", self.alphas)):
            if len(grid) < 2 or [*grid] != sorted({*grid}) or grid[0] <= 0:
                raise BadInput(f"{name}: {grid}; give two or more above 0, ascending")


PRESETS = {
    "quick": Config(widths=(64, 512), alphas=(10.0, 80.0), width=64, seeds=24),
    "paper": Config(seeds=24),
}


def training(
    alpha: Array,
    zero: Array,
    seed: Array,
    pool: Digits,
    *,
    form: str,
    width: int,
    compared: bool,
    config: Config,
) -> Dynamics:
    """Descent on alpha times a network, less its start's outputs where `zero` is 1.

    `compared` with linearised training, where that is asked for: half of the time to compile.
    """
    lr = RATES[form] / alpha**2
    init, draw = jax.random.split(jax.random.key(seed))
    chosen, fresh = jax.random.permutation(draw, len(pool.x))[: 2 * config.examples].reshape(2, -1)
    x, y, z = pool.x[chosen], 2 * pool.y[chosen, :1] - 1, pool.x[fresh]
    model = mlp((x.shape[1], width, width, 1), parametrisation=form, bias=False)
    start = model.init(init)

    def outputs(params: Params, x: Array) -> Array:
        return alpha * (model.apply(params, x) - zero * model.apply(start, x))

    def inspect(state: Descent, t: Array) -> dict[str, Array]:
        before, after = (
            tangent_kernel(model.apply, p, x)[:, 0, :, 0] for p in (start, state.params)
        )
        drift = kernel_drift(after, before)
        if not compared:
            return {"drift": drift}
        line = linearised(outputs, start, x, y, z, lr=lr, steps=jnp.array([config.steps]))[0]
        apart = jnp.linalg.norm(outputs(state.params, z) - line) / jnp.linalg.norm(line)
        return {"drift": drift, "apart": apart}

    return descent(
        lambda params: mse(outputs(params, x), y),
        optax.sgd(lr),
        init=lambda: start,
        observe=lambda state, t: {"loss": mse(outputs(state.params, x), y)},
        inspect=inspect,
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Over widths, at the first alpha; over alphas, at one width."""
    pool = mnist(1_000, pool=2, classes=(3, 8)).train

    def over(width: int, alphas: tuple[float, ...], zero: list[int], forms: list[str]) -> Any:
        return sweep(
            partial(training, width=width, compared=len(forms) == 1, config=config),
            {"alpha": alphas, "zero": zero, "seed": seeds(config)},
            static={"form": forms},
            steps=config.steps,
            every=config.steps,
            inspect_every=[config.steps],
            shared={"pool": pool},
            attrs={"seed": {"vary": "weights and examples"}},
            store=store / f"{len(alphas)}_of_{width}",
        ).isel(step_rare=0, drop=True)

    widths = [over(width, config.alphas[:1], [1], ["ntk", "mup"]) for width in config.widths]
    by_width = xr.concat(widths, xr.Variable("width", [*config.widths])).squeeze(drop=True)
    by_alpha = over(config.width, config.alphas, [1, 0], ["ntk"]).squeeze(drop=True)
    return {
        "width": by_width.assign_attrs(at=f"alpha {config.alphas[0]:g}"),
        "alpha": by_alpha.assign_attrs(at=f"width {config.width}"),
    }


def power(values: xr.DataArray, along: str) -> xr.DataArray:
    """Of a power law: the slope of logarithms."""
    logs = xr.apply_ufunc(np.log, values).assign_coords({along: np.log(values[along])})
    return logs.polyfit(along, 1).polyfit_coefficients.sel(degree=1, drop=True)


def expected(config: Config) -> dict[str, Expected]:
    """Exponents of -1, and 0 where features move or outputs do not start from zero."""
    by = partial(Expected, kind="closed form", source=SOURCE, vary="weights and examples")
    why = "corrections of the next order at these scales"
    near, still = about(-1.0, within=0.2, why=why), about(0.0, within=0.2, why=why)
    low, high = config.widths[0], config.widths[-1]
    from_one = Control("not where outputs do not start from zero", still)
    return {
        "width": by(
            f"NTK, width {low} to {high}: the kernel's relative change falls as 1 / width",
            about(-1.0, within=0.25, why=why + ", and kernels that scatter at width 64"),
            Control("in muP it does not", about(0.0, within=0.3, why=why)),
            estimator="slope of log |K - K_0| / |K_0| after training against log width",
        ),
        "scale": by(
            "the kernel's relative change falls as 1 / alpha",
            near,
            from_one,
            estimator="slope of log |K - K_0| / |K_0| after training against log alpha",
        ),
        "function": by(
            "on fresh digits the network comes to its linearised training as 1 / alpha",
            near,
            from_one,
            estimator="slope of the log of their relative distance against log alpha",
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Slopes of logarithms."""
    width = power(data["width"].drift, "width")
    drift, apart = (power(data["alpha"][of], "alpha") for of in ("drift", "apart"))
    return {
        "width": (width.sel(form="ntk"), width.sel(form="mup")),
        "scale": (drift.sel(zero=1), drift.sel(zero=0)),
        "function": (apart.sel(zero=1), apart.sel(zero=0)),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Change of the kernel by width and scale, and the distance to linearised training."""
    starts = {1: "outputs start from 0", 0: "not from 0"}
    shown: list[Any] = [
        ("drift", "width", "form", {"ntk": "NTK", "mup": "muP"}, "change of the kernel"),
        ("drift", "alpha", "zero", starts, "change of the kernel"),
        ("apart", "alpha", "zero", starts, "distance to linearised"),
    ]
    with panels(3, ratio=1.1) as (result, axes):
        for panel, (of, along, kind, names, label) in zip(axes, shown, strict=True):
            values, at = data[along][of], data[along].attrs["at"]
            for (case, name), style in zip(names.items(), STYLES, strict=False):
                points(panel, values.sel({kind: case}), log=True, label=name, **style)
            x, first = values[along], np.exp(np.log(values.isel({kind: 0, along: 0})).mean())
            panel.plot(x, first * x[0] / x, color="0.5", lw=0.8, zorder=1, label=f"1 / {along}")
            panel.set(xscale="log", yscale="log", xlabel=f"{along} ({at})", ylabel=label)
            panel.set_xticks(x.values, labels=[f"{value:g}" for value in x.values])
            panel.minorticks_off()
            key(panel, columns=1)
    return result


if __name__ == "__main__":
    main(__name__)
