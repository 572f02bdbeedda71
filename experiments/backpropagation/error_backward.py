"""Backpropagation gives the slope that finite differences approach, at the price of few losses.

Each of the lab's networks is moved a step h in a random direction; the loss's difference over h is
held against the gradient times the direction. By Taylor's theorem the error of a forward difference
falls as h, that of a central one as h^2, until rounding makes it grow as 1 / h: the least error is
at h = eps^(1/2) and eps^(1/3), up to factors of order one. One gradient costs two to three losses,
however many weights there are; differences cost one more loss for each weight. The error that is
sent back to a layer of a deep tanh MLP is the slope of the loss by that layer's units.

    python -m experiments error_backward          # quick: 40 s on two cores
    python -m experiments error_backward paper    # a minute; writes figures/

Expect slopes of 1, 2 and -1 to a few percent, in float64, with activations that are smooth (in
`conv_net` too, whose default is ReLU), and errors at each layer that agree to 1e-8. The
direction is as long as the weights, so that a loss's derivatives along it are of order one. Costs
are multiplications and additions as XLA counts them before it optimises.

Sources: Taylor's theorem; Griewank and Walther 2008, Evaluating Derivatives (the cheap gradient
principle). Tolerances were set on seeds 100 to 107, which no preset uses. Of `lab.models` there is
every network; `from_nnx` and `from_equinox` bring others'. More than 200 lines because laws of
errors, of costs and of layers share the networks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from matplotlib.figure import Figure

from lab.claims import NOTHING, Control, Expected, Measured, about, above, below
from lab.experiment import main, seeds
from lab.measures import layer_sizes, relative_updates
from lab.models import (
    attention_blocks,
    batch_norm,
    conv_net,
    deep_linear,
    merged_attention,
    mlp,
    transformer,
)
from lab.plotting import STYLES, curve, key, panels, points
from lab.sweep import sweep
from lab.types import BadInput, Dynamics

x64 = True
SOURCE = "Taylor's theorem"
EPS = float(np.finfo(np.float64).eps)
COARSE = math.log(np.finfo(np.float32).eps) / math.log(EPS)
"""Of float32's epsilon: its logarithm over that of float64's."""
LAYERS = 8
"""Of the MLP whose errors are drawn."""
MODELS: dict[str, Any] = {  # how it is made for a width, the shape of its input
    "MLP": (lambda n: mlp((16, n, n, 4)), (8, 16)),
    "linear": (lambda n: deep_linear((16, n, n, 4)), (8, 16)),
    "attention": (lambda n: merged_attention(16, heads=n // 8, gain=1.0), (2, 8, 16)),
    "blocks": (lambda n: attention_blocks(16, layers=2, heads=2, hidden=n, norm="pre"), (2, 8, 16)),
    "batch norm": (
        lambda n: mlp((16, n, n, 4), activation=lambda h: jnp.tanh(batch_norm(h))),
        (8, 16),
    ),
    "convolution": (
        lambda n: conv_net((4, 4), channels=(n // 4, n // 4), outputs=4, activation=jnp.tanh),
        (8, 16),
    ),
    "transformer": (lambda n: transformer(11, 8, width=16, heads=2, hidden=n, scale=0.25), None),
}


@dataclass(frozen=True)
class Config:
    """Settings of the draws."""

    models: tuple[str, ...] = tuple(MODELS)  # Networks.
    decades: tuple[int, int] = (-12, -1)  # Steps from 10 to this power to that.
    widths: tuple[int, ...] = (16, 32, 64, 128)  # At which costs are counted; the first is drawn.
    seeds: int = 24  # How many draws of weights, data and directions.
    first_seed: int = 0  # The first of them.

    @property
    def steps(self) -> np.ndarray:
        """Of differences."""
        low, high = self.decades
        return 10.0 ** np.arange(low, high + 0.125, 0.25)

    def __post_init__(self) -> None:
        """Refuses steps that do not reach from rounding to truncation; widths no multiple of 8."""
        if self.decades[0] > -11 or self.decades[1] < -2:
            raise BadInput(f"decades: {self.decades}; give -11 or less to -2 or more")
        if not self.models or not {*self.models} <= {*MODELS}:
            raise BadInput(f"models: {self.models}; give some of {', '.join(MODELS)}")
        if any(width % 8 or width < 8 for width in self.widths) or not self.widths:
            raise BadInput(f"widths: {self.widths}; give multiples of 8")


PRESETS = {"quick": Config(seeds=12), "paper": Config()}


def problem(model: str, width: int, data_key: Array, precision: str = "float64") -> tuple[Any, Any]:
    """A network's init and its loss: half the mean square to a random target."""
    make, shape = MODELS[model]
    network = make(width)
    x_key, y_key = jax.random.split(data_key)
    if shape is None:
        x: Array = jax.random.randint(x_key, (4, 8), 0, 11)
    else:
        x = jax.random.normal(x_key, shape, float).astype(precision)
    like = jax.eval_shape(lambda k: network.apply(network.init(k), x), data_key)
    y = jax.random.normal(y_key, like.shape, float).astype(precision)
    return network.init, lambda params: 0.5 * jnp.mean((network.apply(params, x) - y) ** 2)


def drawn(seed: Array, *, model: str, precision: str, config: Config) -> Dynamics:
    """One draw: relative errors of the differences, and what a wrong gradient makes of them."""
    init_key, data_key, way_key, other_key = jax.random.split(jax.random.key(seed), 4)
    init, loss = problem(model, config.widths[0], data_key, precision)

    def begin() -> dict[str, Array]:
        start = jax.tree.map(lambda w: w.astype(precision), init(init_key))
        flat, unravel = ravel_pytree(start)

        def along(key: Array) -> Array:
            way = jax.random.normal(key, flat.shape, flat.dtype)
            return way * jnp.linalg.norm(flat) / jnp.linalg.norm(way)

        way, h = along(way_key), jnp.asarray(config.steps).astype(precision)
        gradient = jax.grad(lambda w: loss(unravel(w)))(flat)
        slope = gradient @ way
        wrong = slope + 0.01 * gradient @ along(other_key)
        moves = jnp.concatenate([h, -h, jnp.zeros_like(h[:1])])
        losses = jax.lax.map(lambda moved: loss(unravel(flat + moved * way)), moves)
        up, down, here = losses[: len(h)], losses[len(h) : -1], losses[-1]
        forward, central = (up - here) / h, (up - down) / (2 * h)
        errors = {"forward": forward - slope, "central": central - slope, "wrong": central - wrong}
        return {n: jnp.abs(error / slope).astype(float) + 1e-30 for n, error in errors.items()}

    return Dynamics(begin, lambda state, t: state, lambda state, t: state)


def sent_back(seed: Array, *, config: Config) -> Dynamics:
    """One draw of a deep MLP: the error at each layer, by the chain rule and by differences."""
    init_key, x_key, y_key = jax.random.split(jax.random.key(seed), 3)
    width = config.widths[0]
    x, y = jax.random.normal(x_key, (4, 16)), jax.random.normal(y_key, (4, 4))

    def begin() -> dict[str, Array]:
        params = mlp((16, *[width] * (LAYERS - 1), 4), bias=False).init(init_key)
        first, *others = (layer["kernel"] for layer in params.values())
        still = [jnp.zeros((4, kernel.shape[1])) for kernel in (first, *others)]
        flat, unravel = ravel_pytree(still)

        def loss(moved: list[Array]) -> Array:
            h = x @ first + moved[0]
            for kernel, m in zip(others, moved[1:], strict=True):
                h = jnp.tanh(h) @ kernel + m
            return 0.5 * jnp.mean((h - y) ** 2)

        h, ways = EPS ** (1 / 3), jnp.eye(flat.size)
        losses = jax.lax.map(lambda way: loss(unravel(way)), jnp.concatenate([h * ways, -h * ways]))
        slopes = unravel((losses[: flat.size] - losses[flat.size :]) / (2 * h))
        sent = jax.grad(loss)(still)
        plain = [sent[-1]]
        for kernel in reversed(others):
            plain = [plain[0] @ kernel.T, *plain]

        def off(errors: list[Array]) -> dict[str, Array]:
            return relative_updates(slopes, jax.tree.map(jnp.subtract, errors, slopes))

        found = {"sent": layer_sizes(sent), "slopes": layer_sizes(slopes)}
        found |= {"plain": layer_sizes(plain), "off": off(sent), "plain_off": off(plain)}
        return {name: jnp.stack([*by_layer.values()]) for name, by_layer in found.items()}

    return Dynamics(begin, lambda state, t: state, lambda state, t: state)


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Errors by step and network; costs by width; the error at each layer."""
    how: Any = {"axes": {"seed": seeds(config)}, "steps": 1, "every": [0]}
    static = {"model": config.models, "precision": ["float64", "float32"]}
    dims: Any = dict.fromkeys(("forward", "central", "wrong"), ("h",))
    process = partial(drawn, config=config)
    errors = sweep(process, **how, static=static, dims=dims, store=store / "errors")
    dims = dict.fromkeys(("sent", "slopes", "plain", "off", "plain_off"), ("layer",))
    layers = sweep(partial(sent_back, config=config), **how, dims=dims, store=store / "layers")
    return {
        "errors": errors.isel(step=0, drop=True).assign_coords(h=config.steps),
        "layers": layers.isel(step=0, drop=True).assign_coords(layer=np.arange(1, LAYERS + 1)),
        "costs": costs(config),
    }


def costs(config: Config) -> xr.Dataset:
    """Operations of a gradient and of differences by every weight, over those of a loss."""
    key_, rows = jax.random.key(0), []
    for model in config.models:
        for width in config.widths:
            init, loss = problem(model, width, key_)
            params = jax.eval_shape(init, key_)
            one, both = (
                (jax.jit(f).lower(params).cost_analysis() or {})["flops"]
                for f in (loss, jax.value_and_grad(loss))
            )
            weights = sum(leaf.size for leaf in jax.tree.leaves(params))
            rows.append((both / one, float(weights + 1)))
    shape = (len(config.models), len(config.widths), 2)
    found = np.array(rows).reshape(shape)
    dims, coords = ("model", "width"), {"model": [*config.models], "width": [*config.widths]}
    named = {"gradient": (dims, found[..., 0]), "differences": (dims, found[..., 1])}
    return xr.Dataset(named, coords)


def expected(config: Config) -> dict[str, Expected]:
    """Orders of truncation and of rounding, where they meet, and what a gradient costs."""
    by = partial(Expected, source=SOURCE, vary="weights, data and direction")
    order = partial(by, kind="closed form", estimator="slope of the log of the error in log step")
    flat = Control("a gradient that is a percent off: not", about(0.0, within=0.25, why="it stays"))
    least = partial(by, kind="closed form", estimator="log of the best step over log eps")
    why = "derivatives of order one: their root"
    return {
        "forward": order(
            "a forward difference errs by the step",
            about(1.0, within=0.05, why="the next order"),
            flat,
        ),
        "central": order(
            "a central one by its square", about(2.0, within=0.05, why="the next order"), flat
        ),
        "rounding": order(
            "with small steps rounding makes it err by 1 / step",
            about(-1.0, within=0.15, why="rounding errors scatter"),
            flat,
        ),
        "best forward": least(
            "forward: the best step is eps^(1/2)",
            about(1 / 2, within=0.06, why=why),
            Control("in float32 its own", about(COARSE / 2, within=0.06, why=why)),
            grid=0.25 / 15.65,
        ),
        "best central": least(
            "central: the best step is eps^(1/3)",
            about(1 / 3, within=0.06, why=why),
            Control("in float32 its own", about(COARSE / 3, within=0.06, why=why)),
            grid=0.25 / 15.65,
        ),
        "layers": by(
            "at each layer the error sent back is the slope of the loss by its units",
            below(1e-6, why="central differences err by 1e-8 or so, as they lose 10 digits of 16"),
            Control(
                "sent back without the activation's slope it is not", above(0.1, why="a tenth")
            ),
            kind="closed form",
            estimator="|error - differences| / |differences|, the most of all layers",
            scale="log",
        ),
        "cost": Expected(
            "a gradient costs at most four losses, whatever the network and its width",
            below(4.0, why="the cheap gradient principle"),
            Control("differences by every weight cost more", above(100.0, why="one a weight")),
            kind="closed form",
            source="Griewank and Walther 2008: the cheap gradient principle",
            estimator="operations over those of a loss, the most (control: the least) of all",
            vary=NOTHING,
        ),
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Of each seed the mean over networks."""
    errors = data["errors"][["forward", "central", "wrong"]]
    logs = xr.ufuncs.log10(errors).assign_coords(h=np.log10(errors.h))

    def slope(name: str, low: float, high: float) -> xr.DataArray:
        fit = logs[name].sel(precision="float64", h=slice(low - 0.1, high + 0.1)).polyfit("h", 1)
        return fit.polyfit_coefficients.sel(degree=1, drop=True).mean("model")

    def best(name: str, precision: str) -> xr.DataArray:
        least = logs[name].sel(precision=precision).argmin("h")
        return (logs.h[least] / math.log10(EPS)).mean("model")

    costs, layers = data["costs"], data["layers"]
    return {
        "forward": (slope("forward", -6, -3), slope("wrong", -6, -3)),
        "central": (slope("central", -3.5, -2), slope("wrong", -3.5, -2)),
        "rounding": (slope("forward", -12, -9.5), slope("wrong", -6, -3)),
        "best forward": (best("forward", "float64"), best("forward", "float32")),
        "best central": (best("central", "float64"), best("central", "float32")),
        "layers": (layers.off.max("layer"), layers.plain_off.max("layer")),
        "cost": ([float(costs.gradient.max())], [float(costs.differences.min())]),
    }


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Error against the step, by difference; cost by the number of weights; error by layer."""
    errors, costs = data["errors"].sel(precision="float64"), data["costs"]
    grey = {"color": "0.3", "linewidth": 0.8, "zorder": 5}
    powers = {
        "forward": (1, r"$\max(h, \epsilon / h)$"),
        "central": (2, r"$\max(h^2, \epsilon / h)$"),
    }
    with panels(2, rows=2, ratio=0.9) as (result, (first, second, third, fourth)):
        for axes, (name, (order, label)) in zip((first, second), powers.items(), strict=True):
            for model, style in zip(errors.model.values, STYLES, strict=False):
                curve(axes, errors[name].sel(model=model), log=True, label=model, **style)
            axes.plot(errors.h, np.maximum(errors.h**order, EPS / errors.h), **grey, label=label)
            axes.set(xscale="log", yscale="log", xlabel="step $h$")
            axes.set(ylabel=f"error, {name} difference")
            key(axes)
        for model, style in zip(costs.model.values, STYLES, strict=False):
            of = costs.sel(model=model)
            third.plot(of.differences, of.gradient, label=model, **style, markersize=3)
        sizes = float(costs.differences.min()), float(costs.differences.max())
        third.set(xscale="log", xlabel="weights", ylabel="cost of a gradient / of a loss")
        third.set(ylim=(0, 5), xlim=(0.8 * sizes[0], 1.2 * sizes[1]))
        key(third)
        names = {"sent": "sent back", "slopes": "by differences", "plain": "without slopes of tanh"}
        for (name, label), style in zip(names.items(), STYLES, strict=False):
            dots = {**style, "linestyle": "none"} if name == "slopes" else style
            draw = points if name == "slopes" else curve
            draw(fourth, data["layers"][name], log=True, label=label, **dots)
        fourth.set(yscale="log", xlabel="layer", ylabel="error sent back, rms")
        fourth.set_yticks([0.01, 0.02, 0.05], labels=["0.01", "0.02", "0.05"])
        fourth.minorticks_off()
        key(fourth)
    return result


if __name__ == "__main__":
    main(__name__)
