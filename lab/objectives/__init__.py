"""What is minimised or scored: functions of arrays, never of networks."""

from lab.numerics import unit
from lab.objectives.selfsupervised import (
    VICReg,
    alignment,
    barlow_twins,
    cross_correlation,
    info_nce,
    masked_prediction,
    negative_cosine,
    nt_xent,
    uniformity,
    vicreg,
)
from lab.objectives.supervised import accuracy, cross_entropy, kl_divergence, mse

__all__ = [
    "VICReg",
    "accuracy",
    "alignment",
    "barlow_twins",
    "cross_correlation",
    "cross_entropy",
    "info_nce",
    "kl_divergence",
    "masked_prediction",
    "mse",
    "negative_cosine",
    "nt_xent",
    "uniformity",
    "unit",
    "vicreg",
]
