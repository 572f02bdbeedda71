"""A linear masked autoencoder learns a closed form: ridge regression of each pixel on the others.

Digits of 7 x 7 pixels, each of variance one; a pixel is visible with probability q on its own, and
a linear map, its diagonal zero, tells each from those that are. Trained by SGD on masks drawn anew
at every step, it goes to the least of the expected error (`lab.theory.masked`),

    W_j = 1/q (C + (1 - q)/q diag C)⁻¹ C_j,   row and column j left out,

ridge regression whose penalty is the odds of being hidden. The more pixels are visible, the more
the map sharpens, with negative weights beyond the next pixel. One trained on pixels that are all
visible explains less once they are hidden. Expect SGD within 0.0004 of the least error (relative),
the other 0.08 to 0.13 above it, and 0.25 of the variance explained at q = 0.5.

    python -m experiments masked_pixels          # quick: ten seconds
    python -m experiments masked_pixels paper    # 50 seconds; writes figures/

Source: He et al. 2022, arXiv 2111.06377 (deep ones). Bands were set on seeds 100 and up.
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

from lab.claims import Control, Expected, Measured, above, below
from lab.data import minibatch, mnist
from lab.dynamics import descent
from lab.experiment import main, seeds
from lab.plotting import STYLES, key, panels, points
from lab.sweep import sweep
from lab.theory.masked import masked_pixel_loss, masked_pixel_map
from lab.types import BadInput, Dynamics, Params

CLAIMED = (0.25, 0.5, 0.75)
TRAINED = ("on masks", "all visible", "another digit")


@dataclass(frozen=True)
class Config:
    """Settings of the sweep; refuses keeps not in order or (0, 1), and too many digits."""

    keeps: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)  # Probabilities that a pixel is visible.
    digits: int = 2_000  # Digits to learn from.
    batch: int = 256  # Digits in a batch, each with a mask of its own.
    lr: float = 0.02  # Rate at the start; larger ones throw maps of digits with rare pixels.
    steps: int = 2_000  # Steps, over which the rate falls to 0 as a cosine.
    seeds: int = 8  # How many draws of digits, batches and masks.
    first_seed: int = 0  # The first of them.

    def __post_init__(self) -> None:
        given = self.keeps
        if [*given] != sorted({*given} | {*CLAIMED}) or not 0 < given[0] <= given[-1] < 1:
            raise BadInput(f"keeps: {given}; give them ascending within (0, 1), with {[*CLAIMED]}")
        if not 2 <= self.digits <= 5_000:
            raise BadInput(f"digits: {self.digits}; give 2 to 5000")


PRESETS = {"quick": Config(seeds=4, steps=1_000), "paper": Config()}


@partial(jax.jit, static_argnames="count")
def learned_from(
    seed: Array | int, paired: Array | float, x: Array, count: int
) -> tuple[Array, Array]:
    """Digits of one seed, pixels standardised; as targets the same, or others (`paired` 0)."""
    digit_key, other_key, _, _ = jax.random.split(jax.random.key(seed), 4)
    own = x[jax.random.choice(digit_key, len(x), (count,), replace=False)]
    own = own - own.mean(0)[None]
    own = own / jnp.maximum(jnp.std(own, 0), 1e-6)[None]  # a pixel that never varies stays 0
    return own, jnp.where(paired == 1, own, jax.random.permutation(other_key, own))


def rebuilding(keep: Array, paired: Array, seed: Array, x: Array, *, config: Config) -> Dynamics:
    """SGD of the linear autoencoder on masks drawn anew, from zero."""
    own, target = learned_from(seed, paired, x, config.digits)
    _, _, batch_key, mask_key = jax.random.split(jax.random.key(seed), 4)
    hollow = 1 - jnp.eye(x.shape[1])

    def loss(W: Params, batch: tuple[Array, Array]) -> Array:
        shown, wanted = batch
        return jnp.mean(jnp.sum((wanted - shown @ (W * hollow).T) ** 2, -1))

    def batch(t: Array) -> tuple[Array, Array]:
        shown, wanted = minibatch(batch_key, t, (own, target), size=config.batch)
        mask = jax.random.bernoulli(jax.random.fold_in(mask_key, t), keep, shown.shape)
        return shown * mask, wanted

    return descent(
        loss,
        optax.sgd(optax.cosine_decay_schedule(config.lr, config.steps)),
        init=lambda: jnp.zeros((x.shape[1], x.shape[1])),
        observe=lambda state, t: {"W": state.params * hollow},
        batch=batch,
    )


def run(config: Config, store: Path) -> dict[str, xr.Dataset]:
    """Maps by visibility and by what they are trained on."""
    x, given, n, m = mnist(pool=4).train.x, config.keeps, config.seeds, len(config.keeps)
    trained = [(q, 1.0) for q in given] + [(1.0, 1.0)] + [(q, 0.0) for q in given]
    data = sweep(
        partial(rebuilding, config=config),
        {("keep", "paired"): trained, "seed": seeds(config)},
        shared={"x": x},
        steps=config.steps,
        every=config.steps,
        dims={"W": ("target", "input")},
        store=store,
    )
    maps = data.W.isel(step=-1).transpose("seed", "keep_paired", ...).values
    maps = np.stack([maps[:, :m], np.repeat(maps[:, [m]], m, 1), maps[:, m + 1 :]], 1)
    best = np.empty((n, m, *maps.shape[-2:]))
    error, least = np.empty((n, len(TRAINED), m)), np.empty((n, m))
    for i, k, j in np.ndindex(error.shape):
        of = learned_from(seeds(config)[i], float(k < 2), x, config.digits)
        covariance, between = (each.T @ of[0] / config.digits for each in of)
        loss = partial(masked_pixel_loss, covariance=covariance, between=between, keep=given[j])
        error[i, k, j] = loss(jnp.asarray(maps[i, k, j])) / jnp.trace(covariance)
        if k == 0:
            best[i, j] = masked_pixel_map(np.asarray(covariance, float), keep=given[j])
            least[i, j] = loss(jnp.asarray(best[i, j], jnp.float32)) / jnp.trace(covariance)
    near, by_distance = mean_weights(np.stack([maps[:, 0], best], 1))
    found = {"error": (("seed", "trained", "q"), error), "least": (("seed", "q"), least)}
    found["weight"] = (("seed", "of", "q", "distance"), by_distance)
    coords = {"trained": [*TRAINED], "q": [*given], "of": ["learned", "best"], "distance": near}
    return {"maps": data.drop_vars("W").assign(found).assign_coords(coords)}


def mean_weights(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By the distance of two pixels, up to 4: the mean weight of the one for the other."""
    at = np.argwhere(np.ones((7, 7)))
    apart = np.linalg.norm(at[:, None] - at[None], axis=-1)
    near = np.unique(apart[(apart > 0) & (apart <= 4)])
    return near, np.stack([maps[..., apart == d].mean(-1) for d in near], -1)


def expected(config: Config) -> dict[str, Expected]:
    """The closed form at three visibilities, and how much it explains."""
    by = partial(Expected, vary="digits, batches and masks")
    closed = {
        f"q = {q:g}": by(
            f"q = {q:g}: trained on masks drawn at random it goes to the closed form",
            below(0.005, why="a twentieth of what masks cost the other; ten times SGD's noise"),
            Control("trained on pixels all visible it does not", above(0.02, why="far above")),
            kind="closed form",
            source="lab.theory.masked.masked_pixel_map",
            estimator="relative excess of the expected error under masks over the least",
        )
        for q in CLAIMED
    }
    return closed | {
        "share": by(
            "q = 0.5: it explains pixels by those that are visible",
            above(0.15, why="far above chance; half of the pixels are hidden from each"),
            Control("not where the target is another digit", below(0.05, why="chance gives 2%")),
            kind="direction",
            source="lab.theory.masked.masked_pixel_loss; He et al. 2022, arXiv 2111.06377",
            estimator="share of the pixels' variance explained at the end, of digits learned from",
        )
    }


def measured(data: Mapping[str, xr.Dataset]) -> dict[str, Measured]:
    """Of maps trained on masks, and of those trained otherwise."""
    error, (masks, *others) = data["maps"].error, TRAINED
    excess, share = error / data["maps"].least - 1, 1 - error.sel(q=0.5)
    found = {f"q = {q:g}": (excess.sel(q=q), others[0]) for q in CLAIMED}
    found["share"] = (share, others[1])
    return {n: (of.sel(trained=masks), of.sel(trained=no)) for n, (of, no) in found.items()}


def figure(data: Mapping[str, xr.Dataset]) -> Figure:
    """Variance explained against visibility; weights against distance; lines: closed form."""
    pixels = data["maps"]
    with panels(2, ratio=0.75) as (result, (left, right)):
        for name, style in zip(TRAINED, STYLES, strict=False):
            style = {**style, "linestyle": "none"}
            points(left, 1 - pixels.error.sel(trained=name), label=name, **style)
        left.plot(pixels.q, 1 - pixels.least.mean("seed"), color="0.3", lw=0.8, zorder=1)
        for q, style in zip(pixels.q.values[[0, 2, -1]], STYLES[3:], strict=False):
            learned, best = (pixels.weight.sel(q=q, of=of) for of in pixels.of.values)
            points(right, learned, label=f"{q:g}", **{**style, "linestyle": "none"})
            right.plot(best.distance, best.mean("seed"), color=style["color"], lw=0.8, zorder=1)
        left.set(xlabel="share of pixels visible, q", ylabel="share of variance explained")
        right.set(xlabel="distance between pixels (pixels)", ylabel="mean weight")
        key(left, columns=3, title="trained (line: closed form)")
        key(right, columns=3, title="q (line: closed form)")
    return result


if __name__ == "__main__":
    main(__name__)
