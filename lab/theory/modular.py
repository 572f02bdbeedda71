"""A network that adds modulo p, written down: neurons of one frequency each.

Setting. One hidden layer of squares, one-hot inputs: for numbers m and n of 0 ... p - 1,

    f_q(m, n) = Σ_k W_kq (U_km + V_kn)²,   q = 0 ... p - 1,

which is to be largest at q = m + n modulo p.

Construction. For p odd, each frequency s = 1 ... (p - 1) / 2 and phases a, b of 0, 2π/3, 4π/3 give
one neuron, with x = 2π s / p,

    U = cos(x m + a),   V = cos(x n + b),   W = cos(x q + a + b).

Its square is U² + 2 U V + V². Of 2 U V = cos(x (m + n) + a + b) + cos(x (m - n) + a - b), times W,
there remains when summed over the nine phases 9/2 cos(x (m + n - q)) of the first, as every other
term is a sum over a or b of a cube root of unity's power that is not 1, and so 0; U² and V², whose
phases are 2a or none, times cos(.. + a + b) leave nothing for the same reason. And
Σ_s cos(x_s j) = (p [j = 0] - 1) / 2, j modulo p. So

    f_q = 9/4 (p [q = m + n] - 1)   exactly, by 9 (p - 1) / 2 neurons.

Source of the form, with random phases and wide networks: Gromov 2023, arXiv 2301.02679; that three
phases suffice is derived here.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lab.types import BadInput


class Adder(NamedTuple):
    """Weights of a network that adds modulo p, a row a neuron."""

    U: Float[np.ndarray, "k p"]
    V: Float[np.ndarray, "k p"]
    W: Float[np.ndarray, "k p"]


def modular_adder(modulus: int) -> Adder:
    """The construction: 9 (p - 1) / 2 neurons, of which `f_q = 9/4 (p [q = m + n] - 1)`.

    Raises:
        BadInput: an even modulus, or one below 3.

    >>> U, V, W = modular_adder(5)
    >>> outputs = (U[:, 2] + V[:, 4]) ** 2 @ W  # of 2 + 4
    >>> outputs.round(6).tolist()
    [-2.25, 9.0, -2.25, -2.25, -2.25]
    """
    p = modulus
    if p < 3 or p % 2 == 0:
        raise BadInput(f"modulus: {p}; give an odd one, at least 3")
    third = 2 * np.pi / 3 * np.arange(3)
    s, a, b = (of.reshape(-1, 1) for of in np.meshgrid(np.arange(1, p // 2 + 1), third, third))
    x = 2 * np.pi * s / p * np.arange(p)
    return Adder(np.cos(x + a), np.cos(x + b), np.cos(x + a + b))
