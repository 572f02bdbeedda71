"""Data: real digits, held by installed packages and never downloaded."""

from lab.data.augmentations import Augmentation, augmented, two_views, views
from lab.data.batches import minibatch
from lab.data.digits import Digits, Split, mnist, mnist1d, sklearn_digits
from lab.data.selection import Selection, token_selection
from lab.data.sequences import Regressions, in_context_regression, pixel_sequences

__all__ = [
    "Augmentation",
    "Digits",
    "Regressions",
    "Selection",
    "Split",
    "augmented",
    "in_context_regression",
    "minibatch",
    "mnist",
    "mnist1d",
    "pixel_sequences",
    "sklearn_digits",
    "token_selection",
    "two_views",
    "views",
]
