"""How far weights are waves: concentration on one frequency, and weights without one."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def power_spectrum(rows: Float[Array, "k p"]) -> Float[Array, "k f"]:
    """|DFT|² of each row at frequencies 1 ... p // 2, without the mean; not divided by p.

    >>> power_spectrum(jnp.array([[1.0, -1.0, 1.0, -1.0]]))
    Array([[ 0., 16.]], dtype=float32)
    """
    return jnp.abs(jnp.fft.rfft(rows, axis=1)[:, 1:]) ** 2


def fourier_concentration(rows: Float[Array, "k p"]) -> Float[Array, " k"]:
    """The inverse participation ratio of each row's spectrum: 1 of a wave, near 0 of many.

        Σ_s P_s² / (Σ_s P_s)²,   P the `power_spectrum`

    1 / F where all F frequencies have the same power, 2 / (F + 1) on average of noise, p odd: there
    P_s are independent and exponential. NaN of a constant row.

    >>> waves = jnp.cos(2 * jnp.pi / 7 * jnp.outer(jnp.array([1, 2]), jnp.arange(7)))
    >>> fourier_concentration(jnp.stack([waves[0], waves[0] + waves[1]])).round(3)
    Array([1. , 0.5], dtype=float32)
    """
    power = power_spectrum(rows)
    share = power / jnp.sum(power, 1, keepdims=True)
    return jnp.sum(share**2, 1)


def without_frequency(
    rows: Float[Array, "k p"], frequency: Int[Array, " k"]
) -> Float[Array, "k p"]:
    """Each row with one frequency, 1 ... p // 2, taken out of it: the rest and the mean stay.

    >>> wave = jnp.cos(2 * jnp.pi / 5 * jnp.arange(5))[None]
    >>> bool(jnp.allclose(without_frequency(wave + 3, jnp.array([1])), 3.0, atol=1e-5))
    True
    """
    modes = jnp.fft.rfft(rows, axis=1)
    kept = jnp.arange(modes.shape[1])[None] != frequency[:, None]
    return jnp.fft.irfft(jnp.where(kept, modes, 0.0), rows.shape[1], axis=1)
