"""Attention: tokens that look at one another, and blocks of it.

Shapes are in the names: L positions, S positions that are looked at, D width, H heads, K width of a
head, F width of the MLP. Leading axes of examples are free.

Activations have names, under which each can be recorded, and clamped or masked by a function of it:

    attention_i/q /k /v    [*n, L, H, K]   queries, keys, values
    attention_i/scores     [*n, H, L, L]   before mask and kernel; -inf masks
    attention_i/weights    [*n, H, L, L]   how much each position takes from each
    attention_i/heads      [*n, L, H, K]   what each head has mixed
    attention_i            [*n, L, D]      the attention's output, before skip and norm
    mlp_i/hidden           [*n, L, F]      the MLP's activations, after the nonlinearity
    mlp_i                  [*n, L, D]      its output, before skip and norm
    x_i                    [*n, L, D]      the residual stream after block i; x_0 what goes in
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from lab.types import BadInput, Model, Params

Edits: TypeAlias = Mapping[str, Callable[[Array], Array]]
"""{name of an activation: function of it}; what it returns takes the activation's place."""

_KERNELS = ("softmax", "linear", "uniform")


def attention_weights(
    scores: Float[Array, "*b l s"], *, kernel: str = "softmax", causal: bool = False
) -> Float[Array, "*b l s"]:
    """How much each of l positions takes from each of s.

        softmax   exp(score) / sum of exp(score) over the positions seen
        linear    score / number of positions seen; of either sign, and no sum is fixed
        uniform   1 / number of positions seen, whatever the scores

    Args:
        scores: products of queries and keys.
        kernel: "softmax", "linear" or "uniform".
        causal: position i sees positions up to i alone; else all.

    Raises:
        BadInput: the kernel is none of these.

    >>> attention_weights(jnp.zeros((2, 2)), causal=True)
    Array([[1. , 0. ],
           [0.5, 0.5]], dtype=float32)
    """
    if kernel not in _KERNELS:
        raise BadInput(f"kernel: {kernel!r} is not one of {', '.join(_KERNELS)}")
    seen = jnp.ones(scores.shape[-2:], bool)
    seen = jnp.broadcast_to(jnp.tril(seen) if causal else seen, scores.shape)
    if kernel == "softmax":
        return nn.softmax(jnp.where(seen, scores, -jnp.inf))
    shown = scores if kernel == "linear" else jnp.ones_like(scores)
    return jnp.where(seen, shown, 0.0) / seen.sum(-1, keepdims=True)


def merged_attention(
    width: int,
    *,
    heads: int = 1,
    kernel: str = "softmax",
    causal: bool = False,
    gain: float = 1.0,
) -> Model:
    """Attention whose matrices are merged: `y_i = sum_h sum_j a(x_i · KQ_h c_j) c_j PV_h`.

    The c_j are the tokens seen. KQ stands for `W_Q W_Kᵀ` and PV for `W_V W_O`, which theory works
    with; each head has the whole width, scores are not divided by its root, and there is no skip.

    Args:
        width: D.
        heads: H, which add up.
        kernel: of `attention_weights`.
        causal: of `attention_weights`; only where the context is x itself.
        gain: at init KQ has independent normal entries of standard deviation gain / D, PV of
            1 / sqrt(D): scores of order `gain` for tokens with entries of order one.

    Returns:
        Model: `init(key) -> {"kq": [H, D, D], "pv": [H, D, D]}`; `apply(params, x, context=None,
        weights=False)` for x [*n, L, D] and context [*n, S, D] (x where left out) gives
        [*n, L, D], with weights the pair of that and the attention [*n, H, L, S]. Params are
        float32, or float64 when jax has x64 enabled.

    Raises:
        BadInput: in `apply`, tokens of another width, or a context given to causal attention.

    >>> layer = merged_attention(3, kernel="linear")
    >>> params = layer.init(jax.random.key(0))
    >>> y, weights = layer.apply(params, jnp.ones((5, 1, 3)), jnp.ones((5, 4, 3)), weights=True)
    >>> y.shape, weights.shape
    ((5, 1, 3), (5, 1, 1, 4))
    """

    def init(key: PRNGKeyArray) -> Params:
        kq_key, pv_key = jax.random.split(key)
        shape = (heads, width, width)
        return {
            "kq": gain / width * jax.random.normal(kq_key, shape, float),
            "pv": jax.random.normal(pv_key, shape, float) / math.sqrt(width),
        }

    def apply(
        params: Params,
        x: Float[Array, "*n l _"],
        context: Float[Array, "*n s _"] | None = None,
        *,
        weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        _check_width(x, width)
        if context is None:
            context = x
        elif causal:
            raise BadInput("context: causal attention is among the tokens of x; leave it out")
        _check_width(context, width, "context")
        q_HxLxD = jnp.einsum("...ld,hde->...hle", x, params["kq"])
        scores_HxLxS = jnp.einsum("...hle,...se->...hls", q_HxLxD, context)
        weights_HxLxS = attention_weights(scores_HxLxS, kernel=kernel, causal=causal)
        mixed_HxLxD = jnp.einsum("...hls,...sd->...hld", weights_HxLxS, context)
        y_LxD = jnp.einsum("...hld,hde->...le", mixed_HxLxD, params["pv"])
        return (y_LxD, weights_HxLxS) if weights else y_LxD

    return Model(init, apply)


def attention_blocks(
    width: int,
    *,
    layers: int,
    heads: int = 1,
    hidden: int | None = None,
    skip: bool = True,
    norm: str | None = None,
    kernel: str = "softmax",
    causal: bool = False,
) -> Model:
    """Blocks of multi-head attention and, where `hidden` is given, an MLP (GELU), over vectors.

    A block is its attention f, then its MLP f, each put in as

        norm None: x + f(x)        norm "pre": x + f(norm(x))        norm "post": norm(x + f(x))

    and without `skip` the same less the x that is added. Projections have variance 1 / fan-in and
    no bias, scores are divided by the root of a head's width; norms are layer norms with gain and
    bias. There are no positions: put them into x. Source: Vaswani et al. 2017, arXiv 1706.03762,
    section 3; placement of norms as in Xiong et al. 2020, arXiv 2002.04745, figure 1.

    Args:
        width: D, a multiple of `heads`.
        layers: blocks, at least 1.
        heads: of each attention.
        hidden: width F of the MLP; none unless given.
        skip: whether each part is added to what it was given.
        norm: "pre", "post" or None.
        kernel: of `attention_weights`.
        causal: of `attention_weights`.

    Returns:
        Model: `apply(params, x, activations=False, edit=None, record=False)` for x [*n, L, D]
        gives [*n, L, D]; with activations the tuple of x and of each block's output, of length
        layers + 1, whose last is that. `edit` is {name: function of that activation}, and may hold
        tracers; with record the result is a pair with all activations, {name: array}, as edited.
        Params are float32, or float64 when jax has x64 enabled.

    Raises:
        BadInput: heads that do not divide the width, no layer, a norm of another name; in `apply`,
            tokens of another width, an edit of what there is not or that changes a shape.

    >>> model = attention_blocks(8, layers=3, heads=2, hidden=16, norm="pre")
    >>> params = model.init(jax.random.key(0))
    >>> [x.shape for x in model.apply(params, jnp.ones((5, 8)), activations=True)]
    [(5, 8), (5, 8), (5, 8), (5, 8)]
    >>> lesion = {"attention_2/heads": lambda heads: heads.at[..., 1, :].set(0)}
    >>> y, seen = model.apply(params, jnp.ones((5, 8)), edit=lesion, record=True)
    >>> seen["attention_2/weights"].shape
    (2, 5, 5)
    """
    check_blocks(width, layers, heads, norm)
    network = Blocks(layers, heads, hidden, skip, norm, kernel, causal)

    def init(key: PRNGKeyArray) -> Params:
        return network.init(key, jnp.zeros((1, width)), Taps())["params"]

    def apply(
        params: Params,
        x: Float[Array, "*n l _"],
        *,
        activations: bool = False,
        edit: Edits | None = None,
        record: bool = False,
    ) -> Array | tuple[Array, ...] | tuple[Array | tuple[Array, ...], dict[str, Array]]:
        _check_width(x, width)
        taps = Taps(edit)
        xs = network.apply({"params": params}, x, taps)
        taps.check()
        y = xs if activations else xs[-1]
        return (y, taps.seen) if record else y

    return Model(init, apply)


def check_blocks(width: int, layers: int, heads: int, norm: str | None) -> None:
    """Raise BadInput unless such blocks can be built."""
    if width % heads:
        raise BadInput(f"heads: {heads} do not divide the width {width}")
    if layers < 1:
        raise BadInput(f"layers: {layers}; give at least 1")
    if norm not in ("pre", "post", None):
        raise BadInput(f"norm: {norm!r} is not one of pre, post, None")


def _check_width(x: Array, width: int, name: str = "x") -> None:
    if x.shape[-1] != width:
        raise BadInput(f"{name}: shape {x.shape} should end in {width}, the width")


class Taps:
    """Where activations of one call are edited and kept: `tap(name, activation) -> activation`."""

    def __init__(self, edits: Edits | None = None) -> None:
        self.edits = edits or {}
        self.seen: dict[str, Array] = {}

    def __call__(self, name: str, activation: Array) -> Array:
        """The activation as edited, which is kept under its name."""
        if name in self.edits:
            edited = self.edits[name](activation)
            if edited.shape != activation.shape:
                was = activation.shape
                raise BadInput(f"edit: {name!r} became {edited.shape}; it should stay {was}")
            activation = edited
        self.seen[name] = activation
        return activation

    def check(self) -> None:
        """Raise BadInput when an edit was of an activation that there is not."""
        for name in self.edits:
            if name not in self.seen:
                raise BadInput(f"edit: {name!r} is not one of {', '.join(self.seen)}")


class Blocks(nn.Module):
    """Blocks of `attention_blocks`, which a network with more around them extends.

    With `reach`, the longest sequence, scores have a learned relative bias; `flat` names the MLP's
    layers hidden_i and out_i rather than mlp_i/hidden and mlp_i/out.
    """

    layers: int
    heads: int
    hidden: int | None
    skip: bool
    norm: str | None
    kernel: str
    causal: bool
    reach: int | None = None
    flat: bool = False

    @nn.compact
    def __call__(self, x_LxD: Array, tap: Taps) -> tuple[Array, ...]:
        """The residual stream before and after each block."""
        xs = [tap("x_0", x_LxD)]
        for i in range(1, self.layers + 1):
            name = f"attention_{i}"
            attention = _Attention(self.heads, self.kernel, self.causal, self.reach, name=name)
            x_LxD = self._part(name, attention, xs[-1], f"norm_{i}a", tap)
            if self.hidden is not None:
                mlp = partial(_mlp, self.hidden, f"hidden_{i}", f"out_{i}")
                part = mlp if self.flat else _MLP(self.hidden, name=f"mlp_{i}")
                x_LxD = self._part(f"mlp_{i}", part, x_LxD, f"norm_{i}b", tap)
            xs.append(tap(f"x_{i}", x_LxD))
        return tuple(xs)

    def _part(
        self, name: str, part: Callable[..., Array], x_LxD: Array, norm_name: str, tap: Taps
    ) -> Array:
        norm = nn.LayerNorm(param_dtype=float, name=norm_name) if self.norm else None
        y_LxD = part(norm(x_LxD) if norm and self.norm == "pre" else x_LxD, name, tap)
        y_LxD = tap(name, y_LxD)
        if self.skip:
            y_LxD = x_LxD + y_LxD
        return norm(y_LxD) if norm and self.norm == "post" else y_LxD


class _Attention(nn.Module):
    heads: int
    kernel: str
    causal: bool
    reach: int | None

    @nn.compact
    def __call__(self, x_LxD: Array, of: str, tap: Taps) -> Array:
        width = x_LxD.shape[-1]
        shape = (self.heads, width // self.heads)
        q_LxHxK, k_SxHxK, v_SxHxK = (
            tap(
                f"{of}/{name}",
                nn.DenseGeneral(shape, use_bias=False, param_dtype=float, name=name)(x_LxD),
            )
            for name in "qkv"
        )
        scores_HxLxS = jnp.einsum("...lhk,...shk->...hls", q_LxHxK, k_SxHxK) / math.sqrt(shape[1])
        if self.reach is not None:
            scores_HxLxS += self._bias(scores_HxLxS)
        scores_HxLxS = tap(f"{of}/scores", scores_HxLxS)
        weights_HxLxS = attention_weights(scores_HxLxS, kernel=self.kernel, causal=self.causal)
        weights_HxLxS = tap(f"{of}/weights", weights_HxLxS)
        mixed_LxHxK = jnp.einsum("...hls,...shk->...lhk", weights_HxLxS, v_SxHxK)
        mixed_LxHxK = tap(f"{of}/heads", mixed_LxHxK)
        out = nn.DenseGeneral(width, (-2, -1), use_bias=False, param_dtype=float, name="o")
        return out(mixed_LxHxK)

    def _bias(self, scores_HxLxS: Array) -> Array:
        """A learned bias for each head and distance i - j, counted modulo the number of them."""
        assert self.reach is not None
        distances = self.reach if self.causal else 2 * self.reach - 1
        shape = (self.heads, distances)
        bias_HxR = self.param("relative", nn.initializers.zeros, shape, float)
        i = jnp.arange(scores_HxLxS.shape[-1])
        bias_HxLxS = bias_HxR[:, (i[:, None] - i[None]) % distances]
        return jnp.broadcast_to(bias_HxLxS, scores_HxLxS.shape)


class _MLP(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x_LxD: Array, of: str, tap: Taps) -> Array:
        return _mlp(self.hidden, "hidden", "out", x_LxD, of, tap)


def _mlp(hidden: int, first: str, second: str, x_LxD: Array, of: str, tap: Taps) -> Array:
    """An MLP in the module that calls it, its layers named `first` and `second`."""
    h_LxF = nn.gelu(nn.Dense(hidden, param_dtype=float, name=first)(x_LxD))
    h_LxF = tap(f"{of}/hidden", h_LxF)
    return nn.Dense(x_LxD.shape[-1], param_dtype=float, name=second)(h_LxF)
