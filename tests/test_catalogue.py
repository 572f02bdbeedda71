"""The experiments there are: found by their folders, listed, replicated, shown in README."""

import json
import os
import time
from pathlib import Path

import pytest

from experiments.__main__ import FOLDER, command
from lab import catalogue, experiment
from lab.types import BadInput

ROOT = Path(__file__).parents[1]
CLAIM = "It falls."
CODE = f'''"""{CLAIM}"""
class Config:
    first_seed: int = 0
    """The first."""
main(__name__)
'''


def verdicts(**named: str) -> dict:
    claims = [{"name": name, "verdict": verdict} for name, verdict in named.items()]
    return {"claims": claims, "seconds": 200.0, "preset": "paper"}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Two experiments and what they are raced against, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments"
    for subject, name, code in (
        ("falling", "apple", CODE),
        ("rising", "smoke", CODE),
        ("rising", "peer", '"""No experiment."""'),
        ("rising", "__init__", '"""A page."""'),
    ):
        (folder / subject).mkdir(parents=True, exist_ok=True)
        (folder / subject / f"{name}.py").write_text(code)
    kept = Path("figures/falling/apple.json")
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps(verdicts(a="pass", b="pass", c="inconclusive", d="pass")))
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Runs nothing: leaves a report, once, and tells how it was asked."""
    asked = []

    def again(one, runs, first, how):
        asked.append((one.name, first, how))
        left = runs / one.name / "quick"
        left.mkdir(parents=True, exist_ok=True)
        ran = {"sources": experiment.sources(one.file)}
        (left / "config.json").write_text(json.dumps({"code": ran}))
        outcome = verdicts(a="pass", b="fail", c="pass", d="inconclusive")
        (left / f"{one.name}.json").write_text(json.dumps(outcome | {"seconds": 20.0}))
        return 1

    monkeypatch.setattr(catalogue, "_again", again)
    return asked


def test_experiments_are_found_in_their_folders(house):
    assert [(one.subject, one.name) for one in catalogue.entries(house)] == [
        ("falling", "apple"),
        ("rising", "smoke"),
    ]
    assert catalogue.named(house, "apple").module == "experiments.falling.apple"


def test_a_stem_names_one_experiment(house):
    with pytest.raises(BadInput, match=r"^experiment: there is no 'aple'; is it apple\?"):
        catalogue.named(house, "aple")
    (house / "rising" / "apple.py").write_text(CODE)
    with pytest.raises(BadInput, match=r"^experiments: two files are apple\.py; a stem names one"):
        catalogue.entries(house)


def test_the_listing_goes_by_subject_within_80_columns(house, capsys):
    catalogue.listing(house)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "apple" in line)
    assert CLAIM in row and "200" in row
    assert any("3 pass 1" in line for line in lines) and any("never run" in line for line in lines)
    assert out.index("falling") < out.index("rising")


def test_replication_tells_which_claims_replicate(house, quick, capsys):
    assert catalogue.replicated(house, ["falling"]) == 1
    out = capsys.readouterr().out
    assert "1 of 3 claims that passed replicate on seeds from 1000 on" in out
    for line in ("apple: b: contradicted", "apple: d: undecided", "apple: c: pass, in the figure"):
        assert line in out
    assert max(map(len, out.splitlines())) <= 80
    assert quick == [("apple", 1000, None)] and not Path("figures/replication.json").exists()


def test_a_whole_replication_is_kept_with_the_figures_and_redone_from_what_is_there(house, quick):
    for _ in range(2):
        catalogue.replicated(house, [])
    assert quick == [(n, 1000, how) for how in (None, "--plot") for n in ("apple", "smoke")]
    kept = json.loads(Path("figures/replication.json").read_text())
    assert kept["experiments"]["apple"]["claims"]["a"] == "replicated"
    assert kept["experiments"]["smoke"]["claims"]["a"] == "pass, in the figure not there"
    catalogue.replicated(house, ["--first-seed", "7"])
    assert Path("runs/replicate-7/replication.json").exists()


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("experiments/falling/apple.py", ("--fresh", "--plot")),
        ("experiments/rising/peers/flame.py", ("--plot", "--fresh")),
        ("experiments/rising/peer.py", ("--plot", "--plot")),  # no experiment imports it
        ("lab/numerics.py", ("--fresh", "--fresh")),
        ("lab/data/digits.py", ("--fresh", "--fresh")),
    ],
)
def test_a_replication_starts_over_what_has_changed_and_not_what_was_touched(
    changed, again, house, quick, monkeypatch
):
    monkeypatch.setattr(experiment, "LAB", house.parent / "lab")
    for name in ("lab/numerics.py", "lab/data/digits.py", "experiments/rising/peers/flame.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("X = 1\n")
    catalogue.replicated(house, [])
    file, later = Path(changed), time.time() + 10
    os.utime(file, (later, later))
    catalogue.replicated(house, [])
    assert [how for *_, how in quick[-2:]] == ["--plot"] * 2
    file.write_text(file.read_text() + "# otherwise\n")
    os.utime(file, (0, 0))  # a checkout of another content may well be of an earlier time
    for how in (again, ("--plot", "--plot")):
        catalogue.replicated(house, [])
        assert quick[-2:] == [("apple", 1000, how[0]), ("smoke", 1000, how[1])]


def test_what_an_earlier_version_left_is_run_again(house, quick):
    catalogue.replicated(house, ["falling"])
    Path("runs/replicate-1000/apple/quick/config.json").write_text('{"code": {"commit": null}}')
    catalogue.replicated(house, ["falling"])
    assert quick[-1] == ("apple", 1000, "--fresh")


def test_seeds_that_a_figure_used_are_not_called_fresh(house, quick):
    figure = Path("figures/falling/apple.json")
    figure.write_text(json.dumps(json.loads(figure.read_text()) | {"config": {"seeds": 2000}}))
    catalogue.replicated(house, [])
    assert quick == [("apple", 20_000, None), ("smoke", 1000, None)]
    rows = json.loads(Path("figures/replication.json").read_text())["experiments"]
    assert rows["apple"]["first_seed"] == 20_000 and "first_seed" not in rows["smoke"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["flying"], "replicate: 'flying' is no subject; there are falling, rising"),
        (["--first-seed"], "--first-seed: '' is not an int, 0 or more"),
        (["--first-seed", "-1"], "--first-seed: '-1' is not an int, 0 or more"),
    ],
)
def test_what_cannot_be_replicated_is_refused(words, said, house, quick):
    with pytest.raises(BadInput) as refused:
        catalogue.replicated(house, words)
    assert str(refused.value) == said and quick == []


def test_the_gallery_is_made_from_the_figures(house, quick):
    catalogue.replicated(house, [])
    table = catalogue.gallery(house)
    assert (
        "| [`apple`](experiments/falling/apple.py) | It falls. | 3 pass 1 inconclusive: " in table
    )
    assert table.index("**falling**") < table.index("**rising**")
    assert "| 20 s | 3 min |" in table and "never run" in table
    readme = "before\n<!-- gallery -->\nold\n<!-- /gallery -->\nafter\n"
    once = catalogue.rewritten(readme, table)
    assert once == catalogue.rewritten(once, table) and "old" not in once
    assert once.startswith("before\n") and once.endswith("<!-- /gallery -->\nafter\n")


def test_the_real_house_is_listed_by_subject(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command([]) == 0
    out = capsys.readouterr().out
    assert "momentum_edge" in out.replace("\n", "") and max(map(len, out.splitlines())) <= 80
    assert all(one.committed.with_suffix(".json").exists() for one in catalogue.entries(FOLDER))
