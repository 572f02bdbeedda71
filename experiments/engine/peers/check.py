"""The sections of an accelerator's check, side by side where nothing is timed, as Datasets."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from experiments.engine.peers.problems import problems
from experiments.engine.peers.sections import Row, Section

FORMS = ("sweep", "again", "vmap", "alike", "scan", "eager", "compiled", "func")
COMPILED, TORCH = 0.5, 0.2
"""Shares of the time: after the first the timing begins, the last is PyTorch's."""


def rows(
    store: Path,
    *,
    letters: str,
    groups: Sequence[Sequence[int]],
    turns: int,
    steps: int,
    draws: int,
    seconds: float,
    edge: bool,
) -> dict[str, list[Row]]:
    """{section: its rows}, in so many seconds; sections that are in the store are not run again.

    Args:
        store: a folder.
        letters: reference sweeps to race.
        groups: numbers of runs, those of a group compiled together.
        turns: how often each contender is timed.
        steps: at most, of a run that is timed.
        draws: of weights and data that errors are measured on.
        seconds: that all may take.
        edge: whether the edge of stability is run.
    """
    store.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    end = begun + seconds
    folder = str(store.absolute())
    race: dict[str, Any] = {"letters": letters, "turns": turns, "most": steps}
    stacked = [runs for group in groups for runs in group if runs >= 16] or [*groups[0]]
    wanted: dict[str, Any] = {
        "accuracy": {"memory": 0.04, "seeds": draws},
        "resumed": {"memory": 0.04, "folder": f"{folder}/resumed"},
        **({"edge": {"memory": 0.08, "folder": f"{folder}/edge", "flags": []}} if edge else {}),
        "rates": {"memory": 0.6, "groups": groups, **race},
        "torch": {"memory": 0.01, "runs": stacked, **race},
    }
    made = {name: Section(name, store / f"{name}.jsonl", **given) for name, given in wanted.items()}
    for name in made.keys() - {"rates", "torch"}:
        made[name].ended(begun + COMPILED * seconds)
    stop = end - TORCH * seconds
    made["rates"].go(max(1.0, stop - time.perf_counter() - 5))
    made["rates"].ended(stop)
    made["torch"].go(max(1.0, end - time.perf_counter() - 5))
    made["torch"].ended(end)
    return {name: one.rows() for name, one in made.items()}


def datasets(found: Mapping[str, list[Row]]) -> dict[str, xr.Dataset]:
    """{section: Dataset} of what was measured; NaN where it was not."""
    timed = [row for name in ("rates", "torch") for row in found[name] if "seconds" in row]
    notes = [row["note"] for rows in found.values() for row in rows if "note" in row]
    ended = {name: any(row.get("done") for row in rows) for name, rows in found.items()}
    notes += [f"{name} was ended before it was done" for name, done in ended.items() if not done]
    (where,) = [row for row in found["rates"] if "platform" in row] or [{}]
    attrs = {"notes": json.dumps(notes), "devices": where.get("device", "unknown")}
    return {
        "accuracy": errors([row for row in found["accuracy"] if "error" in row]),
        "rates": rates([row for row in timed if "form" in row]).assign_attrs(attrs),
        "peak": xr.Dataset(
            {"flops": ("turn", [row["flops"] for row in found["rates"] if "flops" in row])}
        ),
        "resumed": xr.Dataset(
            {
                name: ("time", [row[name] for row in found["resumed"] if "differs" in row])
                for name in ("differs", "control", "killed")
            }
        ),
        "edge": verdicts([row for row in found.get("edge", []) if "verdict" in row]),
    }


def errors(rows: list[Row]) -> xr.Dataset:
    """{"error", "control"} by quantity and seed."""
    quantities = [*dict.fromkeys(row["quantity"] for row in rows)]
    seeds = sorted({row["seed"] for row in rows})
    of = {(row["quantity"], row["seed"]): row for row in rows}
    return xr.Dataset(
        {
            name: (
                ("quantity", "seed"),
                np.array(
                    [[of.get((q, s), {}).get(name, np.nan) for s in seeds] for q in quantities]
                ).reshape(len(quantities), len(seeds)),
            )
            for name in ("error", "control")
        },
        {"quantity": quantities, "seed": seeds},
    )


def rates(rows: list[Row]) -> xr.Dataset:
    """Seconds of a member's step by form, sweep, runs and turn."""
    letters, runs, turns = (
        sorted({row[name] for row in rows}) for name in ("problem", "runs", "turn")
    )
    shape = (len(FORMS), len(letters), len(runs), len(turns))
    seconds = np.full(shape, np.nan)
    for row in rows:
        at = letters.index(row["problem"]), runs.index(row["runs"]), turns.index(row["turn"])
        seconds[(FORMS.index(row["form"]), *at)] = row["seconds"] / row["runs"] / row["steps"]
    return xr.Dataset(
        {
            "seconds": (("form", "problem", "runs", "turn"), seconds),
            "flops": ("problem", [problems()[letter].flops for letter in letters]),
        },
        {"form": list(FORMS), "problem": letters, "runs": runs, "turn": turns},
    )


def verdicts(rows: list[Row]) -> xr.Dataset:
    """Of each claim of another experiment: whether it fails, and whether its control would pass."""

    def outside(one: Row, band: Sequence[Any]) -> bool:
        low, high = map(float, one["interval"])
        return high < float(band[0]) or low > float(band[1])

    return xr.Dataset(
        {
            "fails": ("claim", np.array([row["verdict"] == "fail" for row in rows], bool)),
            "control_fails": (
                "claim",
                np.array([outside(row["control"], row["tolerance"]) for row in rows], bool),
            ),
        },
        {"claim": [row["statement"] for row in rows]},
    )


def whole(seconds: xr.DataArray, *forms: str) -> list[xr.DataArray]:
    """Of one sweep the seconds of these forms, at the runs where every turn was timed."""
    given = seconds.sel(form=list(forms)).dropna("runs", how="any")
    return [given.sel(form=form, drop=True) for form in forms]


def middle(seconds: xr.DataArray) -> xr.DataArray:
    """The median over turns, of those that were timed."""
    return seconds.median("turn", skipna=True)


def mean(ratio: xr.DataArray) -> xr.DataArray:
    """Geometric, over numbers of runs."""
    return ratio.reduce(lambda a, axis: np.exp(np.log(a).mean(axis)), "runs")


def to_best(seconds: xr.DataArray, i: int) -> xr.DataArray:
    """Seconds at the i-th number of runs to those at the best of the others, by turn."""
    others = seconds.drop_isel(runs=[i % seconds.sizes["runs"]])
    best = int(np.argmin(others.mean("turn").values))
    return seconds.isel(runs=i, drop=True) / others.isel(runs=best, drop=True)


def peak_share(data: Mapping[str, xr.Dataset]) -> xr.DataArray:
    """Of the peak in float32, by sweep and runs: what the engine's matrix products reach."""
    rates, peak = data["rates"], data["peak"].flops.median()
    return rates.flops / middle(rates.seconds.sel(form="sweep", drop=True)) / peak


def tables(data: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """For the json: medians over turns, and what was not measured."""
    rates = data["rates"]

    def cells(values: xr.DataArray) -> dict[str, Any]:
        if values.ndim == 0:
            return float(f"{float(values):.4g}")  # type: ignore[return-value]
        dim = values.dims[0]
        kept = values.dropna(dim, how="all")
        return {str(kept[dim].values[i]): cells(kept[i]) for i in range(kept.sizes[dim])}

    both = [letter for letter in "af" if letter in rates.problem]
    steps = 1 / middle(rates.seconds)
    cost = [middle(rates.seconds.sel(problem=letter, form="sweep")) for letter in both]
    return {
        "device": rates.attrs["devices"],
        "not measured": json.loads(rates.attrs["notes"]),
        "member-steps a second, by form, sweep and runs": cells(steps),
        "the engine's matrix products, share of the peak in float32": cells(peak_share(data)),
        "peak in float32, products a second": float(data["peak"].flops.median()),
        "(f) to (a), the engine": cells(cost[1] / cost[0]) if len(cost) > 1 else {},
        "the edge of stability": [str(claim) for claim in data["edge"].claim.values],
    }
