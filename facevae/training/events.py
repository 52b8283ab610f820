"""TensorBoard event files of a run. Needs the extra `tensorboard` (tensorboardX)."""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from facevae.data.images import picture_size
from facevae.errors import FacevaeError, ImageError, UsageError
from facevae.system.files import inside

_PREFIX = "events"
# keys of a record that say when it was made, rather than what was measured
_POSITION_KEYS = ("event", "step", "images", "latents", "seconds", "epoch")


def require_tensorboard() -> None:
    """Raise `UsageError` if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401 - an extra
    except ImportError as error:
        msg = "--tensorboard needs the extra 'tensorboard': pip install 'facevae[tensorboard]'"
        raise UsageError(msg) from error


class Events:
    """Writer of event files with the same content as the records in `metrics.jsonl`.

    The x-axis is the number of images seen, or of latents seen for records of the prior. Records
    are written immediately, without threads. A resumed run may repeat steps, so `begin` rewrites
    all existing records, and no point appears twice.
    """

    def __init__(self, folder: Path, pictures: Path) -> None:
        """`pictures` is the folder of the pictures that records name."""
        self._folder, self._pictures = folder, pictures
        self._writer: Any = None
        self._origin = 0.0

    def begin(self, settings: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the event files in the folder by these records, and the run's settings as a text.

        Raises `FacevaeError` if the folder cannot be written.
        """
        require_tensorboard()
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.close()
        existing = list(records)
        # wall times leave out the time between the sessions of a run
        self._origin = time.time() - (existing[-1]["seconds"] if existing else 0.0)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.glob(f"{_PREFIX}.out.tfevents.*"):
                _retire(path)
            self._writer = EventsWriter(str(self._folder / _PREFIX))
        except OSError as error:
            msg = f"{self._folder}: cannot be written ({error.strerror}); run without --tensorboard"
            raise FacevaeError(msg) from error
        # makes an open TensorBoard discard what it has read from the earlier files
        start = Event(
            wall_time=self._origin, step=0, session_log=SessionLog(status=SessionLog.START)
        )
        self._writer.write_event(start)
        self._write(summary.text("config", _markdown(settings)), 0, 0.0)
        for record in existing:
            self._add(record)
        self._writer.flush()

    def add(self, record: Mapping[str, Any]) -> None:
        """Write one more record and flush it."""
        self._add(record)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, record: Mapping[str, Any]) -> None:
        from tensorboardX import summary

        groups = {"steps": "train", "prior": "prior", "finish": "finish"}
        group = groups.get(record["event"], "held_out")
        position = record.get("latents", record["images"]), record["seconds"]
        for name, value in record.items():
            if name not in _POSITION_KEYS and isinstance(value, int | float):
                self._write(summary.scalar(f"{group}/{name}", value), *position)
        for name, values in record.get("histograms", {}).items():
            self._write(_histogram(f"latents/{name}", values), *position)
        for name in ("reconstructions", "samples"):
            path = inside(self._pictures, record.get(name))
            # leave out a picture that was removed or damaged
            with suppress(OSError, ImageError):
                self._write(_picture(f"pictures/{name}", path), *position)

    def _write(self, summary: Any, step: int, seconds: float) -> None:
        from tensorboardX.proto.event_pb2 import Event

        wall_time = self._origin + seconds
        self._writer.write_event(Event(wall_time=wall_time, step=step, summary=summary))


def _retire(path: Path) -> None:
    """Empty an event file, or remove one that is empty already.

    A TensorBoard that is reading the file cannot handle its removal.
    """
    if path.stat().st_size:
        os.truncate(path, 0)
    else:
        path.unlink()


def _histogram(tag: str, histogram: Mapping[str, Any]) -> Any:
    """A summary of what `metrics.histogram` returned."""
    from tensorboardX import summary

    counts, low, high = histogram["counts"], histogram["low"], histogram["high"]
    limits = [low + (high - low) * (i + 1) / len(counts) for i in range(len(counts))]
    sums = histogram["sum"], histogram["sum_squares"]
    return summary.histogram_raw(tag, low, high, sum(counts), *sums, limits, counts)


def _picture(tag: str, path: Path) -> Any:
    """A summary with the bytes of a picture file, which is not decoded."""
    from tensorboardX.proto.summary_pb2 import Summary

    width, height = picture_size(path)
    image = Summary.Image(
        width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
    )
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _markdown(values: Mapping[str, Any]) -> str:
    """A Markdown table of settings, with dotted names for nested ones."""
    rows = [f"| {name} | {value} |" for name, value in _flattened(values)]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            text = str(value).replace("\n", " ").replace("|", "\\|")
            yield f"{prefix}{key}", text
