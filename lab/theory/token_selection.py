"""Which tokens a trained attention query selects, and along which direction: a max-margin problem.

One query p attends to tokens with keys k_t and fixed scores γ_t (what a token's value contributes
to the output):

    f = Σ_t s_t γ_t,   s = softmax(k_t · p),   loss L = mean_i ℓ(f_i),   ℓ(f) = log(1 + e^-f).

Scores carry the label's sign, so that a large f is wanted. Where all tokens of a sequence but one
score alike, gradient descent sends p to infinity in the direction of

    argmin |p|   such that   (k_α - k_t) · p ≥ 1   for all t ≠ α, in each sequence:

it separates the token α of the highest score from the rest by the largest margin. Where they do
not, α may be any token that is locally optimal, found by where p started.

Source: Tarzanagh, Li, Zhang and Oymak 2023, arXiv 2306.13596: their (ATT-SVM), and
convergence to it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lab.types import BadInput


def descent_direction(
    query: Float[Array, " d"], keys: Float[Array, "n t d"], scores: Float[Array, "n t"]
) -> Float[Array, " d"]:
    """The unit vector along -∇L, however small ∇L is: neither cancellation nor underflow.

        -∂L/∂p = mean_i σ(-f_i) Σ_{t<u} s_t s_u (γ_t - γ_u) (k_t - k_u)

    Derived from `∂f/∂p = Σ_t s_t (γ_t - f) k_t`, which cancels once one s_t is 1 to rounding: then
    γ_t - f is noise. In the sum over pairs each term is exact to rounding; their common size, which
    falls below the smallest number there is, is taken off in the logarithm. NaN where all scores of
    each sequence are alike: there is no direction.

    >>> keys = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> descent_direction(jnp.array([1e4, 0.0]), keys, jnp.array([[1.0, 0.0]]))
    Array([ 0.70710677, -0.70710677], dtype=float32)
    """
    log_s = jax.nn.log_softmax(keys @ query)
    f = jnp.sum(jnp.exp(log_s) * scores, -1)
    gaps = scores[:, :, None] - scores[:, None]
    log_pair = log_s[:, :, None] + log_s[:, None] + jnp.log(jnp.abs(gaps))
    log_pair += jax.nn.log_sigmoid(-f)[:, None, None]
    pair = jnp.sign(gaps) * jnp.exp(log_pair - log_pair.max())
    # Pairs are antisymmetric: Σ_{t<u} pair_tu (k_t - k_u) = Σ_t k_t Σ_u pair_tu.
    direction = jnp.einsum("ntu,ntd->d", pair, keys)
    return direction / jnp.linalg.norm(direction)


def separator(
    keys: Float[np.ndarray, "n t d"], selected: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " d"]:
    """The max-margin separator of the selected tokens: least |p|, (k_α - k_t) · p ≥ 1.

    Solved exactly as a least-distance problem by non-negative least squares: Lawson and Hanson
    1995, Solving Least Squares Problems, section 23.4.

    Raises:
        BadInput: no p separates them.

    >>> separator(np.array([[[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]]]), np.array([0]))
    array([ 0.5, -0.1])
    """
    from scipy.optimize import nnls

    chosen = np.take_along_axis(keys, selected[:, None, None], axis=1)
    others = np.arange(keys.shape[1])[None] != selected[:, None]
    gaps = (chosen - keys)[others]
    system = np.vstack([gaps.T, np.ones(len(gaps))])
    target = np.append(np.zeros(keys.shape[-1]), 1.0)
    residual = system @ nnls(system, target)[0] - target
    if residual[-1] > -1e-12:
        raise BadInput(f"selected: no query separates tokens {selected.tolist()} from the rest")
    return -residual[:-1] / residual[-1]
