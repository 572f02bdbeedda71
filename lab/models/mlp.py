"""Fully connected networks in the standard, NTK and maximal-update parametrisations."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.scipy.special import erf
from jaxtyping import Array, Float, PRNGKeyArray

from lab.types import BadInput, Model, Params

Scalar = int | float | Float[Array, ""]
"""A hyperparameter: a number, or a traced one."""

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    # The exact x Phi(x), not jax's default tanh approximation.
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "erf": erf,
    "identity": lambda x: x,
}
_PARAMETRISATIONS = ("standard", "ntk", "mup")


def mlp(
    sizes: Sequence[int] = (196, 64, 64, 10),
    *,
    activation: str | Callable[[Array], Array] = "tanh",
    parametrisation: str = "standard",
    gain: Scalar = 1.0,
    bias: bool = True,
    bias_std: Scalar = 0.0,
    bias_scale: Scalar = 1.0,
) -> Model:
    r"""A multilayer perceptron with layers of the given sizes, input first, output last.

    With `phi` the activation, `x_0 = x` and `x_l = phi(h_l)`, the pre-activations are

        h_l = x_{l-1} W_l + b_l,   W_l = A_l w_l,   b_l = B_l v_l,   l = 1 ... L,   y = h_L,

    where `w_l`, `v_l` are the trained parameters, normal with mean 0 at init, and `A_l`, `B_l` are
    fixed multipliers. A parametrisation is the choice of multipliers and variances ("abc", Yang
    and Hu 2021, Definition 3.1); each has c = 0, so plain SGD with ONE learning rate is meant, and
    Adam takes one by layer (`rate_factors`).
    With `m = fan_in`, `n = fan_out`, `g = gain`, `s = bias_std`, `beta = bias_scale`:

                     A_l          Var w_l     B_l             Var v_l
        standard     1            g / m       beta            s^2
        ntk          sqrt(g / m)  1           beta            s^2
        mup, l = 1   sqrt(n)      g / (m n)   beta sqrt(n)    s^2 / n
        mup, hidden  1            g / m       beta sqrt(n)    s^2 / n
        mup, l = L   1 / sqrt(m)  g / m       beta            s^2

    The default is the reference network of the lab: tanh, 196-64-64-10, weights of standard
    deviation `1 / sqrt(fan_in)`, biases zero at init but trained.

    standard and ntk are the same random function at init (for the same key, the same function),
    with outputs of order 1. One SGD step, at a rate that does not depend on the width n, moves

                  h_1         h_2 ... h_{L-1}    y
        standard  n^(-1/2)    n^(1/2)            n     (wider needs a lower rate)
        ntk       n^(-1/2)    n^(-1/2)           1     (the kernel regime: features stay)
        mup       1           1                  1     (every layer learns features)

    mup: a_1 = -1/2, a_l = 0, a_{L+1} = 1/2, b_l = 1/2, c = 0 (Yang and Hu 2021, Table 1, whose L
    counts the hidden layers). That table holds the input size fixed; its share `1 / sqrt(fan_in)`
    of the first layer is put in the variance, which makes SGD on `w` the SGD on `W` with initial
    variances (1/m, 1/m, 1/m^2) and rates (n, 1, 1/m) for first, hidden and last layer of Yang et
    al. 2022, Table 3. Outputs are of order n^(-1/2) at init. The output size is taken as fixed, so
    the output bias has no factor of it. With one layer there is no width and mup is standard.

    ntk: the network of Jacot et al. 2018 is `bias_std=1, bias_scale=0.1`; `gain` and
    `bias_scale` are sigma_w^2 and sigma_b of Lee et al. 2019.

    Args:
        sizes: at least two positive widths.
        activation: tanh, relu, gelu (exact), silu, softplus, erf, identity, or any elementwise
            function of an array. Not applied to the output.
        parametrisation: "standard", "ntk" or "mup".
        gain: >= 0, the weights' variance times fan_in; 1 keeps the scale for tanh, 2 for relu. It
            may be traced, as may `bias_std` and `bias_scale`.
        bias: whether the layers have biases at all.
        bias_std: >= 0, the biases' standard deviation at init (before `bias_scale`).
        bias_scale: the biases' multiplier; SGD moves them `bias_scale^2` as fast.

    Returns:
        Model. `init(key) -> {"layer_1": {"kernel": [m, n], "bias": [n]}, ...}`; `apply(params, x)`
        for x of shape [n, d] or [d]; `apply(params, x, preactivations=True)` gives the tuple
        `(h_1, ..., h_L)` instead. Params are float32, or float64 when jax has x64 enabled.

    Raises:
        BadInput: one line, naming the argument, when it or the shape of `x` cannot be used.

    References:
        Jacot et al. 2018, arXiv:1806.07572. Lee et al. 2019, arXiv:1902.06720. Yang and Hu 2021,
        arXiv:2011.14522. Yang et al. 2022, arXiv:2203.03466.

    >>> model = mlp((196, 64, 64, 10))
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.ones((5, 196))).shape
    (5, 10)
    >>> [h.shape for h in model.apply(params, jnp.ones(196), preactivations=True)]
    [(64,), (64,), (10,)]
    """
    sizes = tuple(sizes)
    if len(sizes) < 2 or min(sizes) < 1:
        raise BadInput(f"sizes: {sizes} should be at least two positive widths, input first")
    if isinstance(activation, str) and activation not in _ACTIVATIONS:
        raise BadInput(
            f"activation: {activation!r} is not one of {', '.join(_ACTIVATIONS)}, nor a function"
        )
    if parametrisation not in _PARAMETRISATIONS:
        raise BadInput(
            f"parametrisation: {parametrisation!r} is not one of {', '.join(_PARAMETRISATIONS)}"
        )
    for name, value in (("gain", gain), ("bias_std", bias_std)):
        # A traced value has no sign to look at.
        if not isinstance(value, jax.core.Tracer) and not value >= 0:
            raise BadInput(f"{name}: {value} should be at least 0")

    scales = [
        _layer_scales(parametrisation, fan_in, fan_out, first=i == 0, last=i == len(sizes) - 2)
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes))
    ]
    root_gain = jnp.sqrt(gain)
    gain_at_init, gain_in_forward = (1.0, root_gain) if parametrisation == "ntk" else (root_gain, 1)
    multipliers: dict[str, dict[str, Any]] = {
        f"layer_{i}": {"kernel": A * gain_in_forward} | ({"bias": B * bias_scale} if bias else {})
        for i, (A, _, B, _) in enumerate(scales, start=1)
    }
    network = _Network(
        widths=sizes[1:],
        activation=_ACTIVATIONS[activation] if isinstance(activation, str) else activation,
        kernel_stds=tuple(std * gain_at_init for _, std, _, _ in scales),
        bias_stds=tuple(std * bias_std for _, _, _, std in scales) if bias else None,
    )

    def init(key: PRNGKeyArray) -> Params:
        return network.init(key, jnp.zeros(sizes[0]))["params"]

    def apply(
        params: Params, x: Float[Array, "*n d"], *, preactivations: bool = False
    ) -> Float[Array, "*n c"] | tuple[Float[Array, "*n _"], ...]:
        if x.shape[-1] != sizes[0]:
            raise BadInput(f"x: shape {x.shape} should end in {sizes[0]}, the first of sizes")
        effective = jax.tree.map(jnp.multiply, multipliers, params)
        hs = network.apply({"params": effective}, x)
        return hs if preactivations else hs[-1]

    return Model(init, apply)


def batch_norm(h: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Each feature over the batch at hand: mean 0, variance 1 (of n, plus 1e-5); no gain, no bias.

    Before an activation: `mlp(sizes, activation=lambda h: jax.nn.relu(batch_norm(h)))`.
    Source: Ioffe and Szegedy 2015, arXiv 1502.03167, as in training.

    >>> batch_norm(jnp.array([[0.0], [20.0]])).round(4)
    Array([[-1.],
           [ 1.]], dtype=float32)
    """
    own = h - h.mean(0, keepdims=True)
    return own * jax.lax.rsqrt(jnp.mean(own**2, 0, keepdims=True) + 1e-5)


def _layer_scales(
    parametrisation: str, fan_in: int, fan_out: int, *, first: bool, last: bool
) -> tuple[float, float, float, float]:
    """(A, std of w, B, std of v) of one layer at gain 1, bias_std 1 and bias_scale 1."""
    m, n = math.sqrt(fan_in), math.sqrt(fan_out)
    if parametrisation == "ntk":
        return 1 / m, 1.0, 1.0, 1.0
    if parametrisation == "standard" or (first and last):
        return 1.0, 1 / m, 1.0, 1.0
    if first:
        return n, 1 / (m * n), n, 1 / n
    if last:
        return 1 / m, 1 / m, 1.0, 1.0
    return 1.0, 1 / m, n, 1 / n


class _Network(nn.Module):
    widths: tuple[int, ...]
    activation: Callable[[Array], Array]
    kernel_stds: tuple[Scalar, ...]
    bias_stds: tuple[Scalar, ...] | None

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        hs: list[Array] = []
        for i, width in enumerate(self.widths):
            dense = nn.Dense(
                width,
                use_bias=self.bias_stds is not None,
                kernel_init=nn.initializers.normal(self.kernel_stds[i]),
                bias_init=nn.initializers.normal(self.bias_stds[i] if self.bias_stds else 0.0),
                param_dtype=float,  # float64 when x64 is enabled: linen's own default never is
                name=f"layer_{i + 1}",
            )
            hs.append(dense(self.activation(hs[-1]) if hs else x))
        return tuple(hs)
