"""What is minimised or scored: functions of arrays, never of networks."""

from lab.objectives.supervised import accuracy, cross_entropy, mse

__all__ = ["accuracy", "cross_entropy", "mse"]
