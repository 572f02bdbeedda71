"""The recipes run as they stand, and each is short."""

import doctest
import re
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "docs" / "recipes.md"


def test_every_recipe_runs():
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    found = doctest.testfile(str(RECIPES), module_relative=False, optionflags=flags)
    assert found.failed == 0 and found.attempted > 70


def test_there_are_twenty_recipes_of_ten_lines_at_most():
    blocks = re.findall(r"```python\n(.*?)\n*```", RECIPES.read_text(), re.DOTALL)[1:]
    assert len(blocks) >= 20
    for block in blocks:
        lines = [line for line in block.splitlines() if line.startswith((">>>", "..."))]
        assert len(lines) <= 10, block
