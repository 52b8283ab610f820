"""What users see: results on stdout, talk and progress on stderr. The only module that uses rich."""

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

_SECONDS_A_LINE = 30.0
_BETWEEN = " · "  # the parts of a note, which may stand on lines of their own
_BAR_WIDTH, _BESIDE_BAR = 40, 45  # columns: of a bar, and of what stands beside it
_GAP = 2  # columns between those of a table


def is_heard() -> bool:
    """Whether this process may talk: of several that `torchrun` started, the first one."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def counted(count: int, one: str, many: str = "") -> str:
    """`1 face`, `2 faces`: so many of something, whose plural is `many` or ends in s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


class Console:
    """Talks to the user; `quiet` leaves only warnings, errors and results, `as_json` one object."""

    # there is one terminal, so there is one set of bars, which any console can take down
    _progress: ClassVar[Progress | None] = None
    _tasks: ClassVar[dict[str, TaskID]] = {}
    is_quiet: ClassVar[bool] = False  # as the last one was

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet or not is_heard(), as_json
        Console.is_quiet = quiet
        self._rich = RichConsole(stderr=True, highlight=False)
        self._last_line = 0.0
        self._begun: dict[str, tuple[float, int]] = {}  # when a task was first told, and how far

    def say(self, text: str) -> None:
        """A line for people, on stderr."""
        if not self.quiet:
            self._rich.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that `quiet` does not silence, on stderr."""
        if is_heard():
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
        """A table on stdout; columns of numbers stand to the right, and what is None is a dash.

        Cells are broken between words. Where even so there is too little room, every row becomes
        a paragraph of its own. Where there is no terminal, no line is broken.
        """
        self.close()
        cells = [[_cell(value) for value in row] for row in rows]
        columns_of = [[name, *(row[i] for row in cells)] for i, name in enumerate(columns)]
        natural = [max(map(_width, texts)) for texts in columns_of]
        least = [natural[0], *(max(map(_longest_word, texts)) for texts in columns_of[1:])]
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
        """A bar with `note` below it on a terminal; elsewhere a line now and then.

        Where a line has no room for all of `note`, it is broken at " · ".
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
            atexit.register(self.close)  # whatever happens, the terminal gets its cursor back
        bars = Console._progress
        if task not in self._tasks:
            for earlier in self._tasks.values():
                bars.update(earlier, visible=False)  # one bar at a time, so that it has room
            self._tasks[task] = bars.add_task(task, total=total, completed=done, note=note)
        bars.update(self._tasks[task], completed=done, total=total, note=note)

    def _line(self, task: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        begun, first = self._begun.setdefault(task, (now, done))
        if now - self._last_line <= _SECONDS_A_LINE and done != total:
            return
        self._last_line = now
        left = ""
        if first < done < total:
            left = f", {duration((now - begun) / (done - first) * (total - done))} left"
        self.say(f"{task}: {done:,} of {total:,}{left}  {note}".rstrip())

    @classmethod
    def close(cls) -> None:
        """Take down the bars, so that what follows stands below them."""
        if cls._progress is not None:
            cls._progress.stop()
            cls._progress = None
            cls._tasks.clear()


class _Bars(Progress):
    """The bars, each with its note below, in as many lines as the terminal's width asks for."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.visible and task.fields["note"]:
                lines = packed(task.fields["note"].split(_BETWEEN), self.console.width)
                yield Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def packed(parts: Sequence[str], width: int) -> list[str]:
    """The parts in lines of up to `width` columns, none of them broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(_BETWEEN) + len(part) <= width:
            lines[-1] += _BETWEEN + part
        else:
            lines.append(part)
    return lines


def fitted(natural: Sequence[int], least: Sequence[int], room: int) -> list[int] | None:
    """Widths of a table's columns, between `least` and `natural`; None if there is too little room.

    Columns that need the least more are widened first, so that few cells are broken.
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
    """`1 h 02 min`, `3 min 05 s` or `12 s`."""
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
    # a word is never broken, nor is it parted from its line's indentation
    return max(
        (
            cell_len(line) - cell_len(line.lstrip()) + max(map(cell_len, line.split()), default=0)
            for line in text.splitlines()
        ),
        default=0,
    )


def _paragraph(columns: Sequence[str], cells: Sequence[str]) -> str:
    """A row of a table as lines: the first cell, then the others below it, by their columns."""
    lines = [cells[0]]
    for column, cell in zip(columns[1:], cells[1:], strict=True):
        text = cell.replace("\n", "\n    " if column else "\n  ")
        lines.append(f"  {column}: {text}" if column else f"  {text}")
    return "\n".join(lines)
