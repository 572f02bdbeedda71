"""The house itself: imports go down only, importing is cheap, README tells the truth."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "types": 0,
    "numerics": 0.5,  # knows the shapes; every room may know it
    **dict.fromkeys(("models", "data", "objectives", "measures", "theory"), 1),
    **dict.fromkeys(("dynamics", "sweep"), 2),
    **dict.fromkeys(("claims", "plotting", "peers"), 3),
    "experiment": 4,
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


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.py")), ids=lambda f: f.stem)
def test_an_experiment_imports_no_other(file):
    assert not any(name.startswith("experiments") for name in imported(file))


def test_importing_the_engine_loads_nothing_it_does_not_need():
    code = "import sys; import lab.sweep; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "xarray" in loaded
    assert not loaded & {"matplotlib", "sklearn", "mlxtend", "tyro", "rich", "zarr", "flax"}


def test_the_gallery_names_each_experiment_and_its_figure_is_there():
    readme = (ROOT / "README.md").read_text()
    for file in (ROOT / "experiments").glob("[!_]*.py"):
        assert f"experiments/{file.name}" in readme
        for kind in ("pdf", "png", "json"):
            assert (ROOT / "figures" / f"{file.stem}.{kind}").exists()
        assert f"figures/{file.stem}.png" in readme


def test_the_readme_example_runs():
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block and len(list(filter(None, block[1].splitlines()))) <= 15
    exec(compile(block[1], "README.md", "exec"), {})
