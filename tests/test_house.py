"""The house itself: imports go down only, importing is cheap, README tells the truth."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lab
from lab import catalogue

ROOT = Path(__file__).parents[1]
FLOORS = {
    "types": 0,
    "numerics": 0.5,  # knows the shapes; every room may know it
    **dict.fromkeys(("models", "data", "objectives", "measures", "theory"), 1),
    **dict.fromkeys(("dynamics", "sweep", "tasks"), 2),
    **dict.fromkeys(("claims", "plotting"), 3),
    "edge_race": 3,  # a process and its sweeps
    "report": 3.5,  # shows claims
    "experiment": 4,
    "catalogue": 4.5,  # finds experiments
}


def imported(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    return names | {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}


@pytest.mark.parametrize("file", sorted((ROOT / "lab").rglob("*.py")), ids=lambda f: f.stem)
def test_imports_go_down_only(file):
    room = file.relative_to(ROOT / "lab").parts[0].removesuffix(".py")
    for name in imported(file):
        top, _, rest = name.partition(".")
        assert top != "experiments"
        other = rest.split(".")[0]
        if top == "lab" and other != room and room != "__init__":
            # plotting draws what claims computes; no other two rooms of a floor meet
            assert FLOORS[other] < FLOORS[room] or (room, other) == ("plotting", "claims")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "experiments").glob("*/*.py")), ids=lambda f: f.stem
)
def test_an_experiment_imports_no_other(file):
    others = {name for name in imported(file) if name.startswith("experiments")}
    assert all(name.startswith(f"experiments.{file.parent.name}.peers") for name in others)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "experiments").glob("*/*.py")), ids=lambda f: f.stem
)
def test_an_experiment_has_200_lines_or_says_why_it_has_more(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 200 or "200 lines because" in " ".join(text.split())


def test_importing_the_engine_loads_nothing_it_does_not_need():
    code = "import sys; import lab.sweep; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "xarray" in loaded
    assert not loaded & {"matplotlib", "sklearn", "mlxtend", "tyro", "rich", "zarr", "flax"}


def test_the_gallery_is_current_and_each_figure_is_there(monkeypatch):
    """`make gallery` writes it."""
    monkeypatch.chdir(ROOT)
    readme, folder = (ROOT / "README.md").read_text(), ROOT / "experiments"
    assert readme == catalogue.rewritten(readme, catalogue.gallery(folder))
    for one in catalogue.entries(folder):
        for kind in ("pdf", "png", "json"):
            assert one.committed.with_suffix(f".{kind}").exists()


def test_the_readme_example_runs():
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block and len(list(filter(None, block[1].splitlines()))) <= 15
    exec(compile(block[1], "README.md", "exec"), {})


def test_readme_tells_the_replication_as_it_came_out():
    table = json.loads((ROOT / "figures" / "replication.json").read_text())["experiments"]
    said = [verdict for row in table.values() for verdict in row["claims"].values()]
    count = {kind: said.count(kind) for kind in ("replicated", "undecided", "contradicted")}
    assert count["contradicted"] == 0
    words = " ".join((ROOT / "README.md").read_text().split())
    passed, again = sum(count.values()), count["replicated"]
    assert f"Of the {passed} claims that pass in the figures {again} pass again" in words
    assert f"{count['undecided']} are undecided" in words and "none is contradicted" in words
    names = {entry.name for entry in catalogue.entries(ROOT / "experiments")}
    assert {*table} <= names and len(names - {*table}) == 4  # those that time


def test_the_wheel_is_lab_alone_with_its_licence_and_the_changelog_names_its_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tools = project["tool"]["setuptools"]
    assert tools["packages"]["find"]["include"] == ["lab*"]
    assert tools["dynamic"]["version"]["attr"] == "lab.__version__"
    assert (ROOT / "lab" / "py.typed").exists() and project["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert f"\n## {lab.__version__}" in (ROOT / "CHANGELOG.md").read_text()
