"""What people use instead of `sweep`, doing the same work, and how the two are timed side by side.

`problems` are real training problems; `jax_forms` and `torch_forms` are the contenders; `race` runs
each in a process of its own and lets them take turns.
"""
