"""Commands in one new process: starting one for each would take most of the time."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# a function for scripts: the values of a `Done`
ANSWER = """
import contextlib, io, json, sys
def answer(main, arguments):
    sys.argv = ["facevae", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        except ImportError as error:
            code = repr(error)
    return code, out.getvalue(), err.getvalue()
"""
_SCRIPT = f"""
{ANSWER}
commands, missing = map(json.loads, sys.argv[1:])
sys.modules.update(dict.fromkeys(missing))
from facevae.cli import main
print(json.dumps([answer(main, command) for command in commands]))
"""


class Done(NamedTuple):
    """Exit code, or what could not be imported, and output of a command."""

    code: int | str
    out: str
    err: str


def refusals(
    place: Path, commands: Sequence[Sequence[str]], missing: Sequence[str] = ()
) -> list[Done]:
    """What each command did in `place`, where none may leave a file; `missing` cannot be imported."""
    before = set(place.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(commands), json.dumps(missing)],
        capture_output=True,
        text=True,
        check=True,
        cwd=place,
        env={**os.environ, "FACEVAE_CACHE": str(place / "refused"), "COLUMNS": "100"},
    )
    assert set(place.rglob("*")) == before
    return [Done(*found) for found in json.loads(done.stdout.splitlines()[-1])]
