"""Gradient descent: where it goes, how fast, and what holds it at the edge of stability.

The question. A quadratic of curvature h wants a rate below 2 / h, and a network's curvature moves
with its weights. What does descent do to the curvature that it meets, and can its path, its times
and its loss be foretold?

Found, each held against a closed form or a published value:

- Sharpness goes to 2 / lr and stays, from below or from above (`edge_of_stability`); momentum and
  Adam have edges of their own, where the method would diverge on a quadratic (`momentum_edge`).
- At the edge the mean path, the swing and the mean loss are those of the central flow, which has no
  free parameter (`central_flow`), with several eigenvalues there too (`central_flow_several`).
- Started above 2 / sharpness, two linear layers are thrown to where it is flatter, up to exactly
  twice that rate (`catapult_linear`); other activations up to limits of their own
  (`catapult_activations`).
- Deep linear networks learn mode by mode at set times (`linear_modes`); momentum shortens the
  plateaus by a root, not by 1 - b (`linear_momentum`).
- On linear regression the mean of SGD obeys a recursion with the inputs' fourth moments
  (`sgd_recursion`), which also says from which batch size doubling no longer halves the steps
  (`batch_doubling`).

Open. On the smallest batches the level of batch sharpness is not 1 / lr, with momentum or without,
though a quadratic with curvatures drawn anew foretells it and larger batches follow
(`momentum_batches`): is the network's curvature along noise another, or is it time? How many
eigenvalues come to the edge together? What sets the limits of ReLU and tanh, which depend on width?
The central flow misses the swing of heavy ball and RMSProp (told in `central_flow`).

`python -m experiments` lists the verdicts.
"""
