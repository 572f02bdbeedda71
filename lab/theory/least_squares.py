"""Linear regression from random examples: min-norm, ridge, and descent in time; what each errs by.

Setting: `y = x.w + e`, x of p independent normal entries of variance 1, |w|² = `signal`, e
independent of variance `noise`; n examples, `X` (n, p), `ratio` = p / n. Features that are left
out of a fit are independent of those in it: their Σ w_i² counts as noise. The excess risk is
|v - w|², by which the error of a fresh example exceeds its noise.

**Min-norm** least squares, exact at any n and p. For p < n, v - w = (XᵀX)^-1 Xᵀe, and an inverse
Wishart matrix has mean I / (n - p - 1). For p > n, v is the projection of w on the span of n random
directions, and Xᵀ(XXᵀ)^-1 e; so

    excess = noise p / (n - p - 1)                           p <= n - 2
             signal (1 - n / p) + noise n / (p - n - 1)      p >= n + 2, infinite in between.

**Large n and p.** Eigenvalues s of XᵀX / n follow the law of Marchenko and Pastur 1967, and
eigenvectors are independent of w: excess is the mean over s of what is left of w along an
eigenvector, squared, plus what it takes of the noise. Ridge, `|Xv - y|² / n + penalty |v|²`:

    excess = signal E (l / (s + l))² + noise ratio E s / (s + l)²,   l the penalty.

Its slope in l is 2 (signal l - noise ratio) E s / (s + l)³: best is l = noise ratio / signal, and
there excess = noise ratio E 1 / (s + l). Descent from 0 on half the mean square, at rate η:

    excess = signal E (1 - ηs)^2t + noise ratio E (1 - (1 - ηs)^t)² / s
    |Xv - y|² / n = signal E s (1 - ηs)^2t + noise (1 - ratio + ratio E (1 - ηs)^2t).

Where p > n, a share 1 - n / p of the s is 0, on which nothing is learned.

Sources: Breiman and Freedman 1983 ("How many variables should be entered in a regression
equation?"); Belkin, Hsu and Xu 2020, arXiv 1903.07571 (p > n); Advani and Saxe 2017, arXiv
1710.03667 (in time); Dobriban and Wager 2018, arXiv 1507.03003 (ridge). Derived here.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lab.types import BadInput


class SpectralLaw(NamedTuple):
    """Points and their weights: means by the law are sums. What weights lack of 1 lies at 0."""

    values: Float[np.ndarray, " points"]
    weights: Float[np.ndarray, " points"]

    def mean(self, of: Float[np.ndarray, " points"]) -> float:
        """Of a function's values at the points, over all but what lies at 0."""
        return float(np.sum(self.weights * of))  # no product: its threads cost more than they save


def marchenko_pastur(ratio: float, *, points: int = 20_000) -> SpectralLaw:
    """The limit law of the eigenvalues of XᵀX / n, entries of variance 1, ratio = p / n.

    Density sqrt((b - s)(s - a)) / (2 π ratio s) on a, b = (1 -+ sqrt(ratio))², by the midpoint
    rule in θ, s = a + (b - a) (1 - cos θ) / 2, of which it is smooth; and 1 - 1 / ratio at 0 where
    that is above 0.

    Raises:
        BadInput: a ratio that is not above 0.

    >>> law = marchenko_pastur(2.0)
    >>> [round(law.mean(law.values**k), 6) for k in (0, 1, 2)]  # 1/2 lies at 0
    [0.5, 1.0, 3.0]
    """
    if not ratio > 0:
        raise BadInput(f"ratio: {ratio}; give one above 0")
    half = 2 * ratio**0.5
    theta = (np.arange(points) + 0.5) * np.pi / points
    # a + half (1 - cos θ), without the cancellation where a is near 0
    values = (1 - ratio**0.5) ** 2 + 2 * half * np.sin(theta / 2) ** 2
    return SpectralLaw(values, half**2 * np.sin(theta) ** 2 / (2 * ratio * points * values))


def descent_law(ratio: float, *, lr: float) -> SpectralLaw:
    """`marchenko_pastur`, where descent on half the mean squared error converges.

    Raises:
        BadInput: a ratio that is not above 0; a rate that is not, or beyond 2 / (1 + sqrt(ratio))²,
            2 over the largest eigenvalue, at which it diverges.

    >>> len(descent_law(1.0, lr=0.25).values)
    20000
    """
    law, most = marchenko_pastur(ratio), 2 / (1 + ratio**0.5) ** 2
    if not 0 < lr < most:
        raise BadInput(f"lr: {lr}; give one between 0 and {most:.4g}")
    return law


def minimum_norm_risk(features: int, samples: int, *, signal: float, noise: float) -> float:
    """The expected excess risk of min-norm least squares, exact at any size.

    Infinite where |features - samples| is 0 or 1.

    Args:
        features: p, of those that are fitted.
        samples: n.
        signal: Σ w_i² of the features fitted.
        noise: of the labels, and Σ w_i² of features left out.

    Raises:
        BadInput: features or samples below 1.

    >>> [minimum_norm_risk(p, 10, signal=1.0, noise=0.9) for p in (4, 10, 20)]
    [0.72, inf, 1.5]
    """
    p, n = features, samples
    if min(p, n) < 1:
        raise BadInput(f"features, samples: {p}, {n}; give 1 or more")
    if abs(p - n) <= 1:
        return float("inf")
    unseen = signal * (1 - n / p) if p > n else 0.0
    return unseen + noise * min(p, n) / (abs(p - n) - 1)


def best_penalty(ratio: float, *, signal: float, noise: float) -> float:
    """The penalty at which ridge errs least: noise ratio / signal.

    >>> best_penalty(2.0, signal=1.0, noise=0.25)
    0.5
    """
    return noise * ratio / signal


def ridge_risk(ratio: float, penalty: float, *, signal: float, noise: float) -> float:
    """The excess risk of ridge regression, `|Xv - y|² / n + penalty |v|²`, of large n and p.

    Raises:
        BadInput: a penalty that is not above 0.

    >>> round(ridge_risk(1.0, 1.0, signal=1.0, noise=1.0), 6)  # at best: E 1 / (s + 1)
    0.618034
    """
    if not penalty > 0:
        raise BadInput(f"penalty: {penalty}; give one above 0")
    law = marchenko_pastur(ratio)
    s = law.values
    lost = law.mean((penalty / (s + penalty)) ** 2) + max(0.0, 1 - 1 / ratio)
    return signal * lost + noise * ratio * law.mean(s / (s + penalty) ** 2)


class DescentErrors(NamedTuple):
    """Of gradient descent, after each of some numbers of steps.

    Attributes:
        excess: by which the mean squared error of fresh examples exceeds their noise.
        train: the mean squared error of the examples, noise in it.
    """

    excess: Float[np.ndarray, " t"]
    train: Float[np.ndarray, " t"]


def descent_errors(
    ratio: float, times: Int[np.ndarray, " t"], *, lr: float, signal: float, noise: float
) -> DescentErrors:
    """Test and train error of gradient descent from 0 on half the mean squared error.

    Args:
        ratio: p / n, both large.
        times: steps, 0 or more.
        lr: the rate, below 2 / (1 + sqrt(ratio))²: 2 over the largest eigenvalue.
        signal: |w|².
        noise: of the labels.

    Raises:
        BadInput: a rate at which it diverges.

    >>> start = descent_errors(0.5, np.array([0]), lr=0.1, signal=1.0, noise=0.25)
    >>> start.excess.round(6), start.train.round(6)
    (array([1.]), array([1.25]))
    """
    law = descent_law(ratio, lr=lr)
    s, unseen, excess, train = law.values, max(0.0, 1 - 1 / ratio), [], []
    for t in np.asarray(times):
        left = (1 - lr * s) ** int(t)
        kept, taken = law.mean(left**2), law.mean((1 - left) ** 2 / s)
        excess.append(signal * (kept + unseen) + noise * ratio * taken)
        fitted = ratio * law.mean(1 - left**2)  # of n directions of labels
        train.append(signal * law.mean(s * left**2) + noise * (1 - fitted))
    return DescentErrors(np.array(excess), np.array(train))
