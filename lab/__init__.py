"""A laboratory for how neural networks learn. This page is the map; imports go down only.

floor 0   `lab.types`        Model, Dynamics, State, Claim: the shapes everything else has
          `lab.numerics`     centring, lengths and directions at any scale
floor 1   `lab.models`       networks as (init, apply): linear, MLP, convolutional, transformer;
                             those of Equinox and flax nnx
          `lab.data`         real digits, augmentations, sequences, minibatches; no download
          `lab.objectives`   losses with and without labels, functions of arrays
          `lab.measures`     curvature and kernels under jit(vmap), noise of gradients, what lies
                             between two networks, attention, representations
          `lab.theory`       closed forms, each with its derivation or source
floor 2   `lab.dynamics`     learning processes: descent by any optax optimiser, flows, bootstrap,
                             sharpness-aware descent, feedback alignment; averages beside them
          `lab.tasks`        a network of one seed, and what it is to learn
          `lab.sweep`        the engine: many runs in parallel, measured, stored, resumed
floor 3   `lab.claims`       statistics and verdicts
          `lab.plotting`     figures fit for a paper
          `lab.edge_race`    descent and its flows from the edge of stability, as two sweeps
          `lab.report`       claims in tables and as json
floor 4   `lab.experiment`   main(): command line, progress, claims table, figure, provenance
          `lab.catalogue`    the experiments there are: listed, replicated, shown in README

Read `lab/types.py`, then `lab/sweep/engine.py`, then one file of `experiments/`.
"""

__version__ = "0.2.0"
