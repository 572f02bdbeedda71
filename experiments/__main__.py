"""List the experiments: claim, last verdicts, run time."""

from pathlib import Path

from lab.experiment import listing

listing(Path(__file__).parent)
