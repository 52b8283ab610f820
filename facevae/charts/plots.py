"""Helpers to create and save matplotlib figures. Needs the extra `plot`."""

import io
import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from facevae.data.images import Pixels
from facevae.errors import UsageError
from facevae.system.files import replacing

# line and text colours that suit the viewer's light or dark colour scheme; a grey in between for
# viewers that do not report one
_INK = (
    "svg{color:#777;fill:currentColor}"
    "@media (prefers-color-scheme:light){svg{color:#222}}"
    "@media (prefers-color-scheme:dark){svg{color:#ddd}}"
)


def is_available() -> bool:
    """Whether matplotlib is installed."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no notices about its caches
    try:
        import matplotlib as mpl  # noqa: F401 - an extra
    except ImportError:
        return False
    return True


def require_plots() -> None:
    """Raise `UsageError` if matplotlib is not installed."""
    if not is_available():
        msg = "curves need the extra 'plot': pip install 'facevae[plot]'"
        raise UsageError(msg)


def pin(
    axes: Any, picture: Pixels, point: tuple[float, float], place: tuple[float, float], size: float
) -> None:
    """Draw `picture`, `size` points wide, at `place`, with a line to `point` if they differ."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    box = OffsetImage(picture, zoom=size / picture.shape[1])
    arrow = {"arrowstyle": "-", "color": "grey", "lw": 0.7} if place != point else None
    axes.add_artist(AnnotationBbox(box, point, place, frameon=False, pad=0, arrowprops=arrow))


def save(figure: Any, path: Path) -> None:
    """Write a figure atomically, in the format given by the suffix of `path`."""
    with plain_style(), replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def to_svg(figure: Any) -> str:
    """A figure as SVG with a transparent background, readable on light and dark pages."""
    text = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with plain_style():
        figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    recoloured = text.getvalue().replace("#000000", "currentColor")
    return recoloured.replace('<style type="text/css">', f'<style type="text/css">{_INK}', 1)


def plain_style() -> AbstractContextManager[None]:
    """A context with matplotlib's default style, whatever the user's, and repeatable ids in SVGs."""
    from matplotlib import style

    context: AbstractContextManager[None] = style.context(["default", {"svg.hashsalt": "facevae"}])
    return context


def new_figure(width: float, height: float) -> Any:
    """An empty figure of `width` × `height` inches, independent of pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="tight")
