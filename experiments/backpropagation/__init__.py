"""How the error travels back through a network, and what depth, width and scale do to it.

What is asked: whether the gradient that reaches the first layers is of use, and what of a network's
design decides it. Found so far: a gradient is the slope that differences approach, at the price of
three losses (`error_backward`); mean-field theory predicts, to a percent and without a free
parameter, by how much a layer of a random network multiplies squared gradients, from order through
the edge to chaos, and how alike it makes two inputs (`signal_propagation`); order can be trained to
some six times the depth that inputs stay apart, whatever it is (`depth_scale`). Batch norm
multiplies them by a constant, pi / (pi - 1) for ReLU, whatever the scale; a skip turns either
exponential into less (`norm_explosion`).

The transpose of the forward weights is not needed: where a fixed random matrix stands in its place,
forward weights turn towards it while they learn. Of two linear layers that start from zero the
angle follows a closed form, which ends above 0; on digits each hidden layer's update turns to the
gradient by some 40 degrees, unless the layers above are frozen. It wears off with depth: at 8
hidden layers alignment is 4% worse than at one, and its angles stay near 77 degrees in the middle.

How far features move decides what is learned. In the NTK parametrisation the tangent kernel moves
as 1 / (width x scale of the outputs), and the network comes to its linearised training as fast, if
its outputs start from zero (`lazy_limit`). There the kernel's spectrum says, without a free
parameter, when true and random labels are fitted (`time_to_fit`) and how well n examples are
learned; a network whose features move needs a third of them to learn a product (`lazy_rich`).

Of many solutions the start chooses. Squared weights of scale alpha end at the solution of an
explicit potential, the sparse one from a small start, the short one from a large one
(`diagonal_networks`), to a thousandth. What a finite rate adds is of first order in it, and is what
the steps take off u v, which the flow keeps: with that the prediction is right to second order.

What a width asks of the learning rate: Adam's steps agree with a layer's inputs, so that in the
standard form its n weights move a unit by n, and the best rate falls as 1 / n. In maximal-update
parametrisation, with rates by layer, the rate that is best at 64 units serves 1,024 at a price of
2% of the loss at most, where in the standard form it costs 65% (`width_transfer`).

Open: why the angle of deep networks is largest in the middle; at which width outputs move as
theory's limit says.
"""
