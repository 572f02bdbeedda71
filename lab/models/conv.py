"""A small convolutional network."""

import itertools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from lab.types import BadInput, Model, Params


def conv_net(
    shape: tuple[int, int] = (14, 14),
    *,
    channels: Sequence[int] = (8, 16),
    outputs: int = 10,
    activation: Callable[[Array], Array] = nn.relu,
) -> Model:
    """Convolutions of 3 x 3, an activation and 2 x 2 average pooling after each, one linear layer.

    Each layer keeps the image's size (zero padding) before pooling halves it, dropping an odd last
    row and column. Weights are normal with variance 2 / fan_in (He et al. 2015, arXiv 1502.01852,
    equation 10), whatever the activation, 1 / fan_in in the last layer; biases start at zero.

    Args:
        shape: height and width of an image, one channel.
        channels: of each convolution.
        outputs: of the linear layer.
        activation: elementwise; ReLU unless given.

    Returns:
        Model: `apply(params, x)` for x of shape [n, height * width], as `lab.data.mnist` gives it.

    Raises:
        BadInput: an image too small to be halved once a layer; in `apply`, x of another size.

    >>> import jax
    >>> model = conv_net()
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 196))).shape
    (5, 10)
    """
    if min(shape) >> len(channels) < 1:
        raise BadInput(f"shape: {shape} cannot be halved {len(channels)} times; give larger images")
    network = _Network(shape, tuple(channels), outputs, activation)

    def init(key: PRNGKeyArray) -> Params:
        return network.init(key, jnp.zeros((1, shape[0] * shape[1])))["params"]

    def apply(params: Params, x: Float[Array, "n d"]) -> Float[Array, "n c"]:
        if x.shape[-1] != shape[0] * shape[1]:
            raise BadInput(f"x: shape {x.shape} should end in {shape[0] * shape[1]}")
        return network.apply({"params": params}, x)

    return Model(init, apply)


class _Network(nn.Module):
    shape: tuple[int, int]
    channels: tuple[int, ...]
    outputs: int
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        lecun = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        image = x.reshape(x.shape[0], *self.shape, 1)
        for i, count in enumerate(self.channels, start=1):
            image = _halved(self.activation(_Conv(count, name=f"conv_{i}")(image)))
        flat = image.reshape(x.shape[0], -1)
        return nn.Dense(self.outputs, kernel_init=lecun, param_dtype=float, name="linear")(flat)


class _Conv(nn.Module):
    """3 x 3, zero padding, as one product with the nine shifted images.

    On a CPU ten times as fast as `nn.Conv`, whose gradient by the filter XLA writes as loops, and
    which `vmap` over filters turns into a grouped convolution.
    """

    channels: int

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"]) -> Float[Array, "n h w k"]:
        he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        _, height, width, c = image.shape
        kernel = self.param("kernel", he, (3, 3, c, self.channels), float)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), float)
        padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [
            padded[:, i : i + height, j : j + width]
            for i, j in itertools.product(range(3), repeat=2)
        ]
        product = jnp.concatenate(shifted, -1) @ kernel.reshape(-1, self.channels)
        return product + bias[None, None, None]


def _halved(image: Float[Array, "n h w c"]) -> Float[Array, "n hh ww c"]:
    """Averages over blocks of 2 x 2."""
    n, height, width, c = image.shape
    even = image[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(n, height // 2, 2, width // 2, 2, c).mean((2, 4))
