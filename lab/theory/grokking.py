"""Grokking without understanding: a linear student of a linear teacher, in closed form.

Student and teacher differ by D, |D| = 1 at the start; n normal inputs of dimension d = g n, no
noise, gradient descent on the mean of half the squared errors at rate η. With F the law of the
eigenvalues of the inputs' covariance (`marchenko_pastur`),

    mean squared error on fresh inputs     |D_t|² = max(0, 1 - 1/g) + ∫_{s>0} (1 - ηs)^{2t} dF,
                       on the examples     ∫ s (1 - ηs)^{2t} dF:

both fall smoothly, the second faster, as it is blind to directions of small s. Errors are normal,
so the share of them whose square is below a tolerance ε is `erf √(ε / (2 · mean square))`: a level
of it is passed on fresh inputs long after the examples, and above g = 1, where 1 - 1 / g of the
first mean square stays, perhaps never.

Source: Levi, Beck and Bar-Sinai 2023, arXiv 2310.16441 (gradient flow); in steps derived here.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lab.theory.least_squares import descent_law
from lab.types import BadInput


class TeacherFit(NamedTuple):
    """Mean squared errors at each time: on the examples, and on fresh inputs."""

    train: Float[np.ndarray, " t"]
    test: Float[np.ndarray, " t"]


def teacher_fit(
    times: Float[np.ndarray, " t"] | Int[np.ndarray, " t"], *, ratio: float, lr: float
) -> TeacherFit:
    """The student's errors in time, of mean square 1 at the start.

    Args:
        times: steps, 0 or more.
        ratio: g, inputs over examples.
        lr: the rate η, from 0 to 2 / (1 + √g)².

    Raises:
        BadInput: a ratio that is not above 0, a rate at which it diverges.

    >>> fit = teacher_fit(np.array([0, 20, 100_000]), ratio=2.0, lr=0.25)
    >>> fit.train.round(3), fit.test.round(3)
    (array([1.   , 0.001, 0.   ]), array([1.   , 0.503, 0.5  ]))
    """
    s, mass = descent_law(ratio, lr=lr)
    left = np.abs(1 - lr * s) ** (2 * np.asarray(times)[:, None])
    return TeacherFit(left @ (s * mass), max(0.0, 1 - 1 / ratio) + left @ mass)


def share_within(mean_square: Float[np.ndarray, "*t"], tolerance: float) -> Float[np.ndarray, "*t"]:
    """The share of normal errors whose square is below a tolerance ε: erf √(ε / (2 mean square)).

    Raises:
        BadInput: a tolerance that is not above 0.

    >>> share_within(np.array([1.0, 0.25]), 1.0).round(3)  # within one deviation, within two
    array([0.683, 0.954])
    """
    from scipy.special import erf

    if not tolerance > 0:
        raise BadInput(f"tolerance: {tolerance}; give one above 0")
    with np.errstate(divide="ignore"):
        return erf(np.sqrt(tolerance / (2 * mean_square)))
