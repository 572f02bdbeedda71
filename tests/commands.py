"""An experiment's commands, each as a user gives it, one after another in one process.

    python -W error -m tests.commands NAME '[["paper", "--plot"], ...]'

prints, as json, what each left: status, standard output and error, files below runs/ and figures/
with their times. A process for each would spend most of its time in starting.
"""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path


def done(name: str, arguments: list[str]) -> dict[str, object]:
    """Run one command as `python -m experiments.NAME` does, and say what came of it."""
    sys.argv = [f"experiments.{name}", *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = int(end.code or 0)
    files = {
        str(file): file.stat().st_mtime_ns
        for folder in ("runs", "figures")
        for file in sorted(Path(folder).rglob("*"))
    }
    return {"status": status, "out": out.getvalue(), "err": err.getvalue(), "files": files}


if __name__ == "__main__":
    name, given = sys.argv[1:]
    print(json.dumps([done(name, each) for each in json.loads(given)]))
