"""What can be measured on a network, its gradients, its activations: pure functions of arrays."""
