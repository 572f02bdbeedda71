"""Classes shrink to points: exactly where features are free, and on digits under weight decay.

Free features H, K classes of n examples, a last layer W, squared error and decay of both,

    |W H - Y|^2 / 2Kn + l_w |W|^2 / 2 + l_h |H|^2 / 2,    c = K sqrt(n l_w l_h):

each class becomes one point, W times the points max(1 - c, 0) I, and the variance within classes
dies as exp(-2 l_h t): decay does it. A network on digits is asked the same, after it has fitted.

    python -m experiments neural_collapse          # quick: half a minute on two cores
    python -m experiments neural_collapse paper    # a minute; writes figures/

K = 4, n = 10 in 8 dimensions; MNIST (14 x 14), 500 digits, ReLU 196-64-64-10, cross-entropy, full
batch with momentum. Expect the free features as predicted, to the fourth digit. On digits with
decay 0.005 scatter within classes falls to a third of what it was when all were fitted, without it
by a tenth, and the nearest class mean says what the network says of 97% of fresh digits, in place
of 92%. Their angles do NOT come to a simplex's: 0.85 of the way is left (with four hidden layers
they move away from it; decays 0.001 to 0.005, up to 8,000 steps were tried on seeds 100 and 101).

Sources: Papyan, Han and Donoho 2020, arXiv 2008.08186; Tirer and Bruna 2022, arXiv 2202.08087.
More than 200 lines because the exact case and digits stand beside each other.
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

from lab.claims import NOTHING, Control, Expected, Measured, about, above, below
from lab.data import Split, mnist
from lab.dynamics import Descent, descent
from lab.experiment import main, seeds
from lab.measures import class_geometry, class_means, nearest_mean
from lab.models import mlp
from lab.plotting import STYLES, curve, key, panels
from lab.sweep import sweep
from lab.tasks import classification
from lab.types import BadInput, Dynamics, Params

SOURCE = "Papyan, Han and Donoho 2020, arXiv 2008.08186"
EXACT = "Tirer and Bruna 2022, arXiv 2202.08087; derived anew"
K, N, D = 4, 10, 8
STRENGTHS = (0.04, 0.6)  # c, of l_w = l_h = c / (K sqrt n)


@dataclass(frozen=True)
class Config:
    """Settings of the two sweeps."""

    decay: float = 0.005  # Of the network's weights; and none.
    free_steps: int = 2_000  # Of descent on free features.
    steps: int = 4_000  # Of descent on digits.
    every: int = 100  # Steps between two records of either.
    examples: int = 500  # Digits.
    seeds: int = 10  # How many initial weights.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        """Refuses no decay, which is the control."""
        if not self.decay > 0:
            raise BadInput(f"decay: {self.decay}; give one above 0: none is the control")


PRESETS = {"quick": Config(steps=2_000, seeds=6), "paper": Config()}


def free(c: Array, seed: Array) -> Dynamics:
    """Descent on W and H, of rate K n; W times class means, and the variance within classes."""
    decay = c / (K * N**0.5)
    of_w, of_h = jax.random.split(jax.random.key(seed))
    labels = jnp.repeat(jnp.arange(K), N)
    y = jax.nn.one_hot(labels, K)

    def init() -> Params:
        w, h = jax.random.normal(of_w, (D, K)), jax.random.normal(of_h, (K * N, D))
        return {"W": w / 3, "H": h / 3}

    def loss(params: Params) -> Array:
        off = jnp.sum((params["H"] @ params["W"] - y) ** 2) / (2 * K * N)
        return off + decay * optax.tree.norm(params, squared=True) / 2

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        means = class_means(state.params["H"], labels, K)
        within = jnp.mean((state.params["H"] - means[labels]) ** 2)
        mapped = means @ state.params["W"]
        error = jnp.abs(mapped - jnp.trace(mapped) / K * jnp.eye(K)).max()
        return {"strength": jnp.trace(mapped) / K, "within": within, "error": error}

    return descent(loss, optax.sgd(1.0), init=init, observe=observe)


def training(decay: Array, seed: Array, digits: Split, *, config: Config) -> Dynamics:
    """The network on digits; what its last hidden layer makes of their classes."""
    (x, _, labels), test = digits
    model = mlp((x.shape[1], 64, 64, 10), activation="relu", gain=2.0)
    task = classification(model, seed, x, labels)

    def features(params: Params, x: Array) -> Array:
        return jax.nn.relu(model.apply(params, x, preactivations=True)[1])

    def observe(state: Descent, t: Array) -> dict[str, Array]:
        h = features(state.params, x)
        nearest = nearest_mean(features(state.params, test.x), class_means(h, labels, 10))
        said = jnp.argmax(model.apply(state.params, test.x), 1)
        right = jnp.argmax(model.apply(state.params, x), 1) == labels
        geometry = class_geometry(h, labels, 10)
        return {**geometry._asdict(), "right": jnp.mean(right), "other": jnp.mean(nearest != said)}

    sgd = optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.05, momentum=0.9))
    return descent(task.loss, sgd, init=task.init, observe=observe)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Free features by strength of decay; digits with decay and without."""
    how: Any = {"every": config.every, "attrs": {"seed": {"vary": "initial weights"}}}
    axes = {"c": STRENGTHS, "seed": seeds(config)}
    exact = sweep(free, axes, steps=config.free_steps, **how, store=store / "free")
    digits = sweep(
        partial(training, config=config),
        {"decay": [0.0, config.decay], "seed": seeds(config)},
        shared={"digits": mnist(config.examples, test=1_000, pool=2)},
        steps=config.steps,
        **how,
        store=store / "digits",
    )
    return {"free": exact, "digits": digits}


def expected(config: Config) -> dict[str, Expected]:
    """Closed forms of free features; on digits what decay does."""
    by = partial(Expected, vary="initial weights")
    exact = partial(by, kind="closed form", source=EXACT)
    seen = partial(by, kind="direction", source=SOURCE)
    small, middle = STRENGTHS
    digit = partial(about, within=0.001, why="four digits, of steps that are not small")
    end = "mean diagonal of W times the class means in the end"
    since = " in the end, over that when all digits were first told right"
    return {
        **{
            f"map {c:g}": exact(
                f"free features, c = {c:g}: W times class means is 1 - c",
                digit(1 - c),
                Control(f"c = {other:g}: it is not", other_band),
                estimator=end,
                vary=NOTHING,
            )
            for c, other, other_band in (
                (small, middle, below(0.9, why="far from the claim's")),
                (middle, small, above(0.9, why="far from the claim's")),
            )
        },
        "rate": exact(
            f"free features, c = {small:g}: variance within classes dies at the rate of decay",
            about(1.0, within=0.03, why="parts that die faster have not gone yet"),
            Control(f"not at that of c = {middle:g}", below(0.2, why="15 times faster")),
            estimator="rate of its logarithm over the second half, over 2 l_h",
        ),
        "scatter": seen(
            "digits, weight decay: scatter within classes falls to half and below",
            below(0.5, why="a third on other seeds"),
            Control("without decay it does not", above(0.7, why="nine tenths on other seeds")),
            estimator="scatter over that between classes" + since,
        ),
        "nearest": seen(
            "digits, weight decay: the nearest class mean says what the network says",
            below(0.05, why="3% on other seeds"),
            Control("without decay less often", above(0.05, why="7% on other seeds")),
            estimator="share of fresh digits of which they say another class",
        ),
        "angles": seen(
            "digits, weight decay: class means come half of the way to a simplex",
            below(0.5, why="half of the way"),
            Control("without decay they do not", above(0.7, why="as for scatter")),
            estimator="root mean square of cosines + 1/9" + since,
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Ends, over what was when all were fitted; the rate of the variance."""
    exact, digits = data["free"], data["digits"]
    small, middle = STRENGTHS
    strength = exact.strength.isel(step=-1).mean("seed").expand_dims("draw").sel
    late = exact.within.sel(c=small).isel(step=slice(exact.sizes["step"] // 2, None))
    rate = -np.log(late).polyfit("step", 1).polyfit_coefficients.sel(degree=1, drop=True)
    decays = [2 * c / (K * N**0.5) for c in (small, middle)]
    fitted = (digits.right == 1).argmax("step")
    since = digits.isel(step=-1) / digits.isel(step=fitted)
    pairs = {name: since[name] for name in ("scatter", "angles")}
    pairs["nearest"] = digits.other.isel(step=-1)
    return {
        f"map {small:g}": (strength(c=small), strength(c=middle)),
        f"map {middle:g}": (strength(c=middle), strength(c=small)),
        "rate": (rate / decays[0], rate / decays[1]),
        **{name: (of.isel(decay=1), of.isel(decay=0)) for name, of in pairs.items()},
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Variance within classes of free features; scatter and angles on digits."""
    exact, digits = data["free"], data["digits"].isel(step=slice(1, None))
    with panels(3, ratio=1.1) as (result, (left, middle, right)):
        for c, style in zip(STRENGTHS, STYLES, strict=False):
            at = exact.within.sel(c=c)
            shown = at.where(at > 1e-12 * at.isel(step=0))
            curve(left, shown / at.isel(step=0), log=True, label=f"c = {c:g}", **style)
            line = np.exp(-2 * c / (K * N**0.5) * exact.step)
            left.plot(exact.step, line.where(line > 1e-12), color="0.3", lw=0.6, zorder=1)
        for axes, name in ((middle, "scatter"), (right, "angles")):
            for decay, style in zip(digits.decay.values, STYLES, strict=False):
                label = f"weight decay {decay:g}"
                curve(axes, digits[name].sel(decay=decay), label=label, **style)
            axes.set(xscale="log", xlabel="step", ylim=(0, None))
            key(axes, columns=1)
        left.set(yscale="log", xlabel="step", ylabel="variance within classes")
        middle.set(ylabel="scatter of classes")
        right.set(ylabel="angles off a simplex's")
        key(left, columns=1, title="free features; lines: predicted")
    return result


if __name__ == "__main__":
    main(__name__)
