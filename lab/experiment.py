"""`main`: an experiment's command line, from presets to claims table, figure and provenance.

An experiment is a module with

    PRESETS   {"quick": Config(...), "paper": Config(...)}; Config is a frozen dataclass
              that cannot be made with what cannot be run (`__post_init__` raises BadInput)
    run       run(config, store) -> {name: Dataset}; its sweeps are stored below the folder `store`
    expected  expected(config) -> {name: Expected}; the claims, which know no data
    measured  measured(data) -> {name: (values, control's values)}, or why there are none
    figure    figure(data) -> Figure; computes nothing
    tables    optional: tables(data) -> dict, put into the json
    x64       optional: True where its claims need float64
    DIVERGES  optional: {name of a Dataset: the claim by which its runs may diverge}

and ends in `if __name__ == "__main__": main(__name__)`. Its docstring's first line is its claim;
the folder it is in is its subject.

Exit status: 0 ran and no claim failed, 1 a claim failed, 2 bad input, 3 it broke (a traceback says
where), 130 interrupted (resumable).
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import jax

from lab.claims import judged
from lab.report import finite, plain, print_claims, print_expected
from lab.types import BadInput

RUNS, FIGURES = Path("runs"), Path("figures")
LAB = Path(__file__).absolute().parent
VERSIONS_OF = ("jax", "jaxlib", "flax", "optax", "numpy", "matfree", "xarray", "zarr")


@dataclasses.dataclass(frozen=True)
class Options:
    """What every experiment can be asked, beside its own fields."""

    claims: bool = False
    """Print what is expected, and why so wide, before anything runs; run nothing."""
    fresh: bool = False
    """Start over: what an earlier run of this preset left is replaced once this one is done."""
    resume: bool = False
    """Insist on going on with a stored run (it goes on by itself where there is one)."""
    plot: bool = False
    """Redraw from the finished run, computing nothing."""
    into: Path = RUNS
    """The folder below which stores and results are kept."""


def main(name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run the experiment in module `name` as its command line says, and exit with its status.

    Args:
        name: `__name__` of the experiment.
        argv: arguments instead of the command line's.
    """
    experiment = sys.modules[name]
    try:
        status = _main(experiment, list(sys.argv[1:] if argv is None else argv))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        status = 130
    except Exception:
        traceback.print_exc()
        status = 3
    sys.exit(status)


def seeds(config: Any) -> range:
    """Those a config asks for: `seeds` of them from `first_seed` on."""
    return range(config.first_seed, config.first_seed + config.seeds)


def sources(file: Path) -> str:
    """A digest of all code that the experiment in `file` may run: its own, its folder's, lab's.

    Its own file, what is in packages beside it (no experiment imports another), and the whole lab.
    Contents count and times do not: a checkout changes the one without the other, either way.
    """
    own, beside, engine = [file], file.parent.glob("*/**/*.py"), LAB.rglob("*.py")
    digest = hashlib.sha256()
    for top, found in ((file.parent, [*own, *sorted(beside)]), (LAB.parent, sorted(engine))):
        for one in found:
            held = hashlib.sha256(one.read_bytes()).hexdigest()
            digest.update(f"{one.relative_to(top).as_posix()} {held}\n".encode())
    return digest.hexdigest()[:16]


def _main(experiment: ModuleType, argv: list[str]) -> int:
    name = _stem(experiment)
    preset, config, options = _parsed(experiment, name, argv)
    jax.config.update("jax_enable_x64", getattr(experiment, "x64", False))
    _cache_compilations()
    if options.claims:
        print_expected(experiment.expected(config))
        return 0

    folder = options.into / name / preset
    _mend(folder)
    if options.plot:
        data = _finished(folder, config)
    else:
        if options.resume and not folder.exists():
            raise BadInput(f"--resume: there is nothing in {folder}; leave it out to start")
        data = _run(experiment, config, folder, options.fresh)
    seconds = _seconds(folder)
    claims = judged(experiment.expected(config), experiment.measured(data))
    unmodified = preset == "paper" and config == experiment.PRESETS["paper"]
    subject = _file(experiment).parent.name
    target = FIGURES / subject / name if unmodified else folder / name

    from lab.plotting import saved

    files = saved(experiment.figure(data), target)
    diverged = _diverged(experiment, data)
    report = {
        "experiment": name,
        "subject": subject,
        "claim": _summary(experiment),
        "preset": preset,
        "config": dataclasses.asdict(config),
        "claims": [plain(claim) for claim in claims],
        "diverged": diverged,
        **_provenance(data, folder, seconds),
    }
    if hasattr(experiment, "tables"):
        report["tables"] = experiment.tables(data)
    target.with_suffix(".json").write_text(json.dumps(finite(report), indent=1) + "\n")
    print_claims(claims)
    for name, found in diverged.items():
        because = f", as expected: {found['expected']}" if found["expected"] else ""
        print(f"{name}: {found['diverged']} of {found['runs']} runs diverged{because}")
    print(f"{seconds:.0f} s of computing", target.with_suffix(".json"), *files, sep="\n")
    return int(any(claim.verdict == "fail" for claim in claims))


def _parsed(experiment: ModuleType, name: str, argv: list[str]) -> tuple[str, Any, Any]:
    """Preset, config and options from the command line."""
    import tyro

    preset = argv.pop(0) if argv and not argv[0].startswith("-") else "quick"
    if preset not in experiment.PRESETS:
        raise BadInput(f"preset: {preset!r} is not one of {', '.join(experiment.PRESETS)}")
    wanted = type(experiment.PRESETS[preset])
    for field in {*Options.__dataclass_fields__} & {*wanted.__dataclass_fields__}:
        raise BadInput(f"Config: {field} is an option of every experiment; give it another name")
    # Parsed without the config's own checks, whose one line tyro would turn into a box.
    as_it_is = {**vars(wanted), "__post_init__": lambda self: None}
    unchecked: Any = type(wanted.__name__, (wanted,), as_it_is)
    default = unchecked(**vars(experiment.PRESETS[preset]))

    flat, flags = tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff
    groups: Any = dataclasses.make_dataclass(
        "groups", [("experiment", flat[unchecked]), ("every_experiment", flat[flags[Options]])]
    )
    given = tyro.cli(
        groups,
        default=groups(default, Options()),
        args=argv,
        prog=f"python -m experiments {name} {preset}",
        description=f"{experiment.__doc__}\n\nPresets: {', '.join(experiment.PRESETS)}.",
    )
    config, options = wanted(**vars(given.experiment)), given.every_experiment
    if options.fresh and (options.resume or options.plot):
        raise BadInput("--fresh: replaces what --resume and --plot need; give one of them")
    return preset, config, options


def _file(experiment: ModuleType) -> Path:
    return Path(experiment.__file__ or "").absolute()


def _stem(experiment: ModuleType) -> str:
    return _file(experiment).stem


def _summary(experiment: ModuleType) -> str:
    return (experiment.__doc__ or "").strip().splitlines()[0]


def _cache_compilations() -> None:
    """A second start compiles nothing that a first one did."""
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(Path(".jax_cache").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _run(experiment: ModuleType, config: Any, folder: Path, fresh: bool) -> Any:
    """The experiment's Datasets, kept in the folder.

    A fresh run has a folder of its own until it is done: interrupted, it goes on there by the same
    command, and what it replaces is whole.
    """
    digest = hashlib.sha256(repr(config).encode()).hexdigest()[:8]
    begun = folder.with_name(f"{folder.name}.fresh-{digest}") if fresh else folder
    old, held = folder.with_name(f"{folder.name}.old"), begun.exists()
    code = _code(experiment)  # as it starts; it may be edited meanwhile
    try:
        with _timed(begun):
            data = dict(experiment.run(config, begun / "store"))
    except BadInput as error:
        if fresh and not held:
            shutil.rmtree(begun, ignore_errors=True)
        over = f" (or delete {begun})" if fresh else " (--fresh)"
        raise BadInput(f"{error}{over}" if "store" in str(error) else str(error)) from error
    _keep(data, config, code, begun)
    if fresh:
        if folder.exists():
            folder.rename(old)
        begun.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return data


def _mend(folder: Path) -> None:
    """What a kill left between the renamings of a fresh run that was done."""
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)


@contextmanager
def _timed(folder: Path) -> Iterator[None]:
    """Add the seconds spent inside to the folder's account, interrupted or not."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        if folder.exists():
            total = _seconds(folder) + time.perf_counter() - begun
            (folder / "seconds").write_text(f"{total:.1f}\n")


def _seconds(folder: Path) -> float:
    file = folder / "seconds"
    return float(file.read_text()) if file.exists() else 0.0


def _keep(data: Any, config: Any, code: Mapping[str, Any], folder: Path) -> None:
    """Keep the finished Datasets for `--plot`; the config, written last, says they are whole."""
    (folder / "config.json").unlink(missing_ok=True)
    for name, one in data.items():
        # Words of a fixed length have no specification in zarr, those of any length have.
        words = {key: c.astype(object) for key, c in one.coords.items() if c.dtype.kind == "U"}
        kept = one.assign_coords(words)
        kept.to_zarr(folder / "data" / f"{name}.zarr", mode="w", consolidated=False)
    kept_as = {"data": [*data], "config": dataclasses.asdict(config), "code": code}
    (folder / "config.json").write_text(json.dumps(kept_as, indent=1) + "\n")


def _finished(folder: Path, config: Any) -> dict[str, Any]:
    """The Datasets of a finished run of this very config."""
    import xarray as xr

    file = folder / "config.json"
    if not file.exists():
        raise BadInput(f"--plot: no finished run in {folder}; leave --plot out to make one")
    held = json.loads(file.read_text())
    if not {"config", "data", "code"} <= held.keys():
        raise BadInput(f"--plot: {folder} was kept by an earlier version; leave --plot out")
    for field, asked in json.loads(json.dumps(dataclasses.asdict(config))).items():
        before = held["config"].get(field)
        if before != asked:
            raise BadInput(f"--plot: {folder} was run with {field} {before}, not {asked}")
    return {
        name: xr.load_dataset(folder / "data" / f"{name}.zarr", engine="zarr", consolidated=False)
        for name in held["data"]
    }


def _diverged(experiment: ModuleType, data: Mapping[str, Any]) -> dict[str, Any]:
    """{Dataset: how many of its runs diverged, and by which claim they may}, where any did."""
    claimed = getattr(experiment, "DIVERGES", {})
    counted = {name: one.diverged_at for name, one in data.items() if "diverged_at" in one}
    return {
        name: {
            "diverged": int(at.notnull().sum()),
            "runs": int(at.size),
            "expected": claimed.get(name),
        }
        for name, at in counted.items()
        if at.notnull().any()
    }


def _provenance(data: Any, folder: Path, seconds: float) -> dict[str, Any]:
    """What it took: versions, commit, machine, layout, seconds."""
    layouts = {n: json.loads(d.attrs["layout"]) for n, d in data.items() if "layout" in d.attrs}
    return {
        **json.loads((folder / "config.json").read_text())["code"],
        "device": next((d.attrs["devices"] for d in data.values() if "devices" in d.attrs), None),
        "layout": layouts,
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
        "seconds": round(seconds, 1),
    }


def _code(experiment: ModuleType) -> dict[str, Any]:
    """What runs: versions, digest, and commits of the experiment and, where it differs, of lab."""
    ran, engine = _commit(_file(experiment)), _commit(Path(__file__))
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in VERSIONS_OF},
        },
        "sources": sources(_file(experiment)),
        "commit": ran,
        **({} if engine == ran else {"commit of lab": engine}),
    }


def _commit(file: Path) -> str | None:
    """The commit of the code in a file, marked where its tree differs in more than its figures."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # a folder may be in a tree and not of it
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/figures")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")
