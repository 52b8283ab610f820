"""Faces over one VAE: train, reconstruct, sample, morph, arith.

From Python: `facevae.load("default")` gives a `facevae.Model`. The public names are imported when
they are first used, so that `import facevae` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facevae.api import Model, load
    from facevae.errors import (
        DataError,
        FacevaeError,
        ImageError,
        LatentsError,
        ModelError,
        NoFaceError,
        ProcessError,
        RunError,
        UsageError,
    )

    __version__: str

__all__ = [
    "DataError",
    "FacevaeError",
    "ImageError",
    "LatentsError",
    "Model",
    "ModelError",
    "NoFaceError",
    "ProcessError",
    "RunError",
    "UsageError",
    "__version__",
    "load",
]

# public name → the module that defines it; all others are in `facevae.errors`
_MODULES = {"Model": "facevae.api", "load": "facevae.api"}


def __getattr__(name: str) -> Any:
    """A public name, imported on first use."""
    if name not in __all__:
        msg = f"module 'facevae' has no attribute '{name}'"
        raise AttributeError(msg)
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("facevae")
    else:
        value = getattr(import_module(_MODULES.get(name, "facevae.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
