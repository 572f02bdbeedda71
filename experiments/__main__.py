"""The experiments' command line: list them, run one by its stem, replicate them all.

python -m experiments                                  # by subject: claim, verdicts, seconds
python -m experiments NAME [preset] [--field ...]      # run one; --help, --claims, --plot
python -m experiments replicate [--first-seed 1000] [SUBJECT ...]
python -m experiments gallery                          # README's table, made from the figures
"""

import importlib
import sys
from pathlib import Path

from lab import catalogue
from lab.experiment import main
from lab.types import BadInput

FOLDER = Path(__file__).parent


def command(words: list[str]) -> int:
    """Do what the words ask; the exit status."""
    if not words:
        catalogue.listing(FOLDER)
        return 0
    name, *rest = words
    if name == "replicate":
        return catalogue.replicated(FOLDER, rest)
    if name not in OTHERS:
        entry = catalogue.named(FOLDER, name)
        importlib.import_module(entry.module)
        main(entry.module, rest)
    OTHERS[name]()
    return 0


def help_() -> None:
    """What there is to say."""
    print(__doc__)


def gallery() -> None:
    """README's table made anew."""
    readme = FOLDER.parent / "README.md"
    readme.write_text(catalogue.rewritten(readme.read_text(), catalogue.gallery(FOLDER)))


OTHERS = {"-h": help_, "--help": help_, "gallery": gallery}


if __name__ == "__main__":
    try:
        sys.exit(command(sys.argv[1:]))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
