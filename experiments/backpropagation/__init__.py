"""How the error travels back through a network, and what depth, width and scale do to it.

What is asked: whether the gradient that reaches the first layers is of use, and what of a network's
design decides it. Found so far: batch norm multiplies squared gradients by a constant a layer that
theory gives to a percent, pi / (pi - 1) for ReLU, and a skip turns the exponential into a power.

Open: signal propagation without norm, feedback alignment, lazy and rich training, transfer of rates
across widths.
"""
