"""Errors and progress of the Hugging Face Hub's client: which there are, and how to present them."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hushed(*, progress: bool = True) -> Iterator[None]:
    """Silence the client's log of retries inside the block, and its progress bars unless `progress`."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity, set_verbosity_error
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hides_bars = not (progress or are_progress_bars_disabled())
    if hides_bars:
        disable_progress_bars()
    verbosity = get_verbosity()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(verbosity)
        if hides_bars:
            enable_progress_bars()


def client_errors() -> tuple[type[Exception], ...]:
    """Exceptions of the client, and of the HTTP library below it, which depends on its version."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    return (http_error, EntryNotFoundError, OSError, ValueError)


def refusal(error: BaseException, missing: str) -> str | None:
    """Why the Hub refuses access to a repository, and what to do; None for other failures.

    `missing` is the message for a repository that does not exist.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    known = {  # the first match counts
        GatedRepoError: "is gated; ask for access on its page and log in with `hf auth login`",
        RepositoryNotFoundError: f"{missing} (a private one needs `hf auth login`)",
        RevisionNotFoundError: "the repository has no such revision",
    }
    return next((reason for kind, reason in known.items() if isinstance(error, kind)), None)
