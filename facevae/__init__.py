"""Faces over one VAE: train, reconstruct, sample, morph, arith.

From Python: `facevae.load("default")` gives a `facevae.Model`. What it needs is imported when it is
first asked for, so that `import facevae` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facevae.api import Model, load
    from facevae.errors import FacevaeError

    __version__: str

__all__ = ["FacevaeError", "Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """What is in `__all__`, imported at its first use."""
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("facevae")
    elif name in ("Model", "load"):
        from facevae import api

        found = getattr(api, name)
    elif name == "FacevaeError":
        from facevae import errors

        found = errors.FacevaeError
    else:
        msg = f"module 'facevae' has no attribute '{name}'"
        raise AttributeError(msg)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
