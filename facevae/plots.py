"""What figures are drawn and kept with. Needs the extra `plot` (matplotlib)."""

import io
import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from facevae.errors import UsageError
from facevae.files import replacing
from facevae.images import Pixels

# ink that is read on paper and on a dark page, and between them where a viewer cannot tell which
_INK = (
    "svg{color:#777;fill:currentColor}"
    "@media (prefers-color-scheme:light){svg{color:#222}}"
    "@media (prefers-color-scheme:dark){svg{color:#ddd}}"
)


def is_available() -> bool:
    """Whether matplotlib is there to draw with."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its caches are its own affair
    try:
        import matplotlib as mpl  # noqa: F401 - an extra
    except ImportError:
        return False
    return True


def require_plots() -> None:
    """Raise `UsageError` where nothing can be drawn."""
    if not is_available():
        msg = "curves need the extra 'plot': pip install 'facevae[plot]'"
        raise UsageError(msg)


def pin(
    axes: Any, picture: Pixels, point: tuple[float, float], place: tuple[float, float], size: float
) -> None:
    """Show `picture` at `place`, `size` points wide, with a line to `point` if it is elsewhere."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    box = OffsetImage(picture, zoom=size / picture.shape[1])
    arrow = {"arrowstyle": "-", "color": "grey", "lw": 0.7} if place != point else None
    axes.add_artist(AnnotationBbox(box, point, place, frameon=False, pad=0, arrowprops=arrow))


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format that the suffix names, atomically."""
    with plain_style(), replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def to_svg(figure: Any) -> str:
    """A figure as SVG without a background, in ink for light and dark pages."""
    text = io.StringIO()
    unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with plain_style():
        figure.savefig(text, format="svg", transparent=True, metadata=unsaid)
    inked = text.getvalue().replace("#000000", "currentColor")
    return inked.replace('<style type="text/css">', f'<style type="text/css">{_INK}', 1)


def plain_style() -> AbstractContextManager[None]:
    """No matter how people have set up their own plots; names in an SVG are the same each time."""
    from matplotlib import style

    context: AbstractContextManager[None] = style.context(["default", {"svg.hashsalt": "facevae"}])
    return context


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, which nothing else knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="tight")
