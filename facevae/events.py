"""A run's records as TensorBoard event files. Needs the extra `tensorboard` (tensorboardX)."""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from facevae.errors import FacevaeError, ImageError, UsageError
from facevae.files import inside
from facevae.images import picture_size

_PREFIX = "events"
_PLACES = ("event", "step", "images", "latents", "seconds", "epoch")  # what says when, not how good


def require_tensorboard() -> None:
    """Raise `UsageError` where event files cannot be written."""
    try:
        import tensorboardX  # noqa: F401 - an extra, asked for only when used
    except ImportError as error:
        msg = "--tensorboard needs the extra 'tensorboard': pip install 'facevae[tensorboard]'"
        raise UsageError(msg) from error


class Events:
    """Event files in a folder, which say what the records in `metrics.jsonl` say.

    Scalars, histograms and pictures stand at the number of images seen, those of the prior at that
    of latents. Records are written as
    they come, without threads; since a run that goes on may step back, `begin` writes all that
    there are anew, so that no point is there twice.
    """

    def __init__(self, folder: Path, pictures: Path) -> None:
        """`pictures` is where those are that records name."""
        self._folder, self._pictures = folder, pictures
        self._writer: Any = None
        self._origin = 0.0

    def begin(self, about: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
        """Replace what the folder holds by these records; `about`, the run's settings, is a text."""
        require_tensorboard()
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.close()
        known = list(records)
        # times on the wall such that the hours a run has rested are not among those it has run
        self._origin = time.time() - (known[-1]["seconds"] if known else 0.0)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for earlier in self._folder.glob(f"{_PREFIX}.out.tfevents.*"):
                _retire(earlier)
            self._writer = EventsWriter(str(self._folder / _PREFIX))
        except OSError as error:
            msg = (
                f"{self._folder}: cannot be written ({error.strerror}); go on without --tensorboard"
            )
            raise FacevaeError(msg) from error
        # a TensorBoard that is open forgets what it has read of the files before
        start = Event(
            wall_time=self._origin, step=0, session_log=SessionLog(status=SessionLog.START)
        )
        self._writer.write_event(start)
        self._write(summary.text("config", _markdown(about)), 0, 0.0)
        for record in known:
            self._add(record)
        self._writer.flush()

    def add(self, record: Mapping[str, Any]) -> None:
        """Write one more record, at once."""
        self._add(record)
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, record: Mapping[str, Any]) -> None:
        from tensorboardX import summary

        groups = {"steps": "train", "prior": "prior", "finish": "finish"}
        group = groups.get(record["event"], "held_out")
        where = record.get("latents", record["images"]), record["seconds"]
        for name, value in record.items():
            if name not in _PLACES and isinstance(value, int | float):
                self._write(summary.scalar(f"{group}/{name}", value), *where)
        for name, counted in record.get("histograms", {}).items():
            self._write(_histogram(f"latents/{name}", counted), *where)
        for name in ("reconstructions", "samples"):
            path = inside(self._pictures, record.get(name))
            # a picture that was removed or damaged is only one picture less
            with suppress(OSError, ImageError):
                self._write(_picture(f"pictures/{name}", path), *where)

    def _write(self, summary: Any, images: int, seconds: float) -> None:
        from tensorboardX.proto.event_pb2 import Event

        when = self._origin + seconds
        self._writer.write_event(Event(wall_time=when, step=images, summary=summary))


def _retire(earlier: Path) -> None:
    """Empty an event file; a TensorBoard that is reading it would not get over its removal."""
    if earlier.stat().st_size:
        os.truncate(earlier, 0)
    else:
        earlier.unlink()


def _histogram(tag: str, counted: Mapping[str, Any]) -> Any:
    from tensorboardX import summary

    counts, low, high = counted["counts"], counted["low"], counted["high"]
    limits = [low + (high - low) * (i + 1) / len(counts) for i in range(len(counts))]
    sums = counted["sum"], counted["sum_squares"]
    return summary.histogram_raw(tag, low, high, sum(counts), *sums, limits, counts)


def _picture(tag: str, path: Path) -> Any:
    """The file's own bytes: nothing is decoded."""
    from tensorboardX.proto.summary_pb2 import Summary

    width, height = picture_size(path)
    image = Summary.Image(
        width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
    )
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _markdown(values: Mapping[str, Any]) -> str:
    """A table of dotted names and their values."""
    rows = [f"| {name} | {value} |" for name, value in _flat(values)]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = str(value).replace("\n", " ").replace("|", "\\|")
            yield f"{prefix}{key}", text
