"""The experiments there are: found in their folders, listed, replicated, shown in a gallery."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lab.experiment import FIGURES, RUNS, sources
from lab.report import counts
from lab.types import BadInput

FRESH = 1000
"""The first of the seeds that no figure uses."""


class Entry(NamedTuple):
    """An experiment on disk.

    Attributes:
        file: of its code.
        subject: the folder it is in.
        claim: its docstring's first line.
    """

    file: Path
    subject: str
    claim: str

    @property
    def name(self) -> str:
        """Its stem, which no other has."""
        return self.file.stem

    @property
    def module(self) -> str:
        return f"{self.file.parents[1].name}.{self.subject}.{self.name}"

    @property
    def committed(self) -> Path:
        """What its paper preset left, without a suffix."""
        return FIGURES / self.subject / self.name


def entries(folder: Path) -> list[Entry]:
    """The experiments below `folder`, by subject.

    Raises:
        BadInput: two of the same stem.
    """
    files = sorted(f for f in folder.glob("*/*.py") if not f.name.startswith("_"))
    found = [Entry(file, file.parent.name, _summary(file)) for file in files if _runs(file)]
    names = [one.name for one in found]
    for name in sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"experiments: two files are {name}.py; a stem names one experiment")
    return found


def named(folder: Path, name: str) -> Entry:
    """The experiment of a stem.

    Raises:
        BadInput: there is none.
    """
    import difflib

    known = {one.name: one for one in entries(folder)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        like = f"; is it {' or '.join(near)}?" if near else ""
        raise BadInput(f"experiment: there is no {name!r}{like} (all: python -m experiments)")
    return known[name]


def listing(folder: Path) -> None:
    """Print the experiments below `folder` by subject: claim, last verdicts, seconds."""
    from rich.console import Console
    from rich.table import Table

    for subject, held in _by_subject(entries(folder)):
        table = Table(title=subject.replace("_", " "), title_justify="left", pad_edge=False)
        table.add_column("experiment", overflow="fold", ratio=2)
        table.add_column("claim", overflow="fold", ratio=3)
        table.add_column("verdicts", overflow="fold", ratio=2)
        table.add_column("seconds", justify="right")
        for one in held:
            report = _latest(one)
            if report is None:
                table.add_row(one.name, one.claim, "never run", "")
            else:
                said = f"{_verdicts(report)} ({report['preset']})"
                table.add_row(one.name, one.claim, said, f"{report['seconds']:.0f}")
        Console().print(table)


def replicated(folder: Path, arguments: Sequence[str]) -> int:
    """Run every quick preset on fresh seeds, and say which claims replicate.

    A claim of the committed figure replicates where it passes again on seeds that no figure used;
    it is undecided where it does not pass and does not fail. Each experiment is a process of its
    own; what is finished is not run again unless its code, or lab's, has changed since, and what
    was killed goes on.

    Args:
        folder: of the experiments.
        arguments: of the command line: [--first-seed 1000] [SUBJECT ...].

    Returns:
        0; 1 where a claim that passed fails.

    Raises:
        BadInput: a word that is no subject, or an experiment that could not be run.
    """
    first, subjects = _asked(arguments, {one.subject for one in entries(folder)})
    chosen = [one for one in entries(folder) if not subjects or one.subject in subjects]
    seeded = [one for one in chosen if "first_seed" in one.file.read_text()]
    runs = RUNS / f"replicate-{first}"
    rows: dict[str, dict[str, Any]] = {}
    broken = []
    for i, one in enumerate(seeded):
        left = runs / one.name / "quick" / f"{one.name}.json"
        print(f"{i + 1}/{len(seeded)} {one.name}", file=sys.stderr, flush=True)
        current = _current(one, left)
        how = "--plot" if current else "--fresh" if left.exists() else None
        start = _unused(one, first)
        status = _again(one, runs, start, how)
        if status == 130:
            raise KeyboardInterrupt
        if status in (0, 1):
            row = _compared(one, json.loads(left.read_text()))
            rows[one.name] = row if start == first else row | {"first_seed": start}
        else:
            broken.append(one.name)
    result = {"first_seed": first, "experiments": rows}
    whole = not subjects and first == FRESH and not broken
    target = (FIGURES if whole else runs) / "replication.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print_replication(result)
    for one in chosen:
        if one not in seeded:
            print(f"{one.name}: takes no seeds (it times)")
    print(target)
    if broken:
        raise BadInput(f"replicate: {', '.join(broken)} could not be run (see above)")
    return int(any("contradicted" in row["claims"].values() for row in rows.values()))


def _asked(arguments: Sequence[str], known: set[str]) -> tuple[int, list[str]]:
    """The first seed and the subjects of a command line."""
    rest, first = list(arguments), FRESH
    if "--first-seed" in rest:
        at = rest.index("--first-seed")
        value = rest[at + 1] if at + 1 < len(rest) else ""
        if not value.isdecimal():
            raise BadInput(f"--first-seed: {value!r} is not an int, 0 or more")
        first, rest = int(value), rest[:at] + rest[at + 2 :]
    for word in rest:
        if word not in known:
            raise BadInput(
                f"replicate: {word!r} is no subject; there are {', '.join(sorted(known))}"
            )
    return first, rest


def _unused(one: Entry, first: int) -> int:
    """`first`, or a seed far beyond those of the committed figure where they reach as far."""
    figure = one.committed.with_suffix(".json")
    config = json.loads(figure.read_text()).get("config", {}) if figure.exists() else {}
    end = config.get("first_seed", 0) + config.get("seeds", 0)
    return first if end <= first else 10 * end


def _again(one: Entry, runs: Path, first: int, how: str | None) -> int:
    """The quick preset of an experiment in a process of its own; its exit status.

    `how` is "--plot" where it is finished, and "--fresh" where the code has changed since.
    """
    command = [sys.executable, "-m", one.module, "quick", "--first-seed", str(first)]
    command += ["--into", str(runs), *([how] if how else [])]
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode


def _current(one: Entry, left: Path) -> bool:
    """Whether a finished run is of the code there is: the experiment's, its folder's, lab's."""
    kept = left.parent / "config.json"
    if not (kept.exists() and left.exists()):
        return False
    ran = json.loads(kept.read_text()).get("code", {})
    return bool(ran.get("sources") == sources(one.file))


def _compared(one: Entry, again: dict[str, Any]) -> dict[str, Any]:
    """What became of each claim on fresh seeds, beside its verdict in the committed figure."""
    figure = one.committed.with_suffix(".json")
    before = json.loads(figure.read_text())["claims"] if figure.exists() else []
    committed = {claim["name"]: claim["verdict"] for claim in before if "name" in claim}
    outcomes = {"pass": "replicated", "fail": "contradicted", "inconclusive": "undecided"}
    claims = {}
    for claim in again["claims"]:
        held, now = committed.get(claim["name"]), claim["verdict"]
        said = outcomes[now] if held == "pass" else f"{now}, in the figure {held or 'not there'}"
        claims[claim["name"]] = said
    return {"subject": one.subject, "seconds": again["seconds"], "claims": claims}


def print_replication(result: dict[str, Any]) -> None:
    """A table: of the claims that passed, how many replicate; then those that do not."""
    from rich.console import Console
    from rich.table import Table

    table = Table(pad_edge=False)
    for column in ("experiment", "replicated", "undecided", "contradicted", "others"):
        table.add_column(
            column, overflow="fold", justify="left" if column == "experiment" else "right"
        )
    total = dict.fromkeys(("replicated", "undecided", "contradicted"), 0)
    for name, row in result["experiments"].items():
        said = [*row["claims"].values()]
        counted = {kind: said.count(kind) for kind in total}
        total = {kind: total[kind] + counted[kind] for kind in total}
        table.add_row(name, *map(str, counted.values()), str(len(said) - sum(counted.values())))
    console = Console()
    console.print(table)
    passed = sum(total.values())
    seeds = f"seeds from {result['first_seed']} on"
    print(f"{total['replicated']} of {passed} claims that passed replicate on {seeds}")
    for name, row in result["experiments"].items():
        for claim, said in row["claims"].items():
            if said != "replicated":
                print(f"  {name}: {claim}: {said}")


def gallery(folder: Path, replication: Path = FIGURES / "replication.json") -> str:
    """README's table of experiments, made from their json files."""
    quick = json.loads(replication.read_text())["experiments"] if replication.exists() else {}
    lines = []
    for subject, held in _by_subject(entries(folder)):
        lines += [f"**{subject.replace('_', ' ')}**", ""]
        lines += ["| experiment | claim | verdicts | quick | paper |", "|---|---|---|---|---|"]
        for one in held:
            at = one.committed.as_posix()
            file = f"{one.file.parents[1].name}/{subject}/{one.name}.py"
            verdicts, paper = "never run", ""
            if (kept := one.committed.with_suffix(".json")).exists():
                report = json.loads(kept.read_text())
                links = f"[png]({at}.png) [pdf]({at}.pdf) [json]({at}.json)"
                verdicts = f"{_verdicts(report)}: {links}"
                paper = _time(report["seconds"])
            took = _time(quick[one.name]["seconds"]) if one.name in quick else ""
            lines.append(
                f"| [`{one.name}`]({file}) | {one.claim} | {verdicts} | {took} | {paper} |"
            )
        lines.append("")
    return "\n".join(lines)


def rewritten(readme: str, table: str) -> str:
    """README with the table between its two marks."""
    begin, end = "<!-- gallery -->", "<!-- /gallery -->"
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{table}\n{end}{after}"


def _by_subject(found: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    for subject in dict.fromkeys(one.subject for one in found):
        yield subject, [one for one in found if one.subject == subject]


def _latest(one: Entry) -> dict[str, Any] | None:
    """The youngest report of an experiment."""
    files = [one.committed.with_suffix(".json"), *RUNS.glob(f"{one.name}/*/{one.name}.json")]
    there = [file for file in files if file.exists()]
    if not there:
        return None
    return json.loads(max(there, key=lambda file: file.stat().st_mtime).read_text())


def _verdicts(report: dict[str, Any]) -> str:
    return counts([claim["verdict"] for claim in report["claims"]])


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _summary(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()[0]


def _runs(file: Path) -> bool:
    """Whether a file is an experiment, and not what one is raced against."""
    return "main(__name__)" in file.read_text()
