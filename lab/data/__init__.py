"""Data: real digits, held by installed packages and never downloaded."""

from lab.data.batches import minibatch
from lab.data.digits import Digits, Split, mnist, mnist1d, sklearn_digits
from lab.data.sequences import (
    Chains,
    Regressions,
    Repeats,
    in_context_regression,
    markov_chains,
    periodic_repeats,
    pixel_sequences,
)

__all__ = [
    "Chains",
    "Digits",
    "Regressions",
    "Repeats",
    "Split",
    "in_context_regression",
    "markov_chains",
    "minibatch",
    "mnist",
    "mnist1d",
    "periodic_repeats",
    "pixel_sequences",
    "sklearn_digits",
]
