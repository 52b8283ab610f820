"""Pages of HTML that need nothing else: no server, script, font or picture from elsewhere."""

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from facevae import plots
from facevae.errors import UsageError
from facevae.images import Pixels, encode_jpeg


@dataclass(frozen=True)
class Figure:
    """A picture on the page: its bytes as a `data:` address, and what it shows."""

    address: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first cell of each names the row."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Section:
    """A part of the page, with whatever it has."""

    title: str
    text: str = ""
    figures: Sequence[Figure] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    command: str = ""

    @property
    def key(self) -> str:
        """What links lead to."""
        return self.title.casefold().replace(" ", "-")


def require_pages() -> None:
    """Raise `UsageError` where pages cannot be made."""
    plots.require_plots()
    try:
        import jinja2  # noqa: F401 - an extra, though torch brings it
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
    """The page. All texts are escaped; `headlines` are figures and their names."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("facevae", "."),
        autoescape=True,  # names, labels and terms are other people's words
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
    """Pixels (H, W, 3) as a JPEG."""
    return Figure(_address("image/jpeg", encode_jpeg(pixels)), caption)


def drawing(figure: Any, caption: str) -> Figure:
    """A figure of `curves` as SVG."""
    return Figure(_address("image/svg+xml", plots.to_svg(figure).encode()), caption)


def table(title: str, values: Mapping[str, object]) -> Table:
    """Names and values in two columns."""
    return Table((title, "value"), [(name, text(value)) for name, value in values.items()])


def text(value: object) -> str:
    """A JSON value as people write it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
