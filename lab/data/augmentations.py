"""Augmentations of a digit: pure functions of a key and ONE image; `vmap` lifts them.

Images are [h, w], of any scale; what comes in from outside of the image is `fill`, its background.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, PRNGKeyArray

from lab.types import BadInput

Image = Float[Array, "h w"]
Strength = int | float | Float[Array, ""]
Fill = Strength | Image


class Augmentation(NamedTuple):
    """How strongly each is done; 0 leaves an image as it is. Any may be traced.

    Attributes:
        shift: largest shift along each axis, in pixels.
        rotation: largest angle, in radians.
        stretch: largest change of scale along each axis, as a share.
        elastic: standard deviation of a smooth random displacement, in pixels.
        noise: standard deviation added to each pixel.
        erase: side of a square set to background, as a share of the image's.
        drop: share of pixels set to background, each on its own.
    """

    shift: Strength = 0.0
    rotation: Strength = 0.0
    stretch: Strength = 0.0
    elastic: Strength = 0.0
    noise: Strength = 0.0
    erase: Strength = 0.0
    drop: Strength = 0.0


def augmented(key: PRNGKeyArray, image: Image, how: Augmentation, *, fill: Fill = 0.0) -> Image:
    """A random view: warped (one interpolation for all), then erased, dropped and noisy.

    >>> image = jnp.arange(9.0).reshape(3, 3)
    >>> (augmented(jax.random.key(0), image, Augmentation()) == image).all()
    Array(True, dtype=bool)
    """
    warp_key, erase_key, drop_key, noise_key = jax.random.split(key, 4)
    result = warped(image, displacement(warp_key, image.shape, how), fill=fill)
    result = erased(erase_key, result, side=how.erase, fill=fill)
    kept = jax.random.uniform(drop_key, image.shape) >= how.drop
    result = jnp.where(kept, result, fill)
    return result + how.noise * jax.random.normal(noise_key, image.shape, image.dtype)


def displacement(
    key: PRNGKeyArray, shape: tuple[int, ...], how: Augmentation
) -> Float[Array, "2 h w"]:
    """From where each pixel takes its value, less its own place: rows, then columns, in pixels.

    Shifts, angles and changes of scale are uniform up to their largest, scale and angle about the
    middle. The elastic part is a normal one on a grid of 4 x 4, smoothly interpolated. `shape` is
    that of the image, (h, w).

    >>> displacement(jax.random.key(0), (2, 2), Augmentation()).sum()
    Array(0., dtype=float32)
    """
    affine_key, elastic_key = jax.random.split(key)
    draws = jax.random.uniform(affine_key, (5,), minval=-1.0, maxval=1.0)
    middle = (jnp.array(shape) - 1) / 2
    own = jnp.stack(jnp.meshgrid(*(jnp.arange(n, dtype=float) for n in shape), indexing="ij"))
    row, column = own - middle[:, None, None]
    angle = how.rotation * draws[0]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = jnp.stack([cos * row - sin * column, sin * row + cos * column])
    scaled = turned * (1 + how.stretch * draws[1:3])[:, None, None]
    coarse = jax.random.normal(elastic_key, (2, 4, 4))
    smooth = jax.image.resize(coarse, (2, *shape), "cubic")
    moved = scaled - jnp.stack([row, column]) + how.elastic * smooth
    return moved + how.shift * draws[3:, None, None]


def warped(image: Image, displacement: Float[Array, "2 h w"], *, fill: Fill = 0.0) -> Image:
    """The image with each pixel taken from elsewhere, between pixels by bilinear interpolation.

    >>> warped(jnp.arange(4.0).reshape(2, 2), jnp.ones((2, 2, 2)))  # from below right
    Array([[3., 0.],
           [0., 0.]], dtype=float32)
    """
    h, w = image.shape
    own = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"))
    places = list(own + displacement)
    return map_coordinates(image - fill, places, order=1, mode="constant", cval=0.0) + fill


def erased(key: PRNGKeyArray, image: Image, *, side: Strength, fill: Fill = 0.0) -> Image:
    """The image with a square of background, as large as `side` of its own, wholly inside.

    Source: DeVries and Taylor 2017, arXiv 1708.04552 ("cutout").

    >>> erased(jax.random.key(0), jnp.ones((2, 2)), side=0.5).sum()
    Array(3., dtype=float32)
    """
    if isinstance(side, int | float) and not 0 <= side <= 1:
        raise BadInput(f"side: {side} of the image; give 0 to 1")
    shape = jnp.array(image.shape)
    size = jnp.round(side * shape)
    corner = jnp.floor(jax.random.uniform(key, (2,)) * (shape - size + 1))
    row, column = jnp.arange(image.shape[0]), jnp.arange(image.shape[1])
    rows = (row >= corner[0]) & (row < corner[0] + size[0])
    columns = (column >= corner[1]) & (column < corner[1] + size[1])
    return jnp.where(rows[:, None] & columns[None], fill, image)


def two_views(
    key: PRNGKeyArray,
    x: Float[Array, "n d"],
    how: Augmentation,
    *,
    fill: Strength | Float[Array, " d"] = 0.0,
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """Two independent views of each flat square image.

    Args:
        key: of all views.
        x: images as rows, as `lab.data.mnist` gives them; d is a square.
        how: they are changed.
        fill: the background.

    Raises:
        BadInput: rows that are no square images.

    >>> seen = jax.jit(lambda key: two_views(key, jnp.ones((3, 16)), Augmentation(noise=1.0)))
    >>> a, b = seen(jax.random.key(0))
    >>> a.shape, bool((a == b).any())
    ((3, 16), False)
    """
    made = jax.vmap(lambda k: views(k, x, how, fill=fill))(jax.random.split(key))  # compiled once
    return made[0], made[1]


def views(
    key: PRNGKeyArray,
    x: Float[Array, "n d"],
    how: Augmentation,
    *,
    fill: Strength | Float[Array, " d"] = 0.0,
) -> Float[Array, "n d"]:
    """One view of each flat square image; see `two_views`.

    >>> seen = jax.jit(lambda key: views(key, jnp.ones((3, 16)), Augmentation(drop=1.0)))
    >>> seen(jax.random.key(0)).sum()
    Array(0., dtype=float32)
    """
    side = round(x.shape[1] ** 0.5)
    if side**2 != x.shape[1]:
        raise BadInput(f"x: {x.shape[1]} features are no square image")
    keys = jax.random.split(key, len(x))
    images = x.reshape(-1, side, side)
    background = jnp.broadcast_to(jnp.asarray(fill, x.dtype), (side * side,)).reshape(side, side)
    return jax.vmap(lambda k, image: augmented(k, image, how, fill=background))(
        keys, images
    ).reshape(x.shape)


def several_views(
    key: PRNGKeyArray,
    x: Float[Array, "n d"],
    how: Augmentation,
    *,
    count: int,
    fill: Strength | Float[Array, " d"] = 0.0,
) -> Float[Array, "n k d"]:
    """`count` independent views of each, made once where fresh ones at each step cost too much.

    >>> several_views(jax.random.key(0), jnp.ones((3, 16)), Augmentation(noise=1.0), count=5).shape
    (3, 5, 16)
    """
    keys = jax.random.split(key, count)
    made = jax.jit(lambda keys: jax.lax.map(lambda k: views(k, x, how, fill=fill), keys))(keys)
    return jnp.moveaxis(made, 0, 1)
