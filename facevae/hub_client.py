"""What the Hugging Face Hub's client raises and shows, in words of our own."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hushed(*, progress: bool = True) -> Iterator[None]:
    """Inside, the client does not talk of its retries, nor without `progress` show its own."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity, set_verbosity_error
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hides = not (progress or are_progress_bars_disabled())
    if hides:
        disable_progress_bars()
    verbosity = get_verbosity()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(verbosity)
        if hides:
            enable_progress_bars()


def client_errors() -> tuple[type[Exception], ...]:
    """What the client raises, and the HTTP library below it, another one by its version."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    return (http_error, EntryNotFoundError, OSError, ValueError)


def refusal(error: BaseException, missing: str) -> str | None:
    """Why the Hub does not give a repository, and what to do; None for other failures.

    `missing` says that there is none.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    known = {  # the first that fits
        GatedRepoError: "is gated; ask for access on its page and log in with `hf auth login`",
        RepositoryNotFoundError: f"{missing} (a private one needs `hf auth login`)",
        RevisionNotFoundError: "the repository has no such revision",
    }
    return next((reason for kind, reason in known.items() if isinstance(error, kind)), None)
