"""An experiment's command line, as a user meets it: its laws, on one small experiment.

That each real experiment keeps them is in test_toys.py.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import pytest

from lab.experiment import main, sources

ROOT = Path(__file__).parents[1]
EXPERIMENT = '''"""Half of what there is decays in a step.

Sources: none."""
from dataclasses import dataclass
import jax.numpy as jnp
import matplotlib.pyplot as plt
from lab.claims import Band, Control, Expected
from lab.sweep import sweep
from lab.types import Dynamics

@dataclass(frozen=True)
class Config:
    """Settings of the sweep."""
    rates: tuple[float, ...] = (0.5,)
    """Share that decays."""
    steps: int = 4
    """How often."""
    every: int = 2
    """Steps between two records."""
    seeds: int = 3
    """Starts."""

PRESETS = {"quick": Config(), "paper": Config(steps=8)}

def run(config, store):
    def process(rate, seed):
        return Dynamics(lambda: 1.0 + seed, lambda x, t: x * (1 - rate), lambda x, t: {"x": x})
    axes = {"rate": config.rates, "seed": range(config.seeds)}
    done = sweep(process, axes, steps=config.steps, every=config.every, store=store)
    return {"decay": done}

def expected(config):
    part = Band(0.2, 0.3, "float32", 0.25)
    control = Control("at the start there is all", Band(0.95, 1.05, "float32", 1.0))
    return {"left": Expected("two steps leave a quarter", part, control, "closed form",
                             "arithmetic", "ratio of two records", "starts", grid=1e-6)}

def measured(data):
    x = data["decay"].x.isel(rate=0)
    return {"left": (x[:, 1] / x[:, 0], x[:, 0] / x[:, 0])}

def figure(data):
    result, axes = plt.subplots()
    axes.plot(data["decay"].step, data["decay"].x[0].T)
    return result
'''
KINDS = ("pdf", "png", "json")
BAD = {
    "papre": "preset: 'papre' is not one of quick, paper",
    "paper --plot": "--plot: no finished run",
    "paper --resume": "--resume: there is nothing in runs/decay/paper",
    "quick --plot --steps 6": "--plot: runs/decay/quick was run with steps 4, not 6",
    "--fresh --plot": "--fresh: ",
    "--fresh --resume": "--fresh: ",
    "--steps -5 --fresh": "steps: -5 is not a positive int",
}


class Done(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


def files() -> dict[str, int]:
    """What is below runs/ and figures/, with its times."""
    found = (file for top in ("runs", "figures") for file in sorted(Path(top).rglob("*")))
    return {str(file): file.stat().st_mtime_ns for file in found if file.is_file()}


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """The experiment as a module, in a folder of its own, with nothing run."""
    (tmp_path / "physics").mkdir()
    (tmp_path / "physics" / "decay.py").write_text(EXPERIMENT)
    monkeypatch.syspath_prepend(tmp_path / "physics")
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("decay")
    sys.modules.pop("decay")
    jax.config.update("jax_enable_x64", False)
    plt.close("all")


@pytest.fixture
def command(experiment, capsys):
    """Gives the experiment a command."""

    def given(line: str = "") -> Done:
        with pytest.raises(SystemExit) as end:
            main("decay", line.split())
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return given


def report(folder: str) -> dict:
    return json.loads(Path(folder, "decay.json").read_text())


def test_a_field_that_every_experiment_has_is_refused(command, experiment):
    fields = [("fresh", int, 32), ("steps", int, 4)]
    experiment.PRESETS["quick"] = dataclasses.make_dataclass("Config", fields)()
    done = command()
    assert done.status == 2
    said = "Config: fresh is an option of every experiment; give it another name"
    assert done.err.splitlines()[-1].endswith(said)


def test_a_run_leaves_claims_figure_and_provenance(command):
    done = command()
    assert done.status == 0 and done.err == ""
    assert done.out.splitlines()[-1] == "runs/decay/quick/decay.png"
    assert Path("runs/decay/quick/decay.pdf").read_bytes().startswith(b"%PDF")
    left = report("runs/decay/quick")
    assert left["claim"] == "Half of what there is decays in a step."
    assert left["config"] == {"rates": [0.5], "steps": 4, "every": 2, "seeds": 3}
    assert left["versions"]["jax"] and left["seconds"] > 0 and left["layout"]
    (claim,) = left["claims"]
    assert claim["values"] == [0.25] * 3 and claim["verdict"] == "pass"
    assert claim["control"]["values"] == [1.0] * 3 and claim["control"]["tolerance"] == [0.95, 1.05]
    assert claim["statement"] in done.out and claim["control"]["statement"] in done.out


def test_only_the_unmodified_paper_preset_writes_figures(command):
    command()
    command("paper --seeds 2")
    assert not Path("figures").exists() and report("runs/decay/paper")["preset"] == "paper"
    done = command("paper --fresh")
    assert done.out.splitlines()[-1] == "figures/physics/decay.png"
    assert {f.name for f in Path("figures").rglob("*.*")} == {f"decay.{s}" for s in KINDS}


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_redrawing_computes_nothing_and_gives_the_same_claims(
    preset, command, experiment, monkeypatch
):
    first, before = command(preset), files()
    monkeypatch.setattr(experiment, "run", lambda *_: pytest.fail("computed again"))
    again, after = command(f"{preset} --plot"), files()
    assert (again.status, again.out) == (first.status, first.out)
    assert {f: t for f, t in after.items() if "/decay." in f} != {
        f: t for f, t in before.items() if "/decay." in f
    }
    assert all(after[file] == t for file, t in before.items() if "/decay." not in file)


@pytest.mark.parametrize("line", BAD)
def test_bad_input_exits_2_with_one_line_and_loses_nothing(line, command):
    command()
    before = files()
    refused = command(line)
    assert refused.status == 2 and refused.out == ""
    assert refused.err.startswith(f"error: {BAD[line]}")
    assert len(refused.err.splitlines()) == 1
    assert files() == before


def test_another_config_is_refused_and_says_how_to_start_over(command):
    command()
    refused = command("--every 1")
    assert refused.status == 2 and len(refused.err.splitlines()) == 1
    assert "every was 2 and is now 1" in refused.err and "--fresh" in refused.err
    assert command("--every 1 --fresh").status == 1  # one step leaves a half
    assert report("runs/decay/quick")["config"]["every"] == 1


def test_an_unknown_flag_is_refused_by_name(command):
    command()
    before = files()
    refused = command("--step 6")
    assert refused.status == 2 and "--step" in refused.err and files() == before


def test_a_run_goes_on_by_itself_and_on_demand(command):
    command()
    states = [file for file in files() if "/states/" in file]
    longer = command("--steps 6 --resume")
    assert longer.status == 0 and states == [file for file in files() if "/states/" in file]
    assert report("runs/decay/quick")["config"]["steps"] == 6


def test_a_claim_that_fails_exits_1(command):
    assert command("--rates 0.1").status == 1
    assert report("runs/decay/quick")["claims"][0]["verdict"] == "fail"


def test_what_breaks_exits_3_and_says_where(command, experiment, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(experiment, "run", broken)
    done = command("")
    assert done.status == 3 and "ZeroDivisionError: by nothing" in done.err


def test_an_interrupt_exits_130_and_the_same_command_goes_on(command, experiment, monkeypatch):
    command()
    finished, run = files(), experiment.run

    def interrupted(config, store):
        run(config, store)
        raise KeyboardInterrupt

    for _ in range(2):  # a second interrupt loses no more than the first
        monkeypatch.setattr(experiment, "run", interrupted)
        done = command("--fresh")
        assert done.status == 130
        assert done.err == "interrupted; the same command goes on from here\n"
        assert {file: files()[file] for file in finished} == finished
        assert command("--plot").status == 0  # what is replaced is whole until the end
        finished = {file: time for file, time in files().items() if file in finished}
    (begun,) = Path("runs/decay").glob("quick.fresh-*")
    states = {f.name: f.stat().st_mtime_ns for f in begun.rglob("*.npz") if "states" in f.parts}
    monkeypatch.setattr(experiment, "run", run)
    assert command("--fresh").status == 0 and not begun.exists()
    after = Path("runs/decay/quick").rglob("*.npz")
    assert states == {f.name: f.stat().st_mtime_ns for f in after if "states" in f.parts}
    assert [f.name for f in Path("runs/decay").iterdir()] == ["quick"]


def test_a_kill_while_a_fresh_run_is_put_in_its_place_loses_nothing(command):
    command()
    Path("runs/decay/quick").rename("runs/decay/quick.old")  # where the kill was
    assert command("--plot").status == 0
    assert [f.name for f in Path("runs/decay").iterdir()] == ["quick"]


def test_what_an_earlier_version_kept_is_refused_in_one_line(command):
    command()
    Path("runs/decay/quick/config.json").write_text('{"steps": 4}')
    refused = command("--plot")
    assert refused.status == 2 and "was kept by an earlier version" in refused.err


def test_bad_input_to_a_fresh_run_leaves_no_trace(command):
    command()
    assert command("--fresh --steps -5").status == 2
    assert [f.name for f in Path("runs/decay").iterdir()] == ["quick"]


def test_claims_are_printed_before_anything_runs(command, experiment, monkeypatch):
    monkeypatch.setattr(experiment, "run", lambda *_: pytest.fail("ran"))
    done = command("--claims")
    assert done.status == 0 and files() == {}
    for words in ("two steps leave a quarter", "at the start there is all", "float32", "0.25"):
        assert words in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_divergence_is_counted_over_all_datasets_and_said_apart_where_expected(
    command, experiment, monkeypatch
):
    run = experiment.run

    def with_another(config, store):
        data = run(config, store)
        blown = run(dataclasses.replace(config, rates=(1e30,)), store / "blown")
        return {"blown": blown["decay"], **data}

    monkeypatch.setattr(experiment, "run", with_another)
    assert "blown: 3 of 3 runs diverged\n" in command("--fresh").out
    assert report("runs/decay/quick")["diverged"] == {
        "blown": {"diverged": 3, "runs": 3, "expected": None}
    }
    monkeypatch.setattr(experiment, "DIVERGES", {"blown": "beyond 2 it grows"}, raising=False)
    done = command("--plot")
    assert "blown: 3 of 3 runs diverged, as expected: beyond 2 it grows\n" in done.out


def test_tables_fit_80_columns(command):
    assert max(map(len, command().out.splitlines())) <= 80


def test_the_commit_is_that_of_the_code_and_not_of_the_folder(command, tmp_path):
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y"]

    def given(*words: str) -> str:
        done = subprocess.run([*git, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    given("init", "-q")
    given("commit", "-q", "--allow-empty", "-m", "elsewhere")
    command()  # in this folder, whose repository does not hold the code
    left = report("runs/decay/quick")
    assert left["commit"] is None and left["commit of lab"] != given("rev-parse", "HEAD")[:12]
    given("add", "physics")
    given("commit", "-q", "-m", "code")
    command("--fresh")
    ran = report("runs/decay/quick")["commit"]
    assert ran == given("rev-parse", "--short=12", "HEAD")
    given("commit", "-q", "--allow-empty", "-m", "later")
    command("--plot")  # redrawn: what ran is what ran
    assert report("runs/decay/quick")["commit"] == ran


def test_the_sources_kept_are_those_that_the_run_began_with(command, experiment, monkeypatch):
    code, run = Path("physics/decay.py"), experiment.run
    began = sources(code)

    def edited(config, store):
        code.write_text(code.read_text() + "# while it ran\n")
        return run(config, store)

    monkeypatch.setattr(experiment, "run", edited)
    command()
    kept = json.loads(Path("runs/decay/quick/config.json").read_text())["code"]["sources"]
    assert kept == report("runs/decay/quick")["sources"] == began != sources(code)


def test_an_experiment_that_needs_float64_has_it(command, experiment, monkeypatch):
    command("--fresh")
    assert report("runs/decay/quick")["x64"] is False
    monkeypatch.setattr(experiment, "x64", True, raising=False)
    command("--fresh")
    assert report("runs/decay/quick")["x64"] is True


def test_help_explains_each_field(command):
    done = command("paper --help")
    assert done.status == 0
    for words in ("Half of what", "Share that decays", "How often", "between two records"):
        assert words in done.out
    for words in ("--fresh", "--plot", "--resume", "Presets: quick, paper", "8"):
        assert words in done.out


@pytest.mark.xdist_group("processes")
def test_an_experiment_is_run_by_its_stem():
    """A process as a user starts it."""
    text = subprocess.run(
        [sys.executable, "-W", "error", "-m", "experiments", "momentum_edge", "--help"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for words in ("How many initialisations", "--fresh", "--plot", "--claims", "paper"):
        assert words in text
