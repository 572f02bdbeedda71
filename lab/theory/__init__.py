"""Closed forms, one file a subject, each with its derivation or its source.

Exported are the subjects and their functions, but those whose name says too little without its
subject: `barlow.loss`, `collapse.loss`, and the `edges` of stability, `edges.adam(lr, b1)`.
"""

from lab.theory import (
    barlow,
    collapse,
    edges,
    feedback,
    in_context,
    layer_norm,
    linear_networks,
    masked,
    rank_collapse,
    sequences,
    sgd,
    signal,
    token_selection,
)
from lab.theory.barlow import cross_moment, half_time, pair_spectrum, starting_strength, strength
from lab.theory.catapult import catapult
from lab.theory.collapse import critical_decay, resting_points
from lab.theory.feedback import (
    alignment_angle,
    alignment_limits,
    alignment_strength,
    conserved_matrix,
)
from lab.theory.in_context import (
    effective_step,
    inflated_covariance,
    layer_loss,
    optimal_loss,
    optimal_step,
    rescaled,
    saddle,
    scalar_loss,
    softmax_pair_loss,
    step_loss,
    step_path,
    swapped_layer,
)
from lab.theory.layer_norm import (
    Block,
    Moments,
    attention_moments,
    blocks,
    gelu_moments,
    last_gradient,
)
from lab.theory.linear_networks import growing_strength, growth, learning_time
from lab.theory.masked import (
    masked_pixel_loss,
    masked_pixel_map,
    masked_posterior,
    one_sided,
    stationary,
)
from lab.theory.rank_collapse import collapsing_layer, leading_residual
from lab.theory.sequences import bigram_prediction, repeats_loss, unigram_prediction
from lab.theory.sgd import (
    best_rate,
    critical_rate,
    excess_losses,
    spectral_radius,
    steps_to,
    transition,
)
from lab.theory.signal import (
    MeanField,
    activation_moments,
    linear_norm_growth,
    mean_field,
    mean_field_skip,
    norm_growth,
    skip_growth,
)
from lab.theory.token_selection import descent_direction, separator

__all__ = [
    "Block",
    "MeanField",
    "Moments",
    "activation_moments",
    "alignment_angle",
    "alignment_limits",
    "alignment_strength",
    "attention_moments",
    "barlow",
    "best_rate",
    "bigram_prediction",
    "blocks",
    "catapult",
    "collapse",
    "collapsing_layer",
    "conserved_matrix",
    "critical_decay",
    "critical_rate",
    "cross_moment",
    "descent_direction",
    "edges",
    "effective_step",
    "excess_losses",
    "feedback",
    "gelu_moments",
    "growing_strength",
    "growth",
    "half_time",
    "in_context",
    "inflated_covariance",
    "last_gradient",
    "layer_loss",
    "layer_norm",
    "leading_residual",
    "learning_time",
    "linear_networks",
    "linear_norm_growth",
    "masked",
    "masked_pixel_loss",
    "masked_pixel_map",
    "masked_posterior",
    "mean_field",
    "mean_field_skip",
    "norm_growth",
    "one_sided",
    "optimal_loss",
    "optimal_step",
    "pair_spectrum",
    "rank_collapse",
    "repeats_loss",
    "rescaled",
    "resting_points",
    "saddle",
    "scalar_loss",
    "separator",
    "sequences",
    "sgd",
    "signal",
    "skip_growth",
    "softmax_pair_loss",
    "spectral_radius",
    "starting_strength",
    "stationary",
    "step_loss",
    "step_path",
    "steps_to",
    "strength",
    "swapped_layer",
    "token_selection",
    "transition",
    "unigram_prediction",
]
