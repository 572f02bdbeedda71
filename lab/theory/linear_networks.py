"""How deep linear networks learn: one singular mode after another (Saxe et al. 2014).

Setting. `y = x W_1 ... W_L`, inputs whitened, loss `1/2 |W_1 ... W_L - M|^2` (Frobenius) with
`M = U diag(s) V^T`, gradient flow in time `t` = learning rate x steps. The strength of mode k is
`a_k = u_k^T W_1 ... W_L v_k`; it grows from about 0 to s_k.

Balanced and aligned (every layer diagonal in the singular bases, all with the same entries b):
`db/dt = b^(L-1) (s - b^L)`, each mode on its own, so `a = b^L` obeys

    da/dt = L a^(2 - 2/L) (s - a)                          (Saxe et al. 2014)

Two layers, any small start: write `p = W_1^T u`, `q = W_2 v` for one mode. While the product is far
below s, `dp/dt = s q` and `dq/dt = s p`: `w = p + q` grows as exp(st), `p - q` dies out. `a = p.q`
tends to `|w|^2 / 4 exp(2st)`: a mode alone moves as a balanced one that started at
`u_0 = |w|^2 / 4`, whatever a(0) was, its sign included.

Modes share the hidden units, though. With `p = q = w/2`, `dp_k/dt = s_k p_k - sum_j (p_j.p_k) p_j`.
A stronger mode j learns first, its |p_j|^2 reaches s_j, and then the part of p_k along p_j shrinks
at rate s_k - s_j < 0: those units are taken. What is left to grow is the part of w_k orthogonal to
the w of all stronger modes (Gram-Schmidt, strongest first):

    u_0 = |w_k - projections on w_1 ... w_(k-1)|^2 / 4

of mean |w_k|^2 / 4 (1 - (k-1)/width). It wants s_j well apart and a small start.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lab.types import BadInput


def learning_time(
    start: Float[np.ndarray, "..."],
    end: Float[np.ndarray, "..."],
    *,
    s: float | Float[np.ndarray, "..."],
    depth: int,
) -> Float[np.ndarray, "..."]:
    """Time that a balanced, aligned mode takes from strength `start` to strength `end`.

    With `a = b^L`, `dt = db / (b^(L-1) (s - b^L)) = (b^(1-L) + b / (s - b^L)) db / s`, hence

        t = [g(b) + b^2 / (2s) 2F1(1, 2/L; 1 + 2/L; b^L / s)] / s   between the two ends,

    where g(b) is `b^(2-L) / (2-L)`, or log b at L = 2. Two layers:
    `t = log(end (s - start) / (start (s - end))) / (2s)`, so half of s takes `log(s/u_0 - 1)/(2s)`.

    Args (arrays that broadcast):
        start: strength at time 0.
        end: strength to be reached.
        s: singular value of the target, the final strength.
        depth: L, the number of layers.

    Raises:
        BadInput: a depth below 1, or strengths not in 0 < start, end < s.

    >>> learning_time(np.array([1e-4]), np.array([1.0]), s=2.0, depth=2).round(4)
    array([2.4759])
    >>> np.log(2.0 / 1e-4 - 1) / 4
    np.float64(2.475...)
    """
    from scipy.special import hyp2f1

    if depth < 1:
        raise BadInput(f"depth: {depth} layers; give at least 1")
    if not (np.all(start > 0) and np.all(start < s) and np.all(end > 0) and np.all(end < s)):
        raise BadInput(f"start: {start} and end {end} should lie between 0 and s = {s}")

    def clock(a: np.ndarray) -> np.ndarray:
        b = a ** (1 / depth)
        plateau = np.log(b) if depth == 2 else b ** (2 - depth) / (2 - depth)
        return (plateau + b**2 / (2 * s) * hyp2f1(1, 2 / depth, 1 + 2 / depth, a / s)) / s

    return clock(end) - clock(start)


def growing_strength(
    W_1: Float[Array, "d h"],
    W_2: Float[Array, "h c"],
    U: Float[Array, "d modes"],
    V: Float[Array, "c modes"],
) -> Float[Array, "modes"]:
    """`u_0 = |w|^2 / 4`, the part of a small start that grows, for modes strongest first.

    `w = W_1^T u + W_2 v`, less its projections on those of the stronger modes. At a width below
    the number of modes the weakest have nothing left, and `u_0 = 0`.

    >>> W_1, W_2 = jnp.array([[0.1, 0.0]]), jnp.array([[0.0], [0.1]])  # their product is zero
    >>> growing_strength(W_1, W_2, jnp.ones((1, 1)), jnp.ones((1, 1))).round(4)
    Array([0.005], dtype=float32)
    """
    w = W_1.T @ U + W_2 @ V
    left = jnp.diagonal(jnp.linalg.qr(w, mode="r")) ** 2 / 4
    return jnp.pad(left, (0, w.shape[1] - left.size))


def growth(
    lr: float | Float[np.ndarray, "..."],
    momentum: float | Float[np.ndarray, "..."],
    *,
    s: float | Float[np.ndarray, "..."],
) -> Float[np.ndarray, "..."] | np.floating:
    """Factor z by which heavy ball multiplies `p + q` a step on the plateau of two layers.

    `x' = x + lr s x + momentum (x - x_before)` with `x = p + q`, so z is the larger root of

        z^2 - (1 + momentum + lr s) z + momentum = 0,

    and the strength grows by z^2. Friction governs while `lr s << (1 - momentum)^2`: then
    `log z = lr s / (1 - momentum)`, the flow with its time rescaled. Far beyond it is inertia,
    `log z = sqrt(lr s)`: more momentum shortens the plateau no more.

    >>> growth(0.1, 0.0, s=2.0).item(), growth(1e-6, 0.9, s=1.0).round(7).item()
    (1.2, 1.00001)
    """
    half = (1 + momentum + lr * s) / 2
    return half + np.sqrt(half**2 - momentum)
