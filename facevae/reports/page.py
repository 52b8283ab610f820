"""Self-contained HTML pages, which load no scripts, fonts or pictures from elsewhere."""

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from facevae.charts import plots
from facevae.data.images import Pixels, encode_jpeg
from facevae.errors import UsageError


@dataclass(frozen=True)
class Figure:
    """A picture on the page, with its bytes as a `data:` URL."""

    address: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table whose first cell in each row is that row's heading."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Section:
    """A part of the page; empty fields are left out."""

    title: str
    text: str = ""
    figures: Sequence[Figure] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    command: str = ""

    @property
    def key(self) -> str:
        """The element id that links refer to."""
        return self.title.casefold().replace(" ", "-")


def require_pages() -> None:
    """Raise `UsageError` if matplotlib or Jinja is not installed."""
    plots.require_plots()
    try:
        import jinja2  # noqa: F401 - an extra, though torch requires it
    except ImportError as error:
        msg = "pages need the extra 'plot': pip install 'facevae[plot]'"
        raise UsageError(msg) from error


def render(
    title: str,
    status: str,
    headlines: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    warning: str = "",
) -> str:
    """The page as HTML, with all text escaped. `headlines` are pairs of a label and a value."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("facevae.reports", "."),
        autoescape=True,  # names, labels and terms are untrusted text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html").render(
        title=title,
        status=status,
        headlines=headlines,
        sections=sections,
        warning=warning,
        version=version("facevae"),
        made=time.strftime("%Y-%m-%d %H:%M"),
    )


def photo(pixels: Pixels, caption: str) -> Figure:
    """Pixels (H, W, 3) as a JPEG picture."""
    return Figure(_address("image/jpeg", encode_jpeg(pixels)), caption)


def drawing(figure: Any, caption: str) -> Figure:
    """A matplotlib figure as an SVG picture."""
    return Figure(_address("image/svg+xml", plots.to_svg(figure).encode()), caption)


def table(title: str, values: Mapping[str, object]) -> Table:
    """A table of names and values in two columns."""
    return Table((title, "value"), [(name, text(value)) for name, value in values.items()])


def text(value: object) -> str:
    """A JSON value as readable text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
