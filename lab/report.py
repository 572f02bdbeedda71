"""How claims are shown and kept: tables for a terminal of 80 columns, plain values for json."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lab.claims import Band, Expected
from lab.types import Claim

MARKS = {
    "pass": "[green]pass[/]",
    "fail": "[bold red]FAIL[/]",
    "inconclusive": "[yellow]inconclusive[/]",
}


def print_expected(expected: Mapping[str, Expected]) -> None:
    """Claims and controls before anything runs: what is expected, and why so wide."""
    table = _table("claim and control", "expected")
    for one in expected.values():
        source = f"[dim]{one.kind}: {_escaped(one.source)}. {_escaped(one.estimator)}[/]"
        table.add_row(_escaped(one.statement), _band(one.band))
        table.add_row(f"  [dim]{_escaped(one.band.why)}[/]\n  {source}", "")
        table.add_row(f"  control: {_escaped(one.control.statement)}", _band(one.control.band))
        table.add_row(f"  [dim]{_escaped(one.control.band.why)}[/]", "")
        table.add_section()
    _print(table)


def print_claims(claims: Sequence[Claim]) -> None:
    """Claims and controls as they came out; each interval below its mean."""
    table = _table("claim and control", "expected", "measured", "verdict")
    for claim in claims:
        _add(table, claim, "")
        if claim.control is not None:
            _add(table, claim.control, "control: ")
        table.add_section()
    _print(table)
    if claims:
        print(f"intervals of level {claims[0].level:.4g}: all of them hold together at 95%")


def _add(table: Any, claim: Claim, prefix: str) -> None:
    low, high = claim.interval
    reason = f"\n[yellow]{_escaped(claim.reason)}[/]" if claim.reason else ""
    table.add_row(
        f"[dim]{prefix}[/]{_escaped(claim.statement)}{reason}",
        _band(Band(*claim.tolerance, claim.why, claim.predicted)),
        f"{claim.measured:.4g}\n\\[{low:.4g}, {high:.4g}]" if claim.values else "",
        MARKS[claim.verdict],
    )


def _table(first: str, *others: str) -> Any:
    from rich.table import Table

    table = Table(expand=False, pad_edge=False)
    table.add_column(first, overflow="fold", ratio=1)
    for column in others:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)


def _escaped(words: str) -> str:
    from rich.markup import escape

    return escape(words)


def _band(band: Band) -> str:
    """A band in the words of a table."""
    if math.isinf(band.low):
        return f"≤ {band.high:.4g}"
    if math.isinf(band.high):
        return f"≥ {band.low:.4g}"
    ends = f"{band.low:.4g} to {band.high:.4g}"
    return ends if band.predicted is None else f"{band.predicted:.4g}\n{ends}"


def counts(verdicts: Sequence[str]) -> str:
    """Verdicts in a few words.

    >>> counts(["pass", "inconclusive", "pass"])
    '2 pass 1 inconclusive'
    """
    kinds = [kind for kind in ("pass", "inconclusive", "fail") if kind in verdicts]
    return " ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds)


def plain(claim: Claim) -> dict[str, Any]:
    """A claim as json takes it."""
    inner = None if claim.control is None else plain(claim.control)
    return {**claim._asdict(), "control": inner}


def finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they are written as words."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
