"""The command line of an experiment, at toy size, as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(file.stem for file in (ROOT / "experiments").glob("[!_]*.py"))
TOYS = {
    "bounded_memory": "--runs 4 8 16 --turns 1 --examples 10",
    "throughput": "--problems b --forms vmap --turns 3 --widths 1 2 --shrink 128",
    "momentum_edge": (
        "--seeds 3 --steps 40 --every 20 --warmup 20 --batch-steps 60 --batch-every 20 --krylov 4 "
        "--draws 4 --hidden 8 --batches 2 40 --batch-lrs 0.01 0.5 --plain-lrs 0.1 0.5"
    ),
    "linear_networks": (
        "--seeds 3 --steps 80 --every 20 --scales 0.3 0.4 --small 0.1 --momenta 0 0.9"
    ),
    "sgd_noise": (
        "--seeds 3 --runs 4 --steps 40 --every 20 --batches 1 --fractions 0.5 --beyond 0.5 1.5 "
        "--sizes 1 2"
    ),
    "central_flow": (
        "--seeds 3 --steps 40 --every 20 --warm-steps 20 --examples 20 --hidden 4 --directions 2 "
        "--several-steps 40 --picture-steps 20"
    ),
    "token_selection": "--seeds 3 --steps 40 --every 20 --tokens 3 --dimension 12",
    "catapult": (
        "--seeds 3 --steps 40 --every 20 --curved-steps 40 --widths 8 --ms 1.0 3.0 4.5 "
        "--curved 1.0 3.0 --straight 1.0 3.0 --layers 1 --hidden 8 --examples 10"
    ),
    "in_context_regression": (
        "--contexts 10 20 --seeds 3 --steps 40 --every 20 --softmax-steps 20 --batch 16 "
        "--held-out 64 --path-steps 40 --inits 3 --init-steps 100"
    ),
    "layer_norm_placement": (
        "--depth 16 --width 8 --count 2 --draws 3 --seeds 3 --layers 1 2 --train-width 8 "
        "--lrs 0.001 0.1 10 --warmup 20 --steps 40 --every 20 --batch 8 --examples 20"
    ),
    "trainable_depth": (
        "--layers 1 2 --tokens 3 --width 4 --lrs 0.01 --seeds 3 --steps 40 --every 20"
    ),
    "induction_heads": "--seeds 3 --steps 40 --every 20 --batch 4 --held-out 8",
    "masked_prediction": (
        "--seeds 3 --steps 40 --every 20 --length 6 --batch 4 --held 8 --pixel-steps 20 --digits 50"
    ),
    "contrastive": (
        "--seeds 3 --steps 40 --every 20 --inspect-every 40 --temperatures 0.2 2 --batch 8 "
        "--labels 20 --examples 50"
    ),
    "label_efficiency": (
        "--seeds 3 --steps 40 --every 20 --supervised-steps 20 --labels 1 --temperatures 0.2 "
        "--lrs 0.001 --examples 100 --tested 100 --batch 8 --penalties 0.1"
    ),
    "markov_chains": "--length 8 --seeds 3 --steps 40 --every 20 --batch 4 --held-out 8",
    "collapse": (
        "--seeds 3 --steps 40 --every 20 --linear-steps 60 --dimension 2 --examples 100 --batch 8 "
        "--hidden 8 --features 4"
    ),
    "stepwise_barlow": (
        "--seeds 3 --steps 40 --every 20 --outputs 3 --widths 8 16 --pairs 6 --kernel-steps 20 "
        "--practical-steps 20"
    ),
    "rank_collapse": "--sizes 0.001 0.01 0.5 --tokens 3 --width 4 --depth 3 --seeds 3",
    "edge_of_stability": (
        "--lrs 0.05 1.0 --seeds 3 --steps 40 --every 20 --inspect-every 20 "
        "--examples 50 --pool 4 --hidden 8 --krylov 4"
    ),
}


def sweeps(name: str) -> bool:
    """Whether the experiment runs a sweep of its own, rather than timing those of others."""
    return "--steps" in TOYS[name]


def command(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", f"experiments.{name}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


class Done(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str
    files: dict[str, int]


BAD = {
    "papre": "preset: 'papre' is not one of quick, paper",
    "quick --plot": "--plot: ",  # the toy was run, not the preset itself
    "paper --resume": "--resume: ",
    "paper --plot": "--plot: no finished run",
    "--fresh --plot": "--fresh: ",
}


def commands(name: str) -> dict[str, str]:
    """The toy, redrawn, and what must be refused, in this order."""
    toy = TOYS[name]
    refused = {f"bad: {bad}": bad for bad in BAD}
    if sweeps(name):
        refused |= {"field": f"{toy} --steps -5 --fresh", "config": f"{toy} --every 10"}
    return {"toy": toy, "plot": f"{toy} --plot"} | refused


@pytest.fixture(scope="module", params=EXPERIMENTS)
def finished(request, tmp_path_factory):
    """A folder in which the commands were given, the experiment's name, what each left."""
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    given = commands(name)
    listed = json.dumps([each.split() for each in given.values()])
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.commands", name, listed],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    left = (Done(**each) for each in json.loads(run.stdout.splitlines()[-1]))
    return folder, name, dict(zip(given, left, strict=True))


def test_a_run_leaves_claims_figure_and_provenance(finished):
    folder, name, left = finished
    done = left["toy"]
    assert done.status in (0, 1), done.err
    assert done.err == ""
    results = folder / "runs" / name / "quick"
    assert done.out.splitlines()[-1] == str(results.relative_to(folder) / f"{name}.png")
    assert (results / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    report = json.loads((results / f"{name}.json").read_text())
    assert report["versions"]["jax"] and report["seconds"] > 0
    assert report["layout"] or not sweeps(name)
    for claim in report["claims"]:
        assert len(claim["values"]) == 3 or not sweeps(name)
        assert claim["verdict"] in ("pass", "fail", "inconclusive")
        assert claim["control"]["tolerance"]


def test_only_the_unmodified_paper_preset_writes_figures(finished):
    _, _, left = finished
    assert not any(file.startswith("figures") for done in left.values() for file in done.files)


def test_redrawing_computes_nothing_and_gives_the_same_claims(finished):
    _, _, left = finished
    first, again = left["toy"], left["plot"]
    assert (again.status, again.out) == (first.status, first.out)
    stored = [{f: t for f, t in done.files.items() if "/store" in f} for done in (first, again)]
    assert stored[0] == stored[1]


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_exits_2_with_one_line_and_loses_nothing(finished, arguments):
    _, _, left = finished
    refused = left[f"bad: {arguments}"]
    assert refused.status == 2
    assert refused.err.startswith(f"error: {BAD[arguments]}")
    assert len(refused.err.splitlines()) == 1
    assert refused.files == left["plot"].files


def test_a_bad_field_with_fresh_keeps_the_old_run(finished):
    _, name, left = finished
    if not sweeps(name):
        pytest.skip("no sweep of its own")
    assert left["field"].status == 2
    assert "steps: -5 is not a positive int" in left["field"].err
    assert left["field"].files.keys() == left["plot"].files.keys()


def test_another_config_is_refused_in_one_line(finished):
    _, name, left = finished
    if not sweeps(name):
        pytest.skip("no sweep of its own")
    assert left["config"].status == 2
    assert "every was 20 and is now 10" in left["config"].err
    assert "--fresh" in left["config"].err


def test_a_command_of_its_own_does_as_those_given_together(tmp_path):
    """A process as a user starts it, with its output as it is."""
    done = command(tmp_path, "rank_collapse", *TOYS["rank_collapse"].split())
    assert done.returncode in (0, 1) and done.stderr == ""
    assert done.stdout.splitlines()[-1] == "runs/rank_collapse/quick/rank_collapse.png"


def test_help_explains_each_field():
    text = command(ROOT, "edge_of_stability", "--help").stdout
    for words in ("Learning rates", "Gradient steps", "--fresh", "--plot", "--resume", "paper"):
        assert words in text


def test_the_listing_names_each_experiment_and_its_last_verdicts():
    listed = subprocess.run(
        [sys.executable, "-m", "experiments"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in EXPERIMENTS:
        assert name in listed.stdout
    assert "pass" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("momentum_edge --batches 8 2", "batches: (8, 2); give two sizes or more, ascending"),
        (
            "momentum_edge --batch-lrs 0.1",
            "batch_lrs: (0.1,); give one rate for each of (2, 32, 512)",
        ),
        (
            "in_context_regression --contexts 10",
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
        ("collapse --shares 0.5 1.5", "shares: (0.5, 1.5); 0.75 should be among them"),
        ("collapse --starts 1.1 0.9", "starts: (1.1, 0.9); give them ascending"),
        ("collapse --dimension 3", "dimension: 3; give an even number, 2 or more"),
        ("stepwise_barlow --outputs 9", "outputs: 9; give 3 to 7, one a gamma"),
        ("stepwise_barlow --widths 8", "widths: (8,); give two or more, ascending"),
        (
            "masked_prediction --states 1",
            "states: 1; give 2 or more, or there is nothing to fill in",
        ),
        ("masked_prediction --pixel-steps 30", "pixel_steps: 30; give a multiple of 20"),
        (
            "contrastive --temperatures 0.5 0.1",
            "temperatures: (0.5, 0.1); give them ascending, 0.2 and one above",
        ),
        ("label_efficiency --labels 5 1", "labels: (5, 1); give one number or more, ascending"),
        ("label_efficiency --labels 400", "labels: (400,); give 1 to 300 a class"),
        ("label_efficiency --tested 15", "tested: 15; give a multiple of 10"),
        ("rank_collapse --sizes 0.1 0.2", "sizes: (0.1, 0.2); give three or more, ascending"),
        ("layer_norm_placement --depth 9", "depth: 9; give 16 blocks or more"),
        (
            "layer_norm_placement --lrs 0.1 0.01 1",
            "lrs: (0.1, 0.01, 1.0); give three or more, ascending",
        ),
        ("trainable_depth --layers 4", "layers: (4,); give two depths or more, ascending"),
        ("trainable_depth --tokens 1", "tokens: 1; give two or more"),
        ("throughput --problems bz", "problems: 'z' is not one of a, b, c, d, e, f"),
        ("throughput --forms pmap", "forms: 'pmap' is not one of eager, func, loop, scan, vmap"),
        ("throughput --turns 0", "turns: 0 is not a positive int"),
        ("bounded_memory --turns 0", "turns: 0 is not a positive int"),
        (
            "bounded_memory --runs 8 4 2",
            "runs: (8, 4, 2); give three sizes or more, each larger than the last",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_starts(arguments, said, tmp_path):
    refused = command(tmp_path, *arguments.split())
    assert refused.returncode == 2 and refused.stderr == f"error: {said}\n"


def test_races_of_another_kind_are_not_taken_for_these(tmp_path):
    store = tmp_path / "runs" / "throughput" / "quick" / "store"
    store.mkdir(parents=True)
    (store / "a.json").write_text('{"config": {"turns": 9}}')
    refused = command(tmp_path, "throughput")
    assert refused.returncode == 2
    assert "a.json is a race of another config" in refused.stderr and "--fresh" in refused.stderr
