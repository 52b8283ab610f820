"""What users see: results on stdout, talk and progress on stderr. The only module that uses rich."""

import atexit
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_SECONDS_A_LINE = 30.0


class Console:
    """Talks to the user; `quiet` leaves only warnings, errors and results, `as_json` one object."""

    # there is one terminal, so there is one set of bars, which any console can take down
    _progress: ClassVar[Progress | None] = None
    _tasks: ClassVar[dict[str, TaskID]] = {}

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        self._rich = RichConsole(stderr=True, highlight=False)
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """A line for people, on stderr."""
        if not self.quiet:
            self._rich.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that `quiet` does not silence, on stderr."""
        self._rich.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)

    def error(self, text: str) -> None:
        """The one line that a failed command ends with, on stderr."""
        self.close()
        self._rich.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)

    def result(self, lines: Sequence[object], values: Mapping[str, Any]) -> None:
        """The command's result on stdout: `lines`, or `values` as one JSON object."""
        self.close()
        if self.as_json:
            sys.stdout.write(json.dumps(values, indent=2) + "\n")
        else:
            sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table on stdout; columns of numbers stand to the right, and what is None is a dash."""
        self.close()
        table = Table()
        for i, column in enumerate(columns):
            cells = [row[i] for row in rows if row[i] is not None]
            is_number = bool(cells) and all(isinstance(cell, int | float) for cell in cells)
            justify: Literal["left", "right"] = "right" if is_number else "left"
            table.add_column(column, justify=justify, overflow="fold", no_wrap=i == 0)
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row))
        console = RichConsole(highlight=False)
        console.print(Text(title, style="bold"), soft_wrap=True)
        console.print(table)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """A bar on a terminal; elsewhere a line now and then."""
        if self.quiet:
            return
        if not self._rich.is_terminal:
            now = time.monotonic()
            if now - self._last_line > _SECONDS_A_LINE or done == total:
                self._last_line = now
                self.say(f"{task}: {done:,} of {total:,}  {note}".rstrip())
            return
        if Console._progress is None:
            Console._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._rich,
            )
            Console._progress.start()
            atexit.register(self.close)  # whatever happens, the terminal gets its cursor back
        bars = Console._progress
        if task not in self._tasks:
            for earlier in self._tasks.values():
                bars.update(earlier, visible=False)  # one bar at a time, so that it has room
            self._tasks[task] = bars.add_task(task, total=total, completed=done, note=note)
        bars.update(self._tasks[task], completed=done, total=total, note=note)

    @classmethod
    def close(cls) -> None:
        """Take down the bars, so that what follows stands below them."""
        if cls._progress is not None:
            cls._progress.stop()
            cls._progress = None
            cls._tasks.clear()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
