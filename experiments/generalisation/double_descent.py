"""Test error peaks where a model can just fit its examples, and theory has the whole curve.

Min-norm least squares on p of 400 features, 40 examples: its risk is known exactly at this size,
but within 8 of the peak at p = n it is a mean of rare large errors, of which nothing is claimed.
Ridge at its best penalty has no peak. The same of k random features, erf(w.x) of inputs of a sphere
in 60 dimensions, 180 examples: the peak is at k = n, a penalty of 0.01 takes it off, and infinitely
many features are a kernel.

    python -m experiments double_descent          # quick: 15 s on two cores
    python -m experiments double_descent paper    # a minute; writes figures/

Features are independent normals, of coefficients w_i² ~ i^-1.5, Σ w_i² = 1; noise of variance 0.04
(0.1 beside random features, of a linear target). Nothing is trained: a run is many draws. Expect
ratios to the prediction within 2%, and 5% for random features near the peak.

Sources: Belkin, Hsu and Xu 2020, arXiv 1903.07571; Simon et al. 2023, arXiv 2311.14646; forms in
`lab.theory.least_squares` and `lab.theory.kernels`. Tolerances were set on seeds 100 to 115,
which no preset uses. More than 200 lines because features given and drawn share the peak.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure
from scipy.special import roots_gegenbauer

from lab.claims import Control, Expected, Measured, about, above
from lab.experiment import main, seeds
from lab.plotting import STYLES, key, panels, points
from lab.sweep import sweep
from lab.theory import Spectrum, best_penalty, minimum_norm_risk, random_features, ridge_risk
from lab.types import BadInput, Dynamics

x64 = True
N, POWER, NOISE = 40, np.arange(1, 401) ** -1.5 / np.sum(np.arange(1, 401) ** -1.5), 0.04
"""Examples of the linear model, w_i² of its features, the labels' noise."""
FAR, NEAR = (16, 80), (32, 48)
D, EXAMPLES, LOUD = 60, 180, 0.1
"""Inputs, examples and noise of random features."""
WIDTHS = (90, 270, 720)
RIDGES = (1e-8, 0.01)
"""Random features, and ridges, of which something is claimed."""


@dataclass(frozen=True)
class Config:
    """Settings of the draws."""

    features: tuple[int, ...] = (4, 8, 16, 24, 32, 36, 40, 44, 48, 64, 80, 120, 200, 400)  # p.
    widths: tuple[int, ...] = (45, 90, 135, 180, 270, 360, 720, 1440)  # Random features k.
    draws: int = 200  # Linear models a seed.
    networks: int = 12  # Draws of random features a seed.
    tests: int = 500  # Fresh inputs of each.
    seeds: int = 24  # How many.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses numbers of features that leave claims out, or that do not ascend."""
        need = {"features": (*FAR, *NEAR, N), "widths": (*WIDTHS, EXAMPLES)}
        for name, given in (("features", self.features), ("widths", self.widths)):
            most = len(POWER) if name == "features" else 10_000
            kept = sorted({*given, *need[name]})
            if [*given] != kept or not 1 <= given[0] <= given[-1] <= most:
                line = f"{name}: {given}; give 1 to {most:,}, ascending, with {sorted(need[name])}"
                raise BadInput(line)


PRESETS = {
    "quick": Config(
        features=(8, 16, 32, 40, 48, 80, 400),
        widths=(45, 90, 180, 270, 720),
        draws=300,
        networks=8,
        seeds=16,
    ),
    "paper": Config(),
}


def parts(p: int) -> dict[str, float]:
    """What the first p features have of the target, and what is noise to them."""
    return {"signal": float(POWER[:p].sum()), "noise": NOISE + float(POWER[p:].sum())}


def regression(seed: Array, *, config: Config) -> Dynamics:
    """Risk of min-norm least squares and of best ridge on the first p features, for each p."""
    w = jnp.sqrt(jnp.asarray(POWER))

    def risks(key: Array) -> Array:
        x_key, e_key = jax.random.split(key)
        x = jax.random.normal(x_key, (N, len(POWER)))
        y = x @ w + NOISE**0.5 * jax.random.normal(e_key, (N,))
        kernel, found = jnp.zeros((N, N)), []
        for start, p in zip((0, *config.features), config.features, strict=False):
            kernel += x[:, start:p] @ x[:, start:p].T
            s, u = jnp.linalg.eigh(kernel)
            penalty = N * best_penalty(p / N, **parts(p))
            least = jnp.where(s > 1e-10 * s[-1], 1 / s, 0.0)  # of rank p, where that is below n
            for inverse in (least, 1 / (jnp.maximum(s, 0.0) + penalty)):
                off = (u @ (inverse * (y @ u))) @ x[:, :p] - w[:p]
                found.append(parts(p)["noise"] + jnp.sum(off**2))
        return jnp.stack(found).reshape(-1, 2)

    def init() -> dict[str, Array]:
        keys = jax.random.split(jax.random.key(seed), config.draws)
        least, ridge = jnp.mean(jax.lax.map(risks, keys), 0).T
        return {"least": least, "ridge": ridge}

    return Dynamics(init, lambda state, t: state, lambda state, t: state)


def network(seed: Array, *, config: Config) -> Dynamics:
    """Test error of least squares on the first k random features, for each k and ridge."""

    def errors(key: Array) -> Array:
        x_key, w_key, e_key = jax.random.split(key, 3)
        x = jax.random.normal(x_key, (EXAMPLES + config.tests, D))
        x = x * jnp.sqrt(D / jnp.sum(x**2, 1, keepdims=True))
        y = x[:, 0] + LOUD**0.5 * jax.random.normal(e_key, (len(x),)) * (
            jnp.arange(len(x)) < EXAMPLES
        )
        z = jax.lax.erf(x @ jax.random.normal(w_key, (D, config.widths[-1])) / D**0.5)
        kernel, found = jnp.zeros((len(x), EXAMPLES)), []
        for start, stop in zip((0, *config.widths), config.widths, strict=False):
            kernel += z[:, start:stop] @ z[:EXAMPLES, start:stop].T
            own = kernel / stop
            for ridge in RIDGES:
                factor = jnp.linalg.cholesky(own[:EXAMPLES] + ridge * jnp.eye(EXAMPLES))
                at = jax.scipy.linalg.cho_solve((factor, True), y[:EXAMPLES])
                found.append(LOUD + jnp.mean((own[EXAMPLES:] @ at - y[EXAMPLES:]) ** 2))
        return jnp.stack(found).reshape(-1, len(RIDGES))

    def init() -> dict[str, Array]:
        keys = jax.random.split(jax.random.key(seed), config.networks)
        return {"test": jnp.mean(jax.lax.map(errors, keys), 0)}

    return Dynamics(init, lambda state, t: state, lambda state, t: state)


def linear_theory(p: int) -> dict[str, float]:
    """Risks of min-norm, of ridge; of min-norm at infinite size, or if the rest were no noise."""
    of = parts(p)
    rest = {"signal": of["signal"], "noise": NOISE}
    ridge = ridge_risk(p / N, best_penalty(p / N, **of), **of)
    return {
        "least": of["noise"] + minimum_norm_risk(p, N, **of),
        "ridge": of["noise"] + ridge,
        "infinite": of["noise"] + minimum_norm_risk(p * 10**6, N * 10**6, **of),
        "alone": NOISE + minimum_norm_risk(p, N, **rest),
    }


def feature_theory(k: int, ridge: float) -> float:
    """Test error of k random features, by the spectrum of erf's kernel on the sphere."""
    c, weights = roots_gegenbauer(60, D / 2 - 1)
    first = float(np.sum(weights * c * 2 / np.pi * np.arcsin(2 * c / 3)) / np.sum(weights))
    tail = 2 / np.pi * np.arcsin(2 / 3) - D * first
    spectrum = Spectrum(np.array([first]), np.array([float(D)]))
    how = {"ridge": ridge, "noise": LOUD, "tail": tail}
    return random_features(spectrum, np.ones(1), EXAMPLES, k, **how).test


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Draws of both; what theory says of them, and along the whole curves."""
    how: Any = {"steps": 1, "every": [0], "attrs": {"seed": {"vary": "examples and features"}}}

    def drawn(process: Any, name: str, dims: dict[str, tuple[str, ...]]) -> xr.Dataset:
        of = partial(process, config=config)
        data = sweep(of, {"seed": seeds(config)}, dims=dims, store=store / name, **how)
        return data.isel(step=0, drop=True)

    linear = drawn(regression, "linear", {"least": ("p",), "ridge": ("p",)})
    networks = drawn(network, "networks", {"test": ("k", "by")})
    every = np.unique([*range(1, 20), *range(20, 80, 2), *range(80, len(POWER) + 1, 20)])
    grid = np.unique([*range(36, 300, 3), *np.geomspace(300, 2_000, 40).round().astype(int)])

    def told(features: Any) -> xr.Dataset:
        rows = [linear_theory(int(p)) for p in features]
        return xr.Dataset({k: ("p", [row[k] for row in rows]) for k in rows[0]}, {"p": features})

    def said(widths: Any) -> xr.DataArray:
        rows = [[feature_theory(int(k), ridge) for ridge in RIDGES] for k in widths]
        return xr.DataArray(rows, {"k": widths, "by": [*RIDGES]})

    return {
        "linear": linear.assign_coords(p=[*config.features]),
        "networks": networks.assign_coords(k=[*config.widths], by=[*RIDGES]),
        "told": told([*config.features]),
        "said": said([*config.widths]).to_dataset(name="test"),
        "kernel": said([10**9]).isel(k=0, drop=True).to_dataset(name="test"),
        "curves": xr.merge([told(every), said(grid).to_dataset(name="test")]),
    }


def expected(config: Config) -> dict[str, Expected]:
    """Risks as predicted, on both sides of the peaks and, with ridge, on them."""
    by = partial(Expected, kind="closed form", vary="examples and features", scale="log")
    linear = partial(
        by,
        source="Belkin, Hsu and Xu 2020, arXiv 1903.07571; lab.theory.least_squares",
        estimator="risk over the predicted one, mean over draws",
    )
    features = partial(
        by,
        source="Simon et al. 2023, arXiv 2311.14646; lab.theory.kernels.random_features",
        estimator="test error over the predicted one, mean over draws",
    )
    exact = about(1.0, within=0.05, why="exact; the mean of some thousand draws")
    large = about(1.0, within=0.07, why="a law of large sizes, at 180 examples")
    infinite = Control("not as at infinite size", above(1.05, why="theory: 1.1 times"))
    alone = Control("not as if features left out were no noise", above(1.1, why="theory: more"))
    kernel = Control("not as infinitely many", above(1.14, why="twice the tolerance"))
    peak = "{} = n: ridge takes off the peak, as predicted"
    bare = Control("without it there is one", above(2.0, why="a peak of twice that or more"))
    return {
        **{
            f"p = {p}": linear(
                f"{p} features, {N} examples: min-norm errs as predicted",
                exact,
                infinite if p in NEAR else alone,
            )
            for p in (*FAR, *NEAR)
        },
        "ridge": linear(peak.format("p"), exact, bare),
        **{
            f"k = {k}": features(
                f"{k} random features, {EXAMPLES} examples: min-norm errs as predicted",
                large,
                kernel,
            )
            for k in WIDTHS
        },
        "features with ridge": features(peak.format("k"), large, bare),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Risks over predicted ones."""
    linear, told = data["linear"], data["told"]
    test, said, kernel = (data[name].test for name in ("networks", "said", "kernel"))
    bare, ridge = RIDGES
    out: dict[str, Measured] = {}
    for p in (*FAR, *NEAR):
        other = told.infinite if p in NEAR else told.alone
        out[f"p = {p}"] = tuple(linear.least.sel(p=p) / one.sel(p=p) for one in (told.least, other))
    peak = told.ridge.sel(p=N)
    out["ridge"] = (linear.ridge.sel(p=N) / peak, linear.least.sel(p=N) / peak)
    for k in WIDTHS:
        at = test.sel(k=k, by=bare)
        out[f"k = {k}"] = (at / said.sel(k=k, by=bare), at / kernel.sel(by=bare))
    at = test.sel(k=EXAMPLES) / said.sel(k=EXAMPLES, by=ridge)
    out["features with ridge"] = (at.sel(by=ridge), at.sel(by=bare))
    return out


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Risk against the number of features, of min-norm and of ridge; lines: predicted."""
    curves = data["curves"]
    sides: Any = (
        ("p", N, [data["linear"].least, data["linear"].ridge], [curves.least, curves.ridge]),
        (
            "k",
            EXAMPLES,
            *([of.test.sel(by=r) for r in RIDGES] for of in (data["networks"], curves)),
        ),
    )
    names = (("min-norm", "best ridge"), ("min-norm", f"ridge {RIDGES[1]:g}"))
    with panels(2, ratio=0.85) as (result, axes):
        for panel, (dim, n, found, told), labels in zip(axes, sides, names, strict=True):
            for one, line, label, style in zip(found, told, labels, STYLES, strict=False):
                at = line.where(np.isfinite(line), 1e9)  # up, out of the panel
                panel.plot(at[dim], at, **style | {"marker": ""}, lw=0.8)
                points(panel, one, log=True, label=label, **style | {"linestyle": "none"})
            panel.axvline(n, color="0.7", lw=0.6, zorder=0)
            panel.set(xscale="log", yscale="log", ylabel="test error, noise in it")
            panel.set_ylim(0.1, 10)
            key(panel, title="lines: predicted; at $n$ min-norm is above")
        axes[0].set(xlabel="features $p$, 40 examples")
        axes[1].set(xlabel="random features $k$, 180 examples")
    return result


if __name__ == "__main__":
    main(__name__)
