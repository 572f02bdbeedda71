"""Every room of floor 1 exports what its files have for others."""

import ast
import importlib
from pathlib import Path

import pytest

LAB = Path(__file__).parents[1] / "lab"


def defined(room: str) -> list[tuple[str, str]]:
    """(public function or class, its file) of a room, but those that are said with their file."""
    pairs = [
        (node.name, file.stem)
        for file in sorted((LAB / room).glob("[!_]*.py"))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    return [(name, file) for name, file in pairs if name != "loss" and file != "edges"]


@pytest.mark.parametrize("room", ["data", "measures", "objectives", "theory"])
def test_a_room_exports_each_public_name_of_its_files(room):
    module = importlib.import_module(f"lab.{room}")
    for name, file in defined(room):
        assert name in module.__all__
        source = importlib.import_module(f"lab.{room}.{file}")
        assert getattr(module, name) is getattr(source, name)


@pytest.mark.parametrize("room", ["models", "data", "objectives", "measures", "theory"])
def test_keys_have_one_type_in_signatures(room):
    for file in sorted((LAB / room).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.arg) and node.annotation and node.arg.split("_")[-1] == "key":
                said = ast.unparse(node.annotation)
                assert said.removesuffix(" | None") == "PRNGKeyArray", (file.name, node.arg, said)
