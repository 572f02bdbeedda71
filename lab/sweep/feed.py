"""Feed: data that stay on the host, and come to the device a window of steps at a time."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab.sweep import check
from lab.sweep.layout import Layout
from lab.types import BadInput


class Feed(NamedTuple):
    """Data for each step, which a device holds for `steps` steps only.

    Each array, or pytree of them, that `batches` gives is an argument of the dynamics, as `shared`
    ones are, with a leading axis of `steps`: `step` takes `x[t % len(x)]` for its own; what
    `observe` sees in it belongs to the steps before. A segment is `steps` long.

    Attributes:
        batches: batches(first, stop) -> {name: array}, entry i of each being for step first + i;
            depends on nothing but these. It is called once a segment for each dispatch of runs.
        steps: of a window.

    >>> data = np.arange(10.0)
    >>> Feed(lambda first, stop: {"x": data[first:stop]}, steps=4).window(8, 10)
    {'x': array([8., 9., 9., 9.], dtype=float32)}
    """

    batches: Callable[[int, int], Mapping[str, Any]]
    steps: int

    def window(self, reached: int, steps: int) -> dict[str, Any]:
        """The arrays of the window that step `reached` begins or lies in; past `steps`, the last.

        Raises:
            BadInput: they are not one entry a step.
        """
        first = max(reached, 0) // self.steps * self.steps
        stop = min(first + self.steps, steps)
        given = check.mapping("feed", self.batches(first, stop), "{'x': array}")
        given = check.shared(given)
        for path, array in jax.tree_util.tree_leaves_with_path(given):
            if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
                raise BadInput(f"feed: {_name(path)!r} holds random keys; give their key_data")
        held = jax.tree.map(np.array, given)  # whose it is may write into it again
        for path, array in jax.tree_util.tree_leaves_with_path(held):
            if not array.ndim or len(array) != stop - first:
                raise BadInput(
                    f"feed: {_name(path)!r} has shape {[*array.shape]} for steps {first} to "
                    f"{stop}; give {stop - first} entries, one a step"
                )

        def filled(array: np.ndarray) -> np.ndarray:
            rest = np.repeat(array[-1:], self.steps - len(array), 0)
            return np.concatenate([array, rest]) if len(rest) else array

        return jax.tree.map(filled, held)


def checked(feed: Any, asked: Layout, steps: int) -> tuple[Feed | None, dict[str, Any], Layout]:
    """The feed, its first window, and the layout asked for, with windows for segments.

    Raises:
        BadInput: it is no `Feed`, or the layout has another segment.
    """
    if feed is None:
        return None, {}, asked
    if not isinstance(feed, Feed) or not callable(feed.batches):
        raise BadInput(f"feed: {feed!r} is no Feed; give lab.sweep.Feed(batches, steps=100)")
    feed = feed._replace(steps=check.positive_int("feed: steps", feed.steps))
    if feed.steps > steps:
        raise BadInput(f"feed: steps is {feed.steps}, more than a run's; give at most {steps}")
    if asked.segment not in (None, feed.steps):
        raise BadInput(
            f"layout: segment is {asked.segment}, and feed gives {feed.steps} steps at a time; "
            "leave the segment out"
        )
    return feed, feed.window(0, steps), asked._replace(segment=feed.steps)


def fed(
    feed: Feed | None, shared: Callable[[], dict[str, Any]], steps: int, device: jax.Device
) -> Callable[[int], dict[str, Any]]:
    """shared(reached) -> the arrays on a device, as the segment after step `reached` reads them.

    Args:
        feed: what changes with the window.
        shared: what does not, and the first window's.
        steps: of each run.
        device: where they go.
    """
    if feed is None:
        return lambda reached: shared()

    first = _shapes(feed.window(0, steps))

    def now(reached: int) -> dict[str, Any]:
        window = feed.window(reached, steps)
        for name, _ in sorted(first.items() ^ _shapes(window).items())[:1]:
            raise BadInput(
                f"feed: {name!r} is {_shapes(window).get(name)} at step {max(reached, 0)}, "
                f"where it was {first.get(name)} before; give the same at each"
            )
        return shared() | jax.device_put(window, device)

    return now


def _shapes(window: Any) -> dict[str, str]:
    """{name: dtype and shape} of its arrays."""
    held = jax.tree_util.tree_leaves_with_path(window)
    return {_name(path): f"{array.dtype}{[*array.shape]}" for path, array in held}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
