"""Data: real digits, held by installed packages and never downloaded, and drawn sequences."""

from lab.data.augmentations import (
    Augmentation,
    augmented,
    displacement,
    erased,
    several_views,
    two_views,
    views,
    warped,
)
from lab.data.batches import epochs, minibatch, pairs
from lab.data.digits import (
    Digits,
    Parts,
    Split,
    WrongLabels,
    mnist,
    mnist1d,
    parts,
    sklearn_digits,
    wrong_labels,
)
from lab.data.modular import Sums, modular_addition, shown_pairs
from lab.data.selection import Selection, token_selection
from lab.data.sequences import (
    Chains,
    Regressions,
    Repeats,
    chain_sequences,
    in_context_regression,
    markov_chains,
    periodic_repeats,
    pixel_sequences,
)

__all__ = [
    "Augmentation",
    "Chains",
    "Digits",
    "Parts",
    "Regressions",
    "Repeats",
    "Selection",
    "Split",
    "Sums",
    "WrongLabels",
    "augmented",
    "chain_sequences",
    "displacement",
    "epochs",
    "erased",
    "in_context_regression",
    "markov_chains",
    "minibatch",
    "mnist",
    "mnist1d",
    "modular_addition",
    "pairs",
    "parts",
    "periodic_repeats",
    "pixel_sequences",
    "several_views",
    "shown_pairs",
    "sklearn_digits",
    "token_selection",
    "two_views",
    "views",
    "warped",
    "wrong_labels",
]
