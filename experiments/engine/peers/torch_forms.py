"""The contenders in PyTorch (the optional extra `peers`): eager run after run, and stacked models.

Forms are as in `jax_forms`. Initial weights, and the batches of the runs that are compared, come
from JAX, so that every contender computes the same numbers, on a GPU where PyTorch sees one. On a
CPU each form takes one thread or all, whichever it finds faster.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.engine.peers.jax_forms import Records, Run, kept
from experiments.engine.peers.problems import EVERY, INSPECT_EVERY, Problem

Weights = dict[str, Any]
Batches = Callable[[int], Any]
"""batches(t) -> indices of the examples of step t, or None for all of them."""


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # as the lab does


def with_compiled(problem: Problem) -> Run:
    """As `with_eager`, the loss and its gradient by `torch.compile`."""
    return with_eager(problem, compiled=True)


def with_eager(problem: Problem, *, compiled: bool = False) -> Run:
    """Autograd and `torch.optim`, run after run; sharpness by SciPy's `eigsh`."""
    (x, y), started, drawn = examples(problem), *cached(problem)
    value_of = torch.compile(partial(loss, problem)) if compiled else partial(loss, problem)

    def drawn_at(t: int, batches: Batches) -> tuple[Any, Any]:
        index = batches(t)
        return (x, y) if index is None else (x[index], y[index])

    def solo(weights: Weights, steps: int, batches: Batches) -> dict[str, list[float]]:
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        made = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[problem.optimizer]
        optimizer = made(list(leaves.values()), lr=problem.lr)
        records: dict[str, list[float]] = {name: [] for name in kept(problem)}
        batch = drawn_at(0, batches)
        with torch.no_grad():
            value = loss(problem, leaves, *batch)
        for t in range(steps + 1):
            if problem.sharpness and t % INSPECT_EVERY == 0:
                records["sharpness"].append(sharpness(problem, leaves, x, y))
            if t % EVERY == 0:
                records["loss"].append(value.item())
            if t == steps:
                break
            batch = drawn_at(t, batches) if t else batch
            optimizer.zero_grad()
            value = value_of(leaves, *batch)
            value.backward()
            optimizer.step()
        return records

    def run(steps: int, runs: int) -> tuple[float, Records, str]:
        starts, indices = started(runs), [drawn(i) for i in range(runs)]
        begun = time.perf_counter()
        records = [
            solo({k: w[i] for k, w in starts.items()}, steps, one) for i, one in enumerate(indices)
        ]
        wait()
        seconds = time.perf_counter() - begun
        stacked = {name: np.array([r[name] for r in records]) for name in kept(problem)}
        return seconds, stacked, note()

    return faster_threads(run, runs=1)


def with_func(problem: Problem) -> Run:
    """`torch.func`: gradients of stacked models by `vmap(grad)`, one update of the stack."""
    if problem.sharpness:
        raise NotImplementedError("eigsh takes one matrix at a time")
    (x, y), started, drawn = examples(problem), *cached(problem)

    def run(steps: int, runs: int) -> tuple[float, Records, str]:
        weights = {name: w.clone() for name, w in started(runs).items()}
        made = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[problem.optimizer]
        for w in weights.values():
            w.grad = torch.zeros_like(w)
        optimizer = made(list(weights.values()), lr=problem.lr)
        shared = None if problem.batch is None else 0

        def one(w: Weights, x: Any, y: Any) -> Any:
            return loss(problem, w, x, y)

        gradient = torch.func.vmap(torch.func.grad_and_value(one), in_dims=(0, shared, shared))
        each = [drawn(i) for i in range(runs)]
        records: list[np.ndarray] = []

        def drawn_at(t: int) -> tuple[Any, Any]:
            if problem.batch is None:
                return x, y
            index = indices(problem, each, t, runs)
            return x[index], y[index]

        wait()
        begun = time.perf_counter()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # vmap batches no other kind
            batch = drawn_at(0)
            losses = torch.func.vmap(one, in_dims=(0, shared, shared))(weights, *batch)
            for t in range(steps + 1):
                if t % EVERY == 0:
                    records.append(losses.cpu().numpy())
                if t == steps:
                    break
                batch = drawn_at(t) if t else batch
                gradients, losses = gradient(weights, *batch)
                for name, g in gradients.items():
                    weights[name].grad = g
                optimizer.step()
        wait()
        seconds = time.perf_counter() - begun
        return seconds, {"loss": np.stack(records, axis=1)}, note()

    return faster_threads(run, runs=problem.runs)


def faster_threads(run: Run, *, runs: int) -> Run:
    """`run` under one thread or all of them: timed on a few steps, then fixed."""
    if DEVICE.type != "cpu":
        return run
    most = torch.get_num_threads()
    seconds = {}
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        run(EVERY, runs)
        seconds[threads] = min(run(EVERY, runs)[0] for _ in range(3))
    torch.set_num_threads(min(seconds, key=lambda n: seconds[n]))
    return run


def wait() -> None:
    """Until the device has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def note() -> str:
    """Where it ran."""
    return "on the device" if DEVICE.type == "cuda" else f"{torch.get_num_threads()} threads"


def examples(problem: Problem) -> tuple[Any, Any]:
    """The training set as tensors; classes and tokens as int64."""
    x, y = (torch.from_numpy(np.array(a)).to(DEVICE) for a in problem.examples.values())
    return x.long() if x.dtype == torch.int32 else x, y.long() if y.dtype == torch.int32 else y


def cached(problem: Problem) -> tuple[Callable[[int], Weights], Callable[[int], Batches]]:
    """Initial weights by runs, and batches by seed, each drawn once."""
    return cache(partial(initial, problem)), cache(partial(batches, problem))


def initial(problem: Problem, runs: int) -> Weights:
    """The initial weights that JAX draws, stacked over runs: {"layer_1/kernel": [run, ...]}."""
    process = problem.training

    def params(seed: Any) -> Any:
        state = process(seed=seed, **problem.examples).init()
        return (state.state if problem.sharpness else state).params

    tree = jax.jit(jax.vmap(params))(np.arange(runs))
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): torch.from_numpy(np.array(leaf)).to(
            DEVICE
        )
        for path, leaf in flat
    }


COMPARED = 50
"""Steps over which contenders are compared: so long, batches are JAX's own."""


def batches(problem: Problem, seed: int) -> Batches:
    """JAX's batches for the first four runs, as far as they are compared; then PyTorch's own."""
    if problem.batch is None:
        return lambda t: None
    count, size = len(problem.examples["x"]), problem.batch
    generator = torch.Generator(DEVICE).manual_seed(seed)
    same = jax_batches(problem, seed) if seed < 4 else None

    def drawn(t: int) -> Any:
        if same is not None and t < COMPARED:
            return same[t]
        return torch.randint(count, (size,), generator=generator, device=DEVICE)

    return drawn


def jax_batches(problem: Problem, seed: int) -> Any:
    """The indices that `lab.data.minibatch` draws in the first steps of a run."""
    from lab.data import minibatch

    count = np.arange(len(problem.examples["x"]))
    _, key, _ = jax.random.split(jax.random.key(seed), 3)
    draw = jax.vmap(lambda t: minibatch(key, t, jax.numpy.asarray(count), size=problem.batch or 1))
    return torch.from_numpy(np.array(jax.jit(draw)(np.arange(COMPARED)))).long().to(DEVICE)


def indices(problem: Problem, drawn: list[Batches], t: int, runs: int) -> Any:
    """Batches of all runs at step t: drawn at once where they need not be JAX's."""
    count, size = len(problem.examples["x"]), problem.batch or 1
    if t >= COMPARED:
        return torch.randint(count, (runs, size), device=DEVICE)
    rest = torch.randint(count, (max(0, runs - 4), size), device=DEVICE)
    return torch.cat([torch.stack([one(t) for one in drawn[:4]]), rest])


def loss(problem: Problem, weights: Weights, x: Any, y: Any) -> Any:
    """The objective, with the conventions of `lab.objectives`."""
    outputs = FORWARD[problem.kind](problem, weights, x)
    if problem.objective == "mse":
        return ((outputs - y) ** 2).sum() / (2 * len(x))
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), y.reshape(-1))


def sharpness(problem: Problem, weights: Weights, x: Any, y: Any) -> float:
    """`scipy.sparse.linalg.eigsh` on Hessian-vector products, to the accuracy the lab measures at.

    As in the code of Cohen et al. 2021; but a gradient graph is built once, not for each product.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    leaves = list(weights.values())
    gradients = torch.autograd.grad(loss(problem, weights, x, y), leaves, create_graph=True)
    gradient = torch.cat([g.reshape(-1) for g in gradients])

    def product(vector: np.ndarray) -> np.ndarray:
        v = torch.from_numpy(vector.astype(np.float32)).reshape(-1).to(DEVICE)
        parts = torch.autograd.grad(gradient, leaves, grad_outputs=v, retain_graph=True)
        return torch.cat([p.reshape(-1) for p in parts]).cpu().numpy()

    n = gradient.numel()
    operator = LinearOperator((n, n), matvec=product, dtype=np.float32)
    return float(eigsh(operator, k=1, which="LA", tol=1e-3, return_eigenvectors=False)[0])


def _layers(weights: Weights) -> Iterator[tuple[Any, Any]]:
    for i in range(1, len(weights) // 2 + 1):
        yield weights[f"layer_{i}/kernel"], weights[f"layer_{i}/bias"]


def _mlp(problem: Problem, weights: Weights, x: Any) -> Any:
    act = torch.tanh if problem.objective == "mse" else torch.relu
    for i, (kernel, bias) in enumerate(_layers(weights)):
        x = torch.addmm(bias, act(x) if i else x, kernel)
    return x


def _conv(problem: Problem, weights: Weights, x: Any) -> Any:
    image = x.reshape(-1, 1, 14, 14)
    for i in (1, 2):
        kernel = weights[f"conv_{i}/kernel"].permute(3, 2, 0, 1)
        image = F.conv2d(image, kernel, weights[f"conv_{i}/bias"], padding=1)
        image = F.avg_pool2d(torch.relu(image), 2)
    flat = image.permute(0, 2, 3, 1).reshape(len(x), -1)
    return flat @ weights["linear/kernel"] + weights["linear/bias"]


def _transformer(problem: Problem, weights: Weights, tokens: Any) -> Any:
    w: Mapping[str, Any] = weights

    def norm(x: Any, name: str) -> Any:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}/scale"], w[f"{name}/bias"], eps=1e-6)

    def dense(x: Any, name: str) -> Any:
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    x = w["tokens/embedding"][tokens] + w["positions"]
    y = norm(x, "norm_1a")
    width, heads, size = w["attention_1/q/kernel"].shape[-3:]
    q, k, v = (
        (y @ w[f"attention_1/{n}/kernel"].reshape(width, -1))
        .reshape(*y.shape[:-1], heads, size)
        .transpose(-3, -2)
        for n in "qkv"
    )
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-3, -2)
    x = x + mixed.reshape(*y.shape) @ w["attention_1/o/kernel"].reshape(-1, width)
    y = F.gelu(dense(norm(x, "norm_1b"), "hidden_1"), approximate="tanh")
    x = x + dense(y, "out_1")
    return dense(norm(x, "norm"), "logits")


FORWARD = {"mlp": _mlp, "conv": _conv, "transformer": _transformer}
