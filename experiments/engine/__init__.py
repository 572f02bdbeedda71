"""The engine itself: how fast, how exact and how safe a sweep is, held against what else there is.

On a GPU or TPU a sweep is one block, as wide as memory allows; whether that is exact, never slower
than what one would write by hand, and safe to kill is checked by one command (`accelerator`).

Open: several accelerators at once, and TPUs, have never been run.
"""
