"""The catapult: a large learning rate throws a network to where it is flatter.

Setting. Two linear layers of width n, one example (x = 1, y = 0): `f = v.u / sqrt(n)`, loss
`f^2 / 2`, tangent kernel `k = (|u|^2 + |v|^2) / n`, the largest eigenvalue of the Hessian at f = 0.
Descent takes `u' = u - lr f v / sqrt(n)` and `v' = v - lr f u / sqrt(n)`, so that exactly

    f' = v'.u' / sqrt(n)       = f (1 - lr k + lr^2 f^2 / n)
    k' = (|u'|^2 + |v'|^2) / n = k + lr f^2 / n (lr k - 4)

In units `m = lr k` and `a = lr f / sqrt(n)` no parameter is left:

    a' = a (1 - m + a^2),   m' = m + a^2 (m - 4)

so the width only sets the start. And the border is exactly at m = 4, at any width: since
`2 |v.u| <= |u|^2 + |v|^2`, `|a| <= m / 2` at all times. Below 4, m can only fall, so a stays within
2, and as `sum a^2 (4 - m)` is at most 4, a goes to 0 (which, but for a null set of starts, needs
the final m to be below 2: flatter than 2 / lr). The loss cannot pass `m^2 n / (8 lr^2)`. Above 4, m
can only grow, and a with it. Linearised, a = 0 in the brackets: everything above 2 diverges.
"""

from jaxtyping import Array, Float

Values = float | Float[Array, "*runs"]


def catapult(f: Values, kernel: Values, *, lr: Values, width: int | float) -> tuple[Values, Values]:
    """Output and kernel of the two-layer linear network after one step of descent.

    An infinite width gives the linearised network, whose kernel stays.

    Source: Lewkowycz et al. 2020, arXiv 2003.02218: one example, with x = 1 and y = 0.

    >>> [round(float(value), 4) for value in catapult(1.0, 3.0, lr=1.0, width=10)]
    [-1.9, 2.9]
    """
    push = lr * f**2 / width
    return f * (1 - lr * kernel + lr * push), kernel + push * (lr * kernel - 4)
