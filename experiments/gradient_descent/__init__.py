"""Gradient descent: where it goes, how fast, and what holds it at the edge of stability.

What was found, and what stays open, each with its figure, is told by the experiments' own first
lines: `python -m experiments` lists them with their verdicts.
"""
