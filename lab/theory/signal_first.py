"""Linear regression with some labels wrong: what is right is fitted before what is wrong.

n examples with p inputs, `y = X b + e`, the entries of X independent normals of variance 1, |b|² =
`signal`, e independent of variance `noise` on a share q of the examples and 0 on the others.
Gradient descent on `|X w - y|² / (2n)` from w = 0 at rate η leaves after t steps the residual

    y - X w = A (X b + e),    A = (I - η X Xᵀ / n)^t.

With F the law of the eigenvalues of Xᵀ X / n at large p and n, p / n = g (Marchenko and Pastur:
density √((b - s)(s - a)) / (2π g s) from a = (1 - √g)² to b = (1 + √g)², and what is left of mass 1
at 0), X Xᵀ / n has the same eigenvalues above 0, g times as many to one, and a random rotation of
eigenvectors. So μ = tr A / n is left of a label's own error, and the others' spread evenly:

    μ = max(0, 1 - g) + g ∫_{s>0} (1 - ηs)^t dF,
    ν = as μ with 2t,    S = signal ∫ s (1 - ηs)^{2t} dF,    leak = q noise (ν - μ²),

    squared residual of right labels   S + leak
                     of wrong ones     S + leak + noise μ²
    wrong ones, against the truth      S + leak + noise (1 - μ)².

The last falls with S while μ is near 1, and rises again as the errors are memorised. Derived here;
the dynamics are those of Advani and Saxe 2017, arXiv 1710.03667.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lab.theory.least_squares import descent_law
from lab.types import BadInput


class NoisyFit(NamedTuple):
    """Mean squares at each time.

    Attributes:
        right: of the residual on right labels.
        wrong: of the residual on wrong labels.
        truth: of the outputs on examples of wrong labels, less their true values.
        kept: μ, the share of a label's error that is not fitted.
    """

    right: Float[np.ndarray, " t"]
    wrong: Float[np.ndarray, " t"]
    truth: Float[np.ndarray, " t"]
    kept: Float[np.ndarray, " t"]


def noisy_fit(
    times: Float[np.ndarray, " t"] | Int[np.ndarray, " t"],
    *,
    ratio: float,
    lr: float,
    share: float,
    noise: float,
    signal: float = 1.0,
) -> NoisyFit:
    """How right and wrong labels are fitted in time.

    Args:
        times: steps, 0 or more.
        ratio: g, inputs over examples; not 0.
        lr: the rate η, from 0 to 2 / (1 + √g)².
        share: q, of labels that are wrong.
        noise: variance of their error.
        signal: |b|², the variance of what is true.

    Raises:
        BadInput: a ratio that is not above 0, a rate at which it diverges, a share beyond 0 to 1.

    >>> fit = noisy_fit(np.array([0, 3, 1000]), ratio=0.5, lr=0.25, share=0.3, noise=2.25)
    >>> fit.truth.round(2)  # corrected before it is memorised
    array([1.  , 0.36, 0.73])
    """
    s, mass = descent_law(ratio, lr=lr)
    if not 0 <= share <= 1:
        raise BadInput(f"share: {share} should be from 0 to 1")
    left = np.abs(1 - lr * s)
    signs, steps = np.sign(1 - lr * s), np.asarray(times)[:, None]
    once, twice = signs**steps * left**steps, left ** (2 * steps)
    none = max(0.0, 1 - ratio)
    mu, nu = (none + ratio * of @ mass for of in (once, twice))
    right = signal * twice @ (s * mass) + share * noise * (nu - mu**2)
    return NoisyFit(right, right + noise * mu**2, right + noise * (1 - mu) ** 2, mu)
