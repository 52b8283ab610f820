"""User output: results on stdout, messages and progress on stderr. The only module to use rich."""

import atexit
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import RenderableType
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

_SECONDS_PER_LINE = 30.0  # between two lines of progress where there is no terminal
_SEPARATOR = " · "  # of the parts of a note, where it may be broken into lines
_BAR_WIDTH, _BESIDE_BAR = 40, 45  # in characters: of a bar, and of the text beside it
_GAP = 2  # characters between two columns of a table


def is_heard() -> bool:
    """Whether this process writes messages: of those that `torchrun` started, only the first."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun: `1 face`, `2 faces`; the plural is `many`, or `one` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


class Console:
    """Writes to the user.

    With `quiet` only warnings, errors and results are written. With `as_json` the result is one
    JSON object.
    """

    # there is one terminal, hence one set of bars, which any console can remove
    _progress: ClassVar[Progress | None] = None
    _tasks: ClassVar[dict[str, TaskID]] = {}
    is_quiet: ClassVar[bool] = False  # the setting of the newest console

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet or not is_heard(), as_json
        Console.is_quiet = quiet
        self._rich = RichConsole(stderr=True, highlight=False)
        self._last_line = 0.0
        # the time and count at the first progress of each task
        self._begun: dict[str, tuple[float, int]] = {}

    def say(self, text: str) -> None:
        """Write a line on stderr, unless `quiet`."""
        if not self.quiet:
            self._rich.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Write a warning on stderr, even if `quiet`."""
        if is_heard():
            self._rich.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)

    def error(self, text: str) -> None:
        """Write the one line that a failed command ends with, on stderr."""
        self.close()
        self._rich.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)

    def result(self, lines: Sequence[object], values: Mapping[str, Any]) -> None:
        """Write the command's result on stdout: `lines`, or `values` as one JSON object."""
        self.close()
        if self.as_json:
            sys.stdout.write(json.dumps(values, indent=2) + "\n")
        else:
            sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Write a table on stdout; columns of numbers are right-aligned, and None is a dash.

        Cells that are too wide are broken between words. If there is still too little room, each
        row becomes a paragraph. If stdout is no terminal, no line is broken.
        """
        self.close()
        cells = [[_cell(value) for value in row] for row in rows]
        texts_by_column = [[name, *(row[i] for row in cells)] for i, name in enumerate(columns)]
        natural = [max(map(_width, texts)) for texts in texts_by_column]
        least = [natural[0], *(max(map(_longest_word, texts)) for texts in texts_by_column[1:])]
        console = RichConsole(highlight=False)
        if not (console.is_terminal or "COLUMNS" in os.environ):
            console.width = max(console.width, sum(natural) + _GAP * len(natural))
        widths = fitted(natural, least, console.width - _GAP * (len(columns) - 1))
        console.print(Text(title, style="bold"), soft_wrap=True)
        if widths is None:
            for row in cells:
                console.print(Text(_paragraph(columns, row)), soft_wrap=True)
            return
        table = Table(
            box=SIMPLE_HEAD,
            show_edge=False,
            show_header=any(columns),
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),
        )
        for i, (column, width) in enumerate(zip(columns, widths, strict=True)):
            values = [row[i] for row in rows if row[i] is not None]
            is_number = bool(values) and all(isinstance(value, int | float) for value in values)
            table.add_column(column, justify="right" if is_number else "left", width=width)
        for row in cells:
            table.add_row(*map(Text, row))
        console.print(table)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Show progress: on a terminal a bar with `note` below it, elsewhere a line now and then.

        A note that is too long for the terminal's width is broken at " · ".
        """
        if self.quiet:
            return
        if not self._rich.is_interactive:
            self._line(task, done, total, note)
            return
        if Console._progress is None:
            Console._progress = _Bars(
                TextColumn("{task.description}"),
                BarColumn(max(5, min(_BAR_WIDTH, self._rich.width - _BESIDE_BAR))),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._rich,
            )
            Console._progress.start()
            atexit.register(self.close)  # so that the terminal always gets its cursor back
        bars = Console._progress
        if task not in self._tasks:
            for earlier in self._tasks.values():
                bars.update(earlier, visible=False)  # one bar at a time
            self._tasks[task] = bars.add_task(task, total=total, completed=done, note=note)
        bars.update(self._tasks[task], completed=done, total=total, note=note)

    def _line(self, task: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        begun, first = self._begun.setdefault(task, (now, done))
        if now - self._last_line <= _SECONDS_PER_LINE and done != total:
            return
        self._last_line = now
        left = ""
        if first < done < total:
            left = f", {duration((now - begun) / (done - first) * (total - done))} left"
        self.say(f"{task}: {done:,} of {total:,}{left}  {note}".rstrip())

    @classmethod
    def close(cls) -> None:
        """Remove the bars, so that later output appears below them."""
        if cls._progress is not None:
            cls._progress.stop()
            cls._progress = None
            cls._tasks.clear()


class _Bars(Progress):
    """Progress bars, each with its note below, broken into lines that fit the terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.visible and task.fields["note"]:
                lines = packed(task.fields["note"].split(_SEPARATOR), self.console.width)
                yield Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def packed(parts: Sequence[str], width: int) -> list[str]:
    """Join the parts into lines of up to `width` characters; no part is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(_SEPARATOR) + len(part) <= width:
            lines[-1] += _SEPARATOR + part
        else:
            lines.append(part)
    return lines


def fitted(natural: Sequence[int], least: Sequence[int], room: int) -> list[int] | None:
    """Widths of a table's columns, each between `least` and `natural`; None if `room` is too small.

    Columns that need the fewest extra characters are widened first, so that few cells are broken.
    """
    spare = room - sum(least)
    if spare < 0:
        return None
    widths = list(least)
    for i in sorted(range(len(widths)), key=lambda i: natural[i] - least[i]):
        widths[i] = min(natural[i], least[i] + spare)
        spare -= widths[i] - least[i]
    return widths


def duration(seconds: float) -> str:
    """A time span as `1 h 02 min`, `3 min 05 s` or `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _width(text: str) -> int:
    return max(map(cell_len, text.splitlines() or [""]))


def _longest_word(text: str) -> int:
    # a word is never broken, nor separated from the indentation of its line
    return max(
        (
            cell_len(line) - cell_len(line.lstrip()) + max(map(cell_len, line.split()), default=0)
            for line in text.splitlines()
        ),
        default=0,
    )


def _paragraph(columns: Sequence[str], cells: Sequence[str]) -> str:
    """A row of a table as lines: the first cell, then the others with their columns' names."""
    lines = [cells[0]]
    for column, cell in zip(columns[1:], cells[1:], strict=True):
        text = cell.replace("\n", "\n    " if column else "\n  ")
        lines.append(f"  {column}: {text}" if column else f"  {text}")
    return "\n".join(lines)
