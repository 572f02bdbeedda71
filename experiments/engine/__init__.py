"""The engine itself: how fast, how exact and how safe a sweep is, held against what else there is.

On two CPU cores what one would write by hand, `jit(vmap(scan))`, takes 1.4 to 2 times as long, and
the best of PyTorch's forms 2.4 to 6.4 times (`throughput`); a hundred thousand runs need 0.46 GB
(`bounded_memory`); what a further run, record or block costs is `scale`. On a GPU or TPU a sweep is
one block, as wide as memory allows; whether that is exact, never slower than what one would write
by hand, and safe to kill is checked by one command: on an H100 it is exact and safe, and slower
(`accelerator`). What the engine is raced against is in `peers`.

Open: goals of speed that are missed, each named in its experiment; several accelerators at once,
and TPUs, have never been run.
"""
