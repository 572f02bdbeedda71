"""Data: real digits, held by installed packages and never downloaded."""

from lab.data.digits import Digits, Split, mnist, mnist1d, sklearn_digits

__all__ = ["Digits", "Split", "mnist", "mnist1d", "sklearn_digits"]
