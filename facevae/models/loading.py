"""Load models by any of their names."""

from facevae.errors import ModelError
from facevae.models.bundle import Bundle, load
from facevae.models.hub import DEFAULT, Located, damage_message, locate


def load_model(name: str = DEFAULT, *, quiet: bool = False) -> tuple[Bundle, Located]:
    """Find, as `hub.locate` does, and read a model. Raises `ModelError`."""
    located = locate(name, quiet=quiet)
    return read_model(located), located


def read_model(located: Located) -> Bundle:
    """Read a model that was found. Raises `ModelError`, which names the model as users do."""
    try:
        return load(located.path, located.name if located.commit else None)
    except ModelError as error:
        if damaged := damage_message(located):
            raise ModelError(damaged) from error
        raise
