"""Which of the solutions a diagonal linear network finds: the l1 or the l2 one, by its start.

Setting. `w = u² - v²` by coordinate, fewer equations than unknowns, `X w = y`, X (n, d), and a loss
of `X w` alone. With g its gradient by w, the flow from u = v = a (a scale above zero, one a
coordinate) is

    du/dt = -2 g u,   dv/dt = 2 g v,   so u = a e^(-2G), v = a e^(2G), G = the integral of g,

and `u v = a²` stays as it was. As g = Xᵀ(dL/dXw), G lies in the span of X's rows; with Xᵀν = -4G,

    w = 2 a² sinh(Xᵀν),   that is   Xᵀν = arcsinh(w / 2 a²) = ∇Q(w),
    Q(w) = sum a² q(w / a²),   q(z) = 2 - sqrt(4 + z²) + z arcsinh(z / 2).

Where the loss is brought to its least, X w = y, this is the condition of the least Q: the flow ends
at the solution of least Q, whatever the loss and its factor. For large a, Q = |w|² / 4 a², the l2
solution; for small a, Q is |w|_1 log(1 / a²) to leading order, the l1 solution.

By steps of size lr `u v` shrinks by 1 - (2 lr g)² each, and `u / v` is as by the flow but for terms
in lr³ g³. So descent ends, to second order in lr, where the flow would from a² = |u v| as it was
left, and a first order off from where the flow would from a.

Source of the potential: Woodworth et al. 2020, "Kernel and rich regimes in overparametrized
models", arXiv 2002.09277; of finite steps see Even et al. 2023, "(S)GD over diagonal linear
networks", arXiv 2302.08982. The forms are derived here.
"""

import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog

from lab.types import BadInput


def potential(w: Float[np.ndarray, " d"], scale: float | Float[np.ndarray, " d"]) -> float:
    """Q(w) = sum a² q(w / a²), q(z) = 2 - sqrt(4 + z²) + z arcsinh(z / 2), of which w is least.

    Args:
        w: coefficients.
        scale: a, at which u and v start; one number, or one a coordinate.

    Raises:
        BadInput: a scale that is not above zero.

    >>> round(potential(np.array([1.0, -2.0]), 100.0) * 4 * 100**2, 6)
    5.0
    """
    square = _square(scale)
    z = w / square
    # 2 - sqrt(4 + z²), which of small z would be lost to rounding
    below = -(z**2) / (2 + np.sqrt(4 + z**2))
    return float(np.sum(square * (below + z * np.arcsinh(z / 2))))


def least_potential(
    X: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, " n"],
    scale: float | Float[np.ndarray, " d"],
) -> Float[np.ndarray, " d"]:
    """The solution of X w = y with the least potential, where the flow from u = v = a ends.

    Newton's method for the least F(ν) = sum 2 a² cosh(Xᵀν) - yᵀν, whose gradient is X w - y. Over a
    step p, F'' grows by e^r at most, r = max |Xᵀp|; so log(1 + r) / r of it always descends.

    Args:
        X: rows that are linearly independent.
        y: what X w is to be.
        scale: a, at which u and v start; one number, or one a coordinate.

    Raises:
        BadInput: a scale that is not above zero, or so small that float64 does not reach the
            solution; more rows than columns, or rows that depend on each other.

    >>> X, y = np.array([[1.0, 2.0]]), np.array([2.0])
    >>> [least_potential(X, y, scale).round(3).tolist() for scale in (1e-9, 1e3)]
    [[0.0, 1.0], [0.4, 0.8]]
    """
    square = _square(scale)
    if X.shape[0] > X.shape[1]:
        raise BadInput(f"X: shape {X.shape}; give no more rows than columns")
    nu = np.zeros(len(y))
    for _ in range(500):
        angle = nu @ X
        w = 2 * square * np.sinh(angle)
        short = y - X @ w
        if np.linalg.norm(short) <= 1e-11 * np.linalg.norm(y):
            return w
        root = X * np.sqrt(2 * square * np.cosh(angle))
        try:
            step = np.linalg.solve(root @ root.T, short)
        except np.linalg.LinAlgError:
            break
        r = np.abs(step @ X).max()
        if not r > 0:
            break
        nu = nu + step * np.log1p(r) / r
    raise BadInput(f"scale: {scale} reaches no solution; give a larger one, and independent rows")


def basis_pursuit(
    X: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " d"]:
    """The solution of X w = y with the least |w|_1, by linear programming.

    w = p - m with p and m not negative and the sum of both the least (Chen, Donoho and Saunders
    1998, "Atomic decomposition by basis pursuit").

    Raises:
        BadInput: equations that have no solution.

    >>> basis_pursuit(np.array([[1.0, 2.0]]), np.array([2.0])).tolist()
    [0.0, 1.0]
    """
    found = linprog(np.ones(2 * X.shape[1]), A_eq=np.hstack([X, -X]), b_eq=y)
    if found.status:
        raise BadInput(f"y: {y}; give one that is X w of some w")
    positive, negative = np.split(found.x, 2)
    return positive - negative


def _square(scale: float | np.ndarray) -> np.ndarray:
    array = np.asarray(scale, float)
    if not (np.isfinite(array) & (array > 0)).all():
        raise BadInput(f"scale: {scale}; give finite numbers above zero")
    return np.asarray(array**2)
