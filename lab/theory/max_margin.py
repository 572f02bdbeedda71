"""Where descent on logistic loss goes: to the widest margin, as log t, plus a constant.

Rows z_i of `Z` are examples times their labels, and some w has z_i.w > 0 for all. Descent at rate η
on the SUM L = Σ log(1 + exp(-z_i.w)) sends w to infinity. The hard-margin solution

    ŵ = argmin |w|  such that  z_i.w >= 1,   ŵ = Σ α_i z_i,  α_i >= 0, and 0 off the margin,

has margin 1 / |ŵ|, and |ŵ|² = Σ α_i, as z_i.ŵ = 1 where α_i > 0. Set w = ŵ log t + w̃: a step moves
w by ŵ / t to leading order, and by η Σ exp(-z_i.w) z_i = η Σ exp(-z_i.w̃) z_i / t, the sum over the
margin, other examples being of order t^-(z_i.ŵ). Both are the same where

    η exp(-z_i.w̃) = α_i  on the margin:   Z_S w̃ = log(η / α_S),   η t L -> Σ α_i = |ŵ|²,

of as many support vectors as dimensions; of fewer, the rest of w̃ is the start's and the path's.

Source: Soudry, Hoffer, Nacson, Gunasekar and Srebro 2018, "The implicit bias of gradient descent on
separable data", arXiv 1710.10345. Derived here.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lab.types import BadInput


class Asymptote(NamedTuple):
    """w = direction log t + constant, up to what vanishes.

    Attributes:
        direction: ŵ, of least length with z_i.ŵ >= 1; the margin is 1 / |ŵ|.
        constant: w̃.
        weights: α, ŵ = Σ α_i z_i, 0 off the margin.
    """

    direction: Float[np.ndarray, " d"]
    constant: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, " n"]


def max_margin(examples: Float[np.ndarray, "n d"], *, lr: float) -> Asymptote:
    """Where descent at a rate goes on the sum of log(1 + exp(-z_i.w)).

    Solved as a least-distance problem by non-negative least squares: Lawson and Hanson 1995,
    Solving Least Squares Problems, section 23.4.

    Args:
        examples: z_i, inputs times labels of 1 or -1.
        lr: the rate η.

    Raises:
        BadInput: no w separates them, or the support vectors are not d, and independent: then the
            start decides a part of the constant.

    >>> found = max_margin(np.array([[1.0, 1.0], [1.0, -1.0], [9.0, 1.0]]), lr=0.5)
    >>> found.direction.round(6) + 0.0, found.constant.round(6) + 0.0, found.weights.round(6) + 0.0
    (array([1., 0.]), array([0., 0.]), array([0.5, 0.5, 0. ]))
    """
    from scipy.optimize import nnls

    n, d = examples.shape
    system, target = np.vstack([examples.T, np.ones(n)]), np.append(np.zeros(d), 1.0)
    shares = nnls(system, target)[0]
    left = 1 - shares.sum()
    if left < 1e-12:
        raise BadInput(f"examples: no w separates these {n}")
    weights = shares / left
    support = weights > 1e-9 * weights.max()
    found = int(support.sum())
    if found != d or np.linalg.matrix_rank(examples[support]) < d:
        raise BadInput(f"examples: {found} support vectors; give {d}, independent of one another")
    constant = np.linalg.solve(examples[support], np.log(lr / weights[support]))
    return Asymptote(examples.T @ weights, constant, weights)
