"""A transformer over tokens: embedding, positions, the blocks of `lab.models.attention`, logits.

Shapes are in the names: L positions, D width, V tokens. Leading axes of examples are free.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lab.models.attention import Blocks, Edits, Taps, check_blocks
from lab.types import BadInput, Model, Params

FEW_TOKENS = 128
"""Up to so many the embedding's gradient is a product."""

_POSITIONS = ("absolute", "relative", None)


def transformer(
    vocabulary: int,
    length: int,
    *,
    width: int = 32,
    heads: int = 4,
    layers: int = 1,
    hidden: int | None = None,
    norm: str | None = "pre",
    skip: bool = True,
    causal: bool = True,
    kernel: str = "softmax",
    positions: str | None = "absolute",
    scale: float = 0.02,
) -> Model:
    """A transformer: embedded tokens through `attention_blocks`, and logits of each position.

    Positions enter as learned vectors that are added to the tokens, as a learned bias of each head
    on its scores for each distance i - j, zero at init (relative), or not at all. With norm "pre"
    the last stream is normed before the logits. Sources: Vaswani et al. 2017, arXiv 1706.03762,
    section 3; norms as in Xiong et al. 2020, arXiv 2002.04745, figure 1; relative bias as in
    Raffel et al. 2020, arXiv 1910.10683, section 2.1, with a bucket for each distance.

    Args:
        vocabulary: number of tokens V.
        length: longest sequence.
        width: D, a multiple of `heads`.
        heads: of each attention.
        layers: blocks, at least 1.
        hidden: width of the MLP; 4 D unless given, 0 for none (attention only).
        norm: "pre", "post" or None.
        skip: whether each part is added to what it was given.
        causal: whether a position sees itself and those before it alone.
        kernel: "softmax", "linear" or "uniform", as in `attention_weights`.
        positions: "absolute", "relative" or None.
        scale: standard deviation at init of embeddings and absolute positions; without norms,
            1 / sqrt(D) or so is better than this default.

    Returns:
        Model: `apply(params, tokens, edit=None, record=False)` for tokens [*n, l <= length] gives
        logits [*n, l, V]. `edit` is {name: function of that activation} (names as in
        `lab.models.attention`), and may hold tracers, such as a clamp that is an axis of a sweep;
        with record the result is a pair with all activations, {name: array}, as edited. Params are
        float32, or float64 when jax has x64 enabled.

    Raises:
        BadInput: heads that do not divide the width, no layer, a norm or positions of another
            name; in `apply`, a sequence that is too long, an edit of what there is not or that
            changes a shape.

    >>> import jax
    >>> model = transformer(17, 32)
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.zeros((5, 32), int)).shape
    (5, 32, 17)
    >>> first = {"attention_1/weights": lambda a: jnp.zeros_like(a).at[..., 0].set(1)}  # a clamp
    >>> logits, seen = model.apply(params, jnp.zeros((5, 32), int), edit=first, record=True)
    >>> seen["attention_1/weights"].shape, seen["x_1"].shape
    ((5, 4, 32, 32), (5, 32, 32))
    """
    check_blocks(width, layers, heads, norm)
    if positions not in _POSITIONS:
        raise BadInput(f"positions: {positions!r} is not one of absolute, relative, None")
    network = _Network(
        layers=layers,
        heads=heads,
        hidden=(4 * width if hidden is None else hidden) or None,
        skip=skip,
        norm=norm,
        kernel=kernel,
        causal=causal,
        reach=length if positions == "relative" else None,
        flat=True,
        vocabulary=vocabulary,
        width=width,
        length=length if positions == "absolute" else None,
        scale=scale,
    )

    def init(key: PRNGKeyArray) -> Params:
        return network.init(key, jnp.zeros((1, length), jnp.int32), Taps())["params"]

    def apply(
        params: Params,
        tokens: Int[Array, "*n l"],
        *,
        edit: Edits | None = None,
        record: bool = False,
    ) -> Float[Array, "*n l v"] | tuple[Float[Array, "*n l v"], dict[str, Array]]:
        if tokens.shape[-1] > length:
            raise BadInput(f"tokens: {tokens.shape[-1]} positions; the model has {length}")
        taps = Taps(edit)
        logits = network.apply({"params": params}, tokens, taps)
        taps.check()
        return (logits, taps.seen) if record else logits

    return Model(init, apply)


@jax.custom_jvp
def _rows(table_VxD: Array, tokens_L: Array) -> Array:
    """The tokens' rows of a table; differentiated as a product with their one-hot rows.

    A gather's gradient scatters, which takes long or not always the same order on a GPU.
    """
    return jnp.take(table_VxD, tokens_L, axis=0)


@_rows.defjvp
def _rows_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    table_VxD, tokens_L = primals
    one_hot_LxV = jax.nn.one_hot(tokens_L, len(table_VxD), dtype=table_VxD.dtype)
    return _rows(table_VxD, tokens_L), one_hot_LxV @ tangents[0]


class _Embed(nn.Module):
    """As flax's, but for the gradient where there are few tokens."""

    vocabulary: int
    width: int
    scale: float

    @nn.compact
    def __call__(self, tokens_L: Array) -> Array:
        drawn, shape = nn.initializers.normal(self.scale), (self.vocabulary, self.width)
        table_VxD = self.param("embedding", drawn, shape, float)
        if self.vocabulary <= FEW_TOKENS:
            return _rows(table_VxD, tokens_L)
        return jnp.take(table_VxD, tokens_L, axis=0)


class _Network(Blocks):
    """Blocks between tokens and logits; with `length`, that many absolute positions."""

    vocabulary: int = 0
    width: int = 0
    length: int | None = None
    scale: float = 0.02

    @nn.compact
    def __call__(self, tokens_L: Array, tap: Taps) -> Array:
        drawn = nn.initializers.normal(self.scale)
        x_LxD = _Embed(self.vocabulary, self.width, self.scale, name="tokens")(tokens_L)
        if self.length is not None:
            position_LxD = self.param("positions", drawn, (self.length, self.width), float)
            x_LxD += jnp.broadcast_to(position_LxD[: tokens_L.shape[-1]], x_LxD.shape)
        x_LxD = super().__call__(x_LxD, tap)[-1]
        if self.norm == "pre":
            x_LxD = nn.LayerNorm(param_dtype=float, name="norm")(x_LxD)
        return nn.Dense(self.vocabulary, param_dtype=float, name="logits")(x_LxD)
