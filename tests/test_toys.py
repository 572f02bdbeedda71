"""Each experiment at toy size: it runs, claims, draws and redraws, and refuses what cannot be run.

The laws of the command line are in test_experiment.py.
"""

import importlib
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jaxtyping
import matplotlib.pyplot as plt
import pytest

from experiments.engine import throughput
from experiments.engine.peers import check, memory, problems, race, scaling, sections, turns
from lab.experiment import main

ROOT = Path(__file__).parents[1]
MODULES = {file.stem: file for file in sorted((ROOT / "experiments").glob("*/[!_]*.py"))}
INF = math.inf


class Toy(NamedTuple):
    """How an experiment is run, and what must come out even so small.

    Attributes:
        flags: of the quick preset.
        holds: {start of a claim's or control's statement: (low, high)}, of the mean over seeds.
    """

    flags: str
    holds: dict[str, tuple[float, float]]


TOYS = {
    "bounded_memory": Toy(
        "--runs 10 100 1000 --turns 3 --examples 10",
        {
            "1,000 runs stay within 0.75 GB": (0.5, 0.5),
            "jit(vmap(scan)) does not": (5.0, 5.0),
            "seconds are a + b n": (0.999, 1.001),
            "results rewritten each thousand runs": (2.0, 20.0),
        },
    ),
    "scale": Toy(
        "--runs 10 100 1000 --records 11 51 101 --blocks 4 16 64 --turns 3",
        {
            "seconds are a + b n in runs": (0.99, 1.01),
            "peak memory is a + b n in records": (0.99, 1.01),
            "disk is a + b n in blocks": (0.99, 1.01),
            "results written anew: a further one of the runs": (5.0, 20.0),
            "all versions kept (peak): a further one of the runs": (2.0, 20.0),
            "all versions kept (disk): a further one of the blocks": (3.0, 5.0),
        },
    ),
    "throughput": Toy(
        "--problems b --forms vmap --turns 3 --widths 2 --shrink 128",
        {
            "every contender computes the same losses": (0, 0.0001),
            "another seed's losses differ": (0.01, INF),
        },
    ),
    "accelerator": Toy(
        "--draws 3 --turns 3",
        {
            "objectives in float32 err": (0.1, 30),
            "curvature in float32 err": (0.1, 60),
            "inputs of TF32's ten bits err": (30, INF),
            "killed twice and resumed": (0, 0),
            "with other seeds it does not": (1, INF),
        },
    ),
    "momentum_edge": Toy(
        "--seeds 3 --steps 40 --every 20 --warmup 20 --krylov 4 --hidden 8",
        {
            "gradient descent, lr 0.5: sharpness settles": (0.8, 1.6),
            "at 0.02 of that rate": (0, 0.2),
        },
    ),
    "momentum_batches": Toy(
        "--batches 2 8 --seeds 3 --steps 40 --every 10 --warmup 20 --draws 4 --hidden 4",
        {
            "batches of 2, b = 0.9: batch sharpness has come to rest": (0.3, 3.0),
            "at 0.02 of these rates it is not": (-0.5, 2.0),
        },
    ),
    "norm_explosion": Toy(
        "--seeds 3 --depth 24 --width 96 --batch 48",
        {
            "ReLU: gradients grow by": (1.4, 1.6),
            "without norm, at He's scale": (0.85, 1.15),
            "ReLU with a skip": (2.5, 4.0),
        },
    ),
    "error_backward": Toy(
        "--seeds 3 --models convolution --widths 8 16",
        {
            "a forward difference errs by the step": (0.97, 1.03),
            "a central one by its square": (1.95, 2.05),
            "a gradient costs at most four": (1.5, 4),
            "at each layer the error sent back": (0.0, 1e-7),
            "sent back without the activation's slope": (0.1, INF),
        },
    ),
    "signal_propagation": Toy(
        "--seeds 3 --depth 14 --width 96 --pairs 4 --weights 0.8 1.76 4 --biases 0.05 0.4 "
        "--grid 1.5 3.2",
        {
            "in the plane of variances": (0.85, 1.2),
            "order: gradients shrink by chi": (0.55, 0.75),
            "at the edge, with a skip": (3.0, 6.0),
        },
    ),
    "depth_scale": Toy(
        "--seeds 3 --weights 0.5 1.0 --depths 3 6 12 24 --width 24 --steps 100 --lr 0.01",
        {
            "trainable depth grows in": (0.1, 1.5),
            "with a skip it does not": (-0.3, 0.3),
            "networks can be trained": (2.0, 9.0),
        },
    ),
    "feedback_alignment": Toy(
        "--seeds 3 --lr 0.025",
        {
            "from zero the angle between": (0.0, 2.0),
            "from zero the angle ends": (19.0, 20.0),
            "to an unrelated matrix": (75.0, 105.0),
            "from random weights B W_2": (0.0, 0.1),
            "by backpropagation it does not": (0.5, INF),
        },
    ),
    "diagonal_networks": Toy(
        "--seeds 3 --steps 2000 --rates 0.4 0.8 --examples 20 85",
        {
            "alpha = 0.3: descent ends at the solution": (0.0, 0.01),
            "alpha = 3: descent ends at the solution": (0.0, 1e-4),
            "alpha = 0.3: by the u v that is left": (1.9, 2.2),
            "by alpha itself to first": (0.9, 1.1),
            "not at that of three times the alpha": (0.03, INF),
        },
    ),
    "feedback_digits": Toy(
        "--seeds 3 --depths 1 2 --width 32 --steps 200 --every 200",
        {
            "2 hidden layers: in layer 2": (2.0, 60.0),
            "with all above 2 frozen": (-10.0, 7.5),
            "not with matrices drawn anew": (-0.1, 0.05),
        },
    ),
    "lazy_limit": Toy(
        "--seeds 3 --widths 16 32 --alphas 10 80 --width 16 --examples 6",
        {
            "the kernel's relative change falls as 1 / alpha": (-1.2, -0.8),
            "not where outputs do not start from zero": (-0.3, 0.3),
            "on fresh digits the network": (-1.2, -0.8),
        },
    ),
    "lazy_rich": Toy(
        "--seeds 3 --dimension 6 --samples 6 16 22 --width 64 --steps 400 --tests 200",
        {
            "16 examples: the lazy network's": (0.3, 2.0),
            "16 examples: features leave": (0.0, 0.7),
        },
    ),
    "double_descent": Toy(
        "--seeds 3 --features 16 32 40 48 80 --widths 90 180 270 720 --draws 20 --networks 1 "
        "--tests 100",
        {
            "16 features, 40 examples": (0.8, 1.25),
            "not as if features left out": (1.05, INF),
            "p = n: ridge takes off": (0.8, 1.25),
            "270 random features": (0.6, 1.6),
            "k = n: ridge takes off": (0.7, 1.4),
        },
    ),
    "early_stopping": Toy(
        "--seeds 3 --draws 3 --steps 100",
        {
            "p / n = 0.5: after 40 steps": (0.8, 1.25),
            "p / n = 0.9: after 100 steps": (0.75, 1.35),
            "p / n = 0.9: stopped after": (1.0, 1.08),
            "not if stopped at a third": (1.05, INF),
        },
    ),
    "max_margin": Toy(
        "--seeds 3 --steps 3000 --records 6",
        {
            "after 3,000 steps the loss is": (0.8, 1.05),
            "not yet where other points": (0.6, 0.95),
            "after 3,000 steps w is": (0.0, 0.1),
            "it is not ŵ log t": (0.8, 1.2),
        },
    ),
    "curve_of_width": Toy(
        "--seeds 3 --widths 8 64 --examples 16 --population 100 --steps 60",
        {
            "true labels: a network 64 wide": (0.8, 1.3),
            "not one 8 wide": (1.0, 1.8),
            "how far weights move": (-0.65, -0.3),
        },
    ),
    "learning_curves": Toy(
        "--seeds 3 --samples 16 32 --population 100 --draws 2",
        {
            "true labels, ridge 1: the test": (0.85, 1.2),
            "by the theory of shuffled": (0.2, 0.85),
            "shuffled labels, ridge 0": (0.9, 1.1),
        },
    ),
    "grokking_linear": Toy(
        "--seeds 3 --inputs 60 --tests 200 --steps 400",
        {
            "0.5 inputs an example: fresh inputs are": (0.5, 2.0),
            "1.5 inputs an example: so many": (0.08, 0.2),
        },
    ),
    "memorised_last": Toy(
        "--seeds 3 --examples 250 --width 32 --steps 60 --lr 0.01",
        {
            "80% of right labels fitted: of the wrong": (0.0, 0.3),
            "all random: no half": (0.6, 0.95),
            "all random: nothing": (0.0, 0.25),
        },
    ),
    "signal_first": Toy(
        "--seeds 3 --inputs 60 --draws 8",
        {
            "0.5 inputs an example, wrong labels": (0.9, 1.1),
            "it is not that of right labels": (1.25, 20.0),
            "0.5 inputs an example: outputs": (0.25, 0.45),
            "at 2 they hardly do": (0.7, 1.1),
        },
    ),
    "time_to_fit": Toy(
        "--seeds 3 --width 64 --examples 20 --steps 60",
        {
            "true labels are fitted": (0.6, 1.6),
            "by the theory of true labels not": (1.5, 12.0),
            "true labels: when fitted": (0.7, 1.4),
        },
    ),
    "width_transfer": Toy(
        "--seeds 3 --widths 8 64 --octaves -8 -5 --steps 6",
        {
            "muP: layer 2 moves alike": (-0.2, 0.2),
            "standard: the wider the further": (0.05, 1.0),
            "standard: as the width": (0.7, 1.2),
        },
    ),
    "grokking_modular": Toy(
        "--seeds 3 --modulus 7 --width 32 --steps 400 --every 50",
        {
            "neurons become waves": (0.3, 1.0),
            "without decay they do not": (0.2, 0.6),
        },
    ),
    "spectral_bias": Toy(
        "--seeds 3 --width 64 --steps 600",
        {
            "frequency 2, no biases": (0.5, 2.0),
            "frequency 3, no biases": (0.99, 1.01),
            "with biases it is": (0.0, 0.3),
        },
    ),
    "neural_collapse": Toy(
        "--seeds 3 --free-steps 1500 --steps 200 --every 50 --examples 50",
        {
            "free features, c = 0.6": (0.39, 0.41),
            "free features, c = 0.04: variance": (0.9, 1.3),
        },
    ),
    "linear_modes": Toy(
        "--seeds 3 --steps 2000 --every 20 --depths 1 2 --scales 0.3 0.4 --small 0.1",
        {
            "depth 2, balanced: modes are learned when": (0, 0.005),
            "depth 2: not as from u_0 = scale^depth": (0.03, INF),
        },
    ),
    "linear_momentum": Toy(
        "--steps 6000 --every 5 --momenta 0 0.9",
        {
            "the plateau's growth is the larger root": (0, 0.005),
            "not the flow with its time rescaled": (0.1, 1.0),
        },
    ),
    "sgd_recursion": Toy(
        "--inputs 8 --seeds 3 --runs 4 --steps 16",
        {
            "1.5 of the critical rate: the mean grows": (0.7, 1.4),
            "batch 16: not that without fourth moments": (1.1, 2.0),
        },
    ),
    "batch_doubling": Toy(
        "--sizes 32 64 --seeds 3 --runs 4 --steps 30",
        {
            "at every batch size the steps are": (0.95, 1.05),
            "not those of the recursion without": (1.1, 1.7),
        },
    ),
    "central_flow": Toy(
        "--seeds 3 --steps 40 --warm-steps 20 --examples 20 --hidden 4",
        {
            "its mean loss is L + tr X / lr": (0.7, 1.1),
            "lr 0.05, below the edge: both flows are alike": (0.5, 2),
        },
    ),
    "central_flow_several": Toy(
        "--seeds 3 --steps 20 --warm-steps 20 --examples 20 --hidden 4 --directions 2",
        {
            "the mean loss is L + tr X / lr": (0.9, 1.1),
            "lr 0.05: they are not": (0, 0),
        },
    ),
    "token_selection": Toy(
        "--seeds 3 --steps 40 --every 20 --tokens 3 --dimension 12",
        {
            "the query's direction goes": (0.95, 1.001),
            "with flipped labels it goes elsewhere": (-1.0, 0.9),
        },
    ),
    "catapult_linear": Toy(
        ("--seeds 3 --steps 40 --widths 8 --ms 1.5 1.99 2.01 3.0 3.99 4.01"),
        {
            "two linear layers follow the recursion": (0, 1e-09),
            "not with a frozen kernel": (0.1, INF),
            "linearised it is not": (1.7, 2.1),
        },
    ),
    "catapult_activations": Toy(
        "--seeds 3 --steps 60 --hidden 8 --examples 10",
        {
            "linearised: it is not": (1.9, 2.1),
            "two hidden tanh layers": (2.1, 7.0),
        },
    ),
    "linear_step": Toy(
        "--contexts 10 20 --seeds 3 --steps 40 --every 20 --batch 16 --path-steps 40",
        {
            "isotropic, N = 10: the layer attains": (1, 2.4),
            "isotropic, N = 10: its step is A*": (0, 0.9),
            "labels of another task in the context: it is far": (1.5, 4),
        },
    ),
    "linear_step_saddle": Toy(
        "--seeds 3 --steps 400 --early 100 --late 100 --every 100 --first-seed 3",
        {
            "from Zhang's start fewer are": (0, 0),
            "gradient descent has not": (0, 1),
        },
    ),
    "softmax_heads": Toy(
        "--contexts 10 --seeds 3 --steps 20 --batch 16 --held-out 64",
        {"N = 10: two softmax heads": (9.0, 15.0), "one head pays more": (9.0, 15.0)},
    ),
    "norm_at_init": Toy(
        "--depth 16 --width 8 --count 2 --seeds 3",
        {
            "without norm it grows as the root of 3": (0.35, 0.65),
            "with pre-norm it does not grow": (-0.1, 0.1),
        },
    ),
    "norm_rates": Toy(
        "--seeds 3 --layers 1 2 --width 8 --lrs 0.003 0.03 10 --warmup 20 --steps 60 --every 20 "
        "--batch 10 --examples 10",
        {"2 blocks: warm-up raises": (-6.0, 6.0), "1 block: it does not": (-6.0, 6.0)},
    ),
    "trainable_depth": Toy(
        "--parts MLPs --layers 1 2 --tokens 3 --width 4 --lrs 0.01 --seeds 3 --steps 40 --every 20",
        {
            "MLPs, no skip": (0.5, 3.0),
            "with a skip all do": (2.0, 3.0),
        },
    ),
    "induction_heads": Toy(
        "--seeds 3 --steps 40 --every 20 --batch 4 --held-out 8",
        {
            "one layer does not": (3.3, 3.7),
            "two layers foretell": (3.3, 3.6),
            "of no more tokens than the period: it": (0.0, 0.3),
        },
    ),
    "masked_tokens": Toy(
        "--seeds 3 --steps 40 --every 20 --layers 1 --length 6 --batch 4 --held 8",
        {
            "a network that sees nothing": (0.05, 1.0),
            "one that sees both sides": (0.05, 1.5),
        },
    ),
    "masked_pixels": Toy(
        "--seeds 3 --steps 40 --digits 50 --keeps 0.25 0.5 0.75",
        {
            "q = 0.5: it explains pixels": (0.3, 0.7),
            "trained on pixels all visible": (0.02, INF),
        },
    ),
    "contrastive": Toy(
        "--seeds 3 --steps 20 --every 20 --temperatures 0.05 0.2 2 --batch 8 --held 32 "
        "--examples 50",
        {
            "views are farther apart at 0.2": (0.3, 1.6),
            "from 10 to 20, far above": (-0.2, 1.1),
        },
    ),
    "projector": Toy(
        "--seeds 3 --steps 20 --batch 8 --labels 20 --tested 50 --examples 50",
        {
            "under usual views the encoder": (0.8, 1.5),
            "not where there are no views": (-0.3, 0.3),
        },
    ),
    "label_efficiency": Toy(
        "--seeds 3 --steps 20 --every 20 --supervised-steps 20 --labels 1 --temperatures 0.2 "
        "--lrs 0.001 --examples 100 --validation 50 --tested 100 --batch 8 --penalties 0.1",
        {
            "1 a class: they beat supervision": (0.0, 0.4),
            "1 a class: pretraining and a probe beat": (-0.2, 0.2),
        },
    ),
    "markov_chains": Toy(
        "--length 8 --seeds 3 --steps 40 --every 20 --batch 4 --held-out 8",
        {
            "two layers close more than half": (-3.0, 0.5),
            "one layer closes none": (-3.0, 0.5),
        },
    ),
    "byol_theory": Toy(
        "--seeds 3 --steps 300 --every 1 --dimension 2 --shares 0.75 1.25 --starts 0.5 1.5",
        {
            "F - P'P decays at twice": (0.9, 1.1),
            "BYOL without predictor dies": (0, 0.9),
            "with the gradient through both sides at another": (1.3, 2.5),
        },
    ),
    "simsiam_collapse": Toy(
        "--seeds 3 --steps 40 --every 20 --examples 50 --views 2 --batch 8 --hidden 8 --features 4",
        {
            "SimSiam: outputs stay": (0.3, 1.1),
            "effective rank does not see": (0.2, 1.5),
        },
    ),
    "vicreg_ablation": Toy(
        "--seeds 3 --steps 40 --every 20 --examples 50 --views 2 --batch 8 --hidden 8 --features 4",
        {
            "without invariance term two views": (0.8, 4.0),
            "without variance term": (0.05, 0.9),
        },
    ),
    "barlow_modes": Toy(
        "--seeds 3 --steps 40 --every 20 --outputs 3 --gammas 1.0 0.5 0.25",
        {"not from a large start": (0.2, 3.0)},
    ),
    "barlow_kernel": Toy(
        "--seeds 3 --outputs 2 --widths 8 16 --pairs 6 --steps 400 --every 2",
        {"width 16: rates are 8 g": (0.02, 2.0)},
    ),
    "barlow_practice": Toy(
        "--seeds 3 --steps 20 --every 5 --outputs 3 --hidden 8 --batch 16",
        {"last layer of 0.001: one mode rises": (0.0, 0.1)},
    ),
    "rank_collapse": Toy(
        "--sizes 0.001 0.01 0.5 --tokens 3 --width 4 --depth 3 --seeds 3",
        {
            "a layer cubes": (2.99, 3.01),
            "attention that does not look": (0.99, 1.01),
            "with a skip the exponent is 1": (0.99, 1.01),
            "the gradient of keys": (1.99, 2.01),
        },
    ),
    "edge_of_stability": Toy(
        (
            "--lrs 0.05 1.0 --seeds 3 --steps 40 --every 20 --inspect-every 20 --examples 50 "
            "--pool 4 --hidden 8 --krylov 4"
        ),
        {
            "lr 1: sharpness goes to": (0.9, 1.3),
            "lr 0.05, 2 / lr not reached": (0.01, 0.2),
        },
    ),
}


@pytest.fixture(autouse=True)
def as_a_user(monkeypatch):
    """Shapes and types unchecked, as from a shell; afterwards float32, as in every other test."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    yield
    jax.config.update("jax_enable_x64", False)
    plt.close("all")


def module(name: str) -> str:
    return ".".join(MODULES[name].relative_to(ROOT).with_suffix("").parts)


def command(name: str, flags: str) -> int:
    """Give the experiment a command in this process; its status."""
    importlib.import_module(module(name))
    with pytest.raises(SystemExit) as end:
        main(module(name), flags.split())
    return int(end.value.code or 0)


def both(report: dict) -> list[dict]:
    """Claims and their controls."""
    return [one for claim in report["claims"] for one in (claim, claim["control"])]


def stored(store: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for f in store.rglob("*") if f.is_file()}


class Here:
    """A contender in this process: a process for each would spend its time in starting."""

    def __init__(self, form, problem, **settings):
        self.turned = race._made(form, problem, settings)

    def turn(self, steps, runs):
        seconds, records, note = self.turned(min(steps, 50), runs)
        return race.Turn(seconds, {k: a[:4].tolist() for k, a in records.items()}, note)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class Within:
    """A section in this process; that of a store without the kills, none in PyTorch."""

    def __init__(self, name, file, *, memory, **settings):
        self.found = [{"note": f"{name} is not of this process"}]
        if name in ("accuracy", "rates"):
            self.found = [*sections.SECTIONS[name](lambda: 60.0, **settings)]
        if name == "resumed":
            self.found = [{"killed": 0, "differs": 0, "control": 9}]

    def go(self, seconds):
        pass

    def ended(self, until):
        pass

    def rows(self):
        return [*self.found, {"done": True}]


def supposed(form: str, runs: int, examples: int) -> memory.Cost:
    """What a sweep would cost, had it a second of compilation."""
    return memory.Cost(1 + runs / 100, 5e6 * runs if form == "vmap" else 5e8, runs**2 / 1e4)


def supposed_scale(line: str, number: int, chunk: int, examples: int, runs: int) -> scaling.Cost:
    """What it would cost, with a second and 100 kB to start; no two turns alike."""
    noise = 1 + 1e-4 * random.Random(f"{line} {number} {time.perf_counter_ns()}").random()
    square = number**2 / chunk
    return scaling.Cost(
        noise + number / 10,
        1e5 + 1e4 * number * noise,
        1e5 + 80 * number,
        noise * square / 1e3,
        1e3 * square,
    )


def test_every_experiment_has_a_toy():
    assert TOYS.keys() == MODULES.keys() and all(toy.holds for toy in TOYS.values())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in TOYS]
)
def test_a_toy_keeps_what_it_claims_and_redraws_it(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags, holds = TOYS[name]
    experiment = importlib.import_module(module(name))
    if name == "throughput":
        monkeypatch.setattr(turns, "Contender", Here)
    if name == "accelerator":
        monkeypatch.setattr(check, "Section", Within)
    if name == "scale":
        monkeypatch.setattr(experiment, "cost", supposed_scale)
    if name == "bounded_memory":
        monkeypatch.setattr(experiment, "cost", supposed)
    assert command(name, flags) in (0, 1)
    out, err = capsys.readouterr()
    results, store = Path("runs", name, "quick"), Path("runs", name, "quick", "store")
    assert err == "" and out.splitlines()[-1] == str(results / f"{name}.png")
    assert (results / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert not Path("figures").exists()
    report = json.loads((results / f"{name}.json").read_text())
    assert report["x64"] is getattr(experiment, "x64", False)
    found: dict[str, list[float]] = {}
    for one in both(report):
        single = "--seeds" not in flags or one["vary"] == "nothing"
        assert len(one["values"]) == 3 or single or one["reason"]
        assert one["tolerance"] and one["why"] and one["source"]
        assert one["verdict"] in ("pass", "fail", "inconclusive")
        found.setdefault(one["statement"], []).append(float(one["measured"]))
    for start, (low, high) in holds.items():
        of_it = [v for said, values in found.items() if said.startswith(start) for v in values]
        assert of_it and all(low <= value <= high for value in of_it), (start, of_it)

    before = stored(store)
    monkeypatch.setattr(experiment, "run", lambda *_: pytest.fail("computed again"))
    command(name, f"{flags} --plot")
    again, err = capsys.readouterr()
    assert (again, err) == (out, "") and stored(store) == before


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("bounded_memory", "--runs 4 8 16 --turns 1 --examples 10"),
        ("throughput", "--problems b --forms vmap --turns 3 --widths 1 2 --shrink 128"),
        (
            "scale",
            "--runs 4 8 16 --records 2 3 5 --blocks 2 3 4 --of-runs 4 --turns 1 --examples 5",
        ),
    ],
)
def test_what_is_timed_has_a_process_of_its_own(name, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(name, flags) in (0, 1)
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[-1] == f"runs/{name}/quick/{name}.png"


@pytest.mark.xdist_group("processes")
def test_a_process_as_a_user_starts_it_does_as_its_command_given_here(tmp_path):
    name = "edge_of_stability"
    flags, holds = TOYS[name]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "experiments", name, *flags.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1) and done.stderr == ""
    results = Path("runs", name, "quick")
    assert done.stdout.splitlines()[-1] == str(results / f"{name}.png")
    report = json.loads((tmp_path / results / f"{name}.json").read_text())
    for start, (low, high) in holds.items():
        measured = {one["statement"]: one["measured"] for one in both(report)}
        (value, *_) = (v for said, v in measured.items() if said.startswith(start))
        assert low <= value <= high


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("softmax_heads --contexts 5", "contexts: (5,); 10 should be among them"),
        ("linear_step_saddle --every 7", "every: 7; give a multiple of 10"),
        ("linear_step_saddle --late 1500", "late: 1500; give a multiple of 1000, 200000 at most"),
        (
            "linear_step --contexts 10",
            "contexts: (10,); 10 and 20 should be among them",
        ),
        (
            "induction_heads --vocabulary 16",
            "vocabulary: 16 tokens; give 32 or more, twice the greatest period",
        ),
        (
            "markov_chains --states 1",
            "states: 1; give 2 or more, or there is nothing to foretell",
        ),
        (
            "momentum_batches --batches 8 2",
            "batches: (8, 2); give two or more of [2, 8, 32, 128, 512], ascending",
        ),
        ("sgd_recursion --steps 4", "steps: 4; give 8 or more"),
        ("batch_doubling --sizes 2 3", "sizes: (2, 3); give two or more, each twice the last"),
        (
            "catapult_linear --ms 1.5 3.0",
            "ms: (1.5, 3.0); give them ascending, with [1.5, 1.99, 2.01, 3.0, 3.99, 4.01]",
        ),
        ("catapult_activations --examples 1", "examples: 1; give two or more"),
        ("edge_of_stability --lrs 1.0 0.5", "lrs: (1.0, 0.5); give two or more, ascending"),
        ("linear_modes --depths 2 3", "depths: (2, 3); give two or more, ascending from 1"),
        (
            "linear_momentum --momenta 0.5 1.0",
            "momenta: (0.5, 1.0); give them ascending from 0, below 1",
        ),
        ("linear_momentum --seeds 2", "seeds: 2; give 1, they all make the same"),
        ("central_flow --lrs 0.3 0.05", "lrs: (0.3, 0.05); give two, ascending"),
        ("central_flow_several --lrs 0.5", "lrs: (0.5,); give two, ascending"),
        ("byol_theory --shares 0.5 1.5", "shares: (0.5, 1.5); 0.75 should be among them"),
        ("byol_theory --starts 1.1 0.9", "starts: (1.1, 0.9); give them ascending"),
        ("byol_theory --dimension 3", "dimension: 3; give an even number, 2 or more"),
        ("simsiam_collapse --views 1", "views: 1; give 2 or more"),
        ("vicreg_ablation --views 1", "views: 1; give 2 or more"),
        ("barlow_modes --outputs 9", "outputs: 9; give 3 to 7, one a gamma"),
        ("barlow_modes --scales 0.3 0.1", "scales: (0.3, 0.1); give two, ascending"),
        ("barlow_kernel --widths 8", "widths: (8,); give two or more, ascending"),
        ("barlow_practice --scales 0.1 0.2", "scales: (0.1, 0.2); give four, ascending"),
        (
            "masked_tokens --states 1",
            "states: 1, hidden: 0.2; give 2 or more, and a share within (0, 1)",
        ),
        (
            "masked_pixels --keeps 0.25 0.5",
            "keeps: (0.25, 0.5); give them ascending within (0, 1), with [0.25, 0.5, 0.75]",
        ),
        (
            "contrastive --temperatures 0.5 0.1",
            "temperatures: (0.5, 0.1); give them ascending, with [0.05, 0.2, 2.0]",
        ),
        ("label_efficiency --labels 5 1", "labels: (5, 1); give one number or more, ascending"),
        ("label_efficiency --labels 400", "labels: (400,); give 1 to 300 a class"),
        ("label_efficiency --tested 15", "tested: 15; give a multiple of 10"),
        ("rank_collapse --sizes 0.1 0.2", "sizes: (0.1, 0.2); give three or more, ascending"),
        ("norm_at_init --depth 9", "depth: 9; give 16 blocks or more"),
        ("signal_propagation --depth 9", "depth: 9; give 13 layers or more"),
        (
            "signal_propagation --weights 0.5 0.6 0.7",
            "weights: (0.5, 0.6, 0.7); give 3 or more, from order to chaos",
        ),
        ("error_backward --widths 20", "widths: (20,); give multiples of 8"),
        ("error_backward --decades -8 -1", "decades: (-8, -1); give -11 or less to -2 or more"),
        ("feedback_alignment --lr 0.3", "lr: 0.3; give one over a whole number, 1/20 at most"),
        ("diagonal_networks --rates 0.2", "rates: (0.2,); give two or more, ascending, above 0"),
        (
            "diagonal_networks --examples 40 120",
            "examples: (40, 120); give two or more, ascending from 1 to 100",
        ),
        (
            "feedback_digits --depths 1 4",
            "depths: (1, 4); give two or more, ascending, 2 among them",
        ),
        ("signal_propagation --biases 0.1", "biases: (0.1,); give two or more above 0, ascending"),
        ("depth_scale --depths 9 3", "depths: (9, 3); give two or more above 0, ascending"),
        (
            "depth_scale --weights 0.5 4",
            "weights: (0.5, 4.0); give some of order, up to 1.6",
        ),
        ("grokking_modular --modulus 8", "modulus: 8; give an odd one, at least 5"),
        ("spectral_bias --steps 99", "steps: 99; give at least 585"),
        ("neural_collapse --decay 0", "decay: 0.0; give one above 0: none is the control"),
        ("lazy_limit --widths 64", "widths: (64,); give two or more above 0, ascending"),
        ("lazy_limit --alphas 9 3", "alphas: (9.0, 3.0); give two or more above 0, ascending"),
        ("lazy_rich --samples 9 3 4", "samples: (9, 3, 4); give three or more, ascending"),
        ("lazy_rich --width 9", "width: 9; give an even one: units come in pairs"),
        ("lazy_rich --dimension 2", "dimension: 2; give at least 3: two matter"),
        ("curve_of_width --widths 64", "widths: (64,); give two or more above 0, ascending"),
        ("curve_of_width --population 99", "population: 99; give 129 to 4000"),
        ("learning_curves --samples 9 3", "samples: (9, 3); give two or more above 0, ascending"),
        ("learning_curves --population 200", "population: 200; give 257 to 4000"),
        (
            "grokking_linear --ratios 0.3 0.5",
            "ratios: (0.3, 0.5); give three or more above 0, ascending",
        ),
        (
            "grokking_linear --ratios 0.3 0.5 0.8",
            "ratios: (0.3, 0.5, 0.8); give the last above 1, the others below",
        ),
        ("memorised_last --share 0.95", "share: 0.95; give one within (0, 0.9)"),
        ("memorised_last --examples 4001", "examples: 4001; give 10 to 4000"),
        ("signal_first --ratios 2 0.5", "ratios: (2.0, 0.5); give two or more above 0, ascending"),
        ("signal_first --share 1", "share: 1.0; give one within (0, 1)"),
        ("signal_first --lr 0.5", "lr: 0.5; give one between 0 and 0.3431"),
        ("time_to_fit --examples 900", "examples: 900; give 2 to 500, half of the 1,000"),
        ("width_transfer --widths 64", "widths: (64,); give two or more, ascending"),
        ("width_transfer --octaves -5 -9", "octaves: (-5, -9); give two, ascending by 2 or more"),
        (
            "double_descent --features 16 32 48 80",
            "features: (16, 32, 48, 80); give 1 to 400, ascending, with [16, 32, 40, 48, 80]",
        ),
        (
            "double_descent --widths 90 720 270 180",
            "widths: (90, 720, 270, 180); give 1 to 10,000, ascending, with [90, 180, 270, 720]",
        ),
        ("early_stopping --ratios 0.9 0.5", "ratios: (0.9, 0.5); give two or more, ascending"),
        ("early_stopping --ratios 0.1 0.5", "ratios: (0.1, 0.5); give them from 0.2 to 5"),
        (
            "early_stopping --steps 50",
            "steps: 50; give 100 or more: it is best after up to 50",
        ),
        ("max_margin --steps 500", "steps: 500; give 1,000 or more"),
        ("max_margin --records 3", "records: 3; give 4 or more"),
        ("norm_explosion --depth 9", "depth: 9; give 16 layers or more"),
        ("norm_explosion --few 3", "few, batch: 3, 128; give 4 examples or more"),
        (
            "norm_rates --lrs 0.1 0.01 1",
            "lrs: (0.1, 0.01, 1.0); give three or more, ascending",
        ),
        ("trainable_depth --layers 1 3", "layers: (1, 3); give 1, 2, and on without a gap"),
        (
            "trainable_depth --parts skips",
            "parts: ('skips',); give some of attention alone, norm, MLPs",
        ),
        ("trainable_depth --tokens 1", "tokens: 1; give two or more"),
        ("throughput --problems bz", "problems: 'z' is not one of a, b, c, d, e, f"),
        ("throughput --forms pmap", "forms: 'pmap' is not one of eager, func, loop, scan, vmap"),
        ("throughput --problems=", "problems: none given; give some of a, b, c, d, e, f"),
        ("masked_pixels --digits 1000000", "digits: 1000000; give 2 to 5000"),
        (
            "masked_tokens --hidden 1.5",
            "states: 8, hidden: 1.5; give 2 or more, and a share within (0, 1)",
        ),
        ("byol_theory --noise -1", "noise: -1.0 is negative; give a variance"),
        ("projector --labels 0", "labels: 0; give 10 or more"),
        ("barlow_kernel --pairs 2000", "pairs: 2000; give 5 to 1000"),
        ("barlow_modes --gammas 1 0.5 -0.1", "outputs: 5; give 3 to 3, one a gamma"),
        (
            "scale --blocks 8 4 2",
            "blocks: (8, 4, 2); give three numbers or more, ascending from 2",
        ),
        ("scale --records 2 3 8", "records: 8; give one more than a divisor of 200"),
        ("throughput --turns 0", "turns: 0 is not a positive int"),
        ("bounded_memory --turns 0", "turns: 0 is not a positive int"),
        (
            "bounded_memory --runs 8 4 2",
            "runs: (8, 4, 2); give three sizes or more, each larger than the last",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_starts(
    arguments, said, tmp_path, monkeypatch, capsys
):
    """And before its claims are printed: there is no such config."""
    monkeypatch.chdir(tmp_path)
    name, _, flags = arguments.partition(" ")
    for how in (flags, f"{flags} --claims"):
        assert command(name, how) == 2
        assert capsys.readouterr() == ("", f"error: {said}\n")


def test_throughput_knows_the_letters_of_the_reference_sweeps():
    assert [*throughput.LETTERS] == [*problems.problems()]


def test_races_of_another_kind_are_not_taken_for_these(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "runs" / "throughput" / "quick" / "store"
    store.mkdir(parents=True)
    (store / "a.json").write_text('{"config": {"turns": 9}}')
    assert command("throughput", "") == 2
    said = capsys.readouterr().err
    assert "a.json is a race of another config" in said and "--fresh" in said
