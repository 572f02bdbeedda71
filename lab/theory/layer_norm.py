"""Layer norm's place: the stream and the last MLP's gradient, in blocks with random weights.

A block is attention, then an MLP (GELU, F hidden units), put in as `lab.models.attention_blocks`
does; each projection has variance 1 / fan-in. Followed through the blocks are V, the variance of a
token's coordinates, and C, their covariance with those of another (of the same sequence, or of the
same place in another example). Tokens start independent: V = 1, C = 0. Given its input, a part
with fresh weights has mean zero and is uncorrelated with the stream, so that moments add. With
v, c the moments of what a part is given (norm "pre": 1 and C / V; else V and C) it gives

    attention   v' = (v - c) P + c       c' = (v - c) S + c
    MLP         v' = E gelu(√v z)²       c' = E gelu(u) gelu(w),  u, w normal with moments v, c

P is the mean of `Σ_j a_ij²`, S of `Σ_j a_ij a_i'j` over n tokens: attention averages what tokens
have of their own and keeps what they have in common. Scores are normal, with variance v (v - c)
about a token's mean score, and covariance c (v - c) between two tokens. As a ratio of means,

    P = o(v (v - c)),   S = o(c (v - c)),      o(x) = e^x / (e^x + n - 1),

exact for one token, many tokens, and scores that are all alike or far apart; between (without norm,
where the scores' variance is a few units and grows) v' is too large by up to a half. Examples do
not mix: v' = v, c' = c. The stream is then, after each part,

    none   V + v', C + c'        pre   the same        post   1, (C + c') / (V + v')

For one token this is closed: with g = E gelu(z)² = 0.425, after L blocks

    pre    V = 1 + (1 + g) L         post   V = 1
    none   V <- 2 V + E gelu(√(2V) z)², which tends to 3 V

The last MLP's output matrix W has the gradient `h ⊗ J r` for one token, h the hidden units and
r ~ N(0, I) the gradient by the output. A norm that is read has J = `(I - projections) / √V`,
V the variance it was given, D - 2 of D directions left; no norm has J = I. To leading order in
1 / D and 1 / F, and per token or example of m that the loss averages over,

    E |∂W|² = F D / V · E gelu(√v z)²        (post: V = 1 + g; none: D F E gelu(√v z)²)

So with depth it falls as (1 + (1 + g) L)^-1/2 for pre (-1/2), stays for post (0), grows as √3^L
without norm. An average over m adds the off-diagonal terms `⟨h_a, h_b⟩ ⟨J r_a, J r_b⟩`: zero where
the r are independent (random labels), but of E gelu(u) gelu(w) each where r is the same; streams
grow alike with depth, so these terms grow, and what is averaged over a batch falls less steeply.

Source: Xiong et al. 2020, arXiv 2002.04745, theorem 1 and lemma 2 (ReLU, bounds); the recursion as
in Noci et al. 2022, arXiv 2206.03126.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from lab.types import BadInput

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Moments(NamedTuple):
    """Of the stream: the variance V of a token's coordinates, their covariance C with another's."""

    variance: float
    covariance: float


def gelu_moments(x: Moments) -> Moments:
    """Those of the GELU of normals with moments x: `E gelu(u)²` and `E gelu(u) gelu(w)`.

    By Gauss-Hermite quadrature in two dimensions.

    >>> [round(moment, 4) for moment in gelu_moments(Moments(1.0, 0.0))]
    [0.4252, 0.0795]
    """
    scale, cosine = math.sqrt(x.variance), min(x.covariance / x.variance, 1.0)
    u = scale * NODES[:, None]
    w = cosine * u + scale * math.sqrt(1 - cosine**2) * NODES[None, :]
    gelu_u, gelu_w = (np.asarray(jax.nn.gelu(x), np.float64) for x in (u, w))
    square = float(WEIGHTS @ np.square(gelu_u[:, 0]))
    return Moments(square, float((WEIGHTS * gelu_u[:, 0]) @ gelu_w @ WEIGHTS))


def attention_moments(x: Moments, tokens: int) -> Moments:
    """Those of softmax attention's output, from those of its input x, for one of `tokens`.

    >>> attention_moments(Moments(1.0, 0.25), 1).variance
    1.0
    """
    own = max(x.variance - x.covariance, 0.0)  # Rounding may leave less than nothing.

    def overlap(covariance: float) -> float:
        return 1 / (1 + (tokens - 1) * math.exp(-covariance))

    return Moments(
        own * overlap(x.variance * own) + x.covariance,
        own * overlap(x.covariance * own) + x.covariance,
    )


class Block(NamedTuple):
    """Moments on the way through one block.

    Attributes:
        hidden: of what the MLP is given.
        added: of the stream once the MLP's output is added, before a norm after it.
        stream: of the block's output.
    """

    hidden: Moments
    added: Moments
    stream: Moments


def blocks(depth: int, *, norm: str | None, count: int = 1, mixing: bool = True) -> list[Block]:
    """Moments through `depth` blocks with random weights.

    Args:
        depth: L.
        norm: "pre", "post" or None.
        count: how many tokens (mixing), or how many examples of one token each (not).
        mixing: whether attention mixes them.

    Raises:
        BadInput: a norm of another name.

    >>> round(blocks(10, norm="pre")[-1].stream.variance, 3)  # 1 + (1 + g) L
    15.252
    """
    if norm not in ("pre", "post", None):
        raise BadInput(f"norm: {norm!r} is not one of pre, post, None")
    stream, result = Moments(1.0, 0.0), []
    for _ in range(depth):
        given = _normed(stream) if norm == "pre" else stream
        stream = _sum(stream, attention_moments(given, count) if mixing else given)
        stream = _normed(stream) if norm == "post" else stream
        hidden = _normed(stream) if norm == "pre" else stream
        added = _sum(stream, gelu_moments(hidden))
        stream = _normed(added) if norm == "post" else added
        result.append(Block(hidden, added, stream))
    return result


def last_gradient(
    depth: int,
    *,
    width: int,
    hidden: int,
    norm: str | None,
    count: int = 1,
    mixing: bool = True,
) -> Float[np.ndarray, " {depth}"]:
    """Root mean square of the last gradient, by the MLP's output matrix, for L = 1 ... depth.

    Of `1/m Σ_i r_i · y_i`, y normed as the stream's last norm does (none: the stream itself),
    r_i ~ N(0, I): independent for tokens, the same for each of a batch of examples.

    Args:
        depth: the largest number of blocks.
        width: D.
        hidden: F.
        norm: "pre", "post" or None.
        count: m, how many tokens (mixing) or examples (not).
        mixing: which of these they are.

    >>> rise = last_gradient(400, width=64, hidden=64, norm="pre")
    >>> round(math.log2(rise[399] / rise[199]), 3)
    -0.499
    """
    squares = []
    for block in blocks(depth, norm=norm, count=count, mixing=mixing):
        own, shared = gelu_moments(block.hidden)
        total = own if mixing else own + (count - 1) * shared
        scale = 1.0 if norm is None else block.added.variance
        squares.append(hidden * width * total / (count * scale))
    return np.sqrt(squares)


def _sum(x: Moments, y: Moments) -> Moments:
    return Moments(x.variance + y.variance, x.covariance + y.covariance)


def _normed(x: Moments) -> Moments:
    return Moments(1.0, x.covariance / x.variance)
