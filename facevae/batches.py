"""Batches of converted faces, wherever they live."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from facevae import parallel
from facevae.conversion import Progress
from facevae.data import Faces, Rows
from facevae.errors import RunError
from facevae.images import from_pixels
from facevae.memory import free_bytes
from facevae.runtime import generator, milestone, sent

# what a generator's numbers are for, so that no two uses share them
_ORDER, _MIRROR = 0, 1
_MIRRORED_SHARE = 0.5
_AHEAD = 3  # batches that are gathered while others are learned from


class Batches:
    """An endless, start-indexed stream of training batches: batch `step` depends on nothing else.

    The stream is one shuffled pass after another, cut into batches without regard to where a
    pass ends. Faces live on a GPU as uint8 where they fit in half of its free memory. Where they do
    not, batches are gathered ahead, in memory that the GPU copies from by itself.
    """

    def __init__(self, faces: Faces, batch_size: int, seed: int, device: torch.device) -> None:
        self.size = min(batch_size, len(faces.train))
        if self.size < parallel.size():
            msg = f"batches of {self.size}: too small for {parallel.size()} processes; raise --batch-size or start fewer"
            raise RunError(msg)
        self.num_faces = len(faces.train)
        self.seed, self.device = seed, device
        self._rows = torch.from_numpy(faces.train)
        self._pixels = torch.from_numpy(faces.pixels)
        self._orders: dict[int, Tensor] = {}
        if live_on(device, self._pixels.numel()):
            self._pixels = self._pixels.to(device)
        is_apart = self._pixels.device.type != device.type
        self._ahead = Ahead(self._gathered, self._rows_of, _AHEAD) if is_apart else None
        self._copied = deque[Callable[[], None]]()

    def __call__(self, step: int) -> Tensor:
        """Batch number `step`: images (B, 3, size, size) on the device, half of them mirrored.

        Of several processes each gets its share of them.
        """
        if self._ahead:
            pixels = sent(self._ahead(step), self.device)
            # what is pinned stays so until it has been copied, and a GPU may be many steps behind
            self._copied.append(milestone(self.device))
            if len(self._copied) > _AHEAD:
                self._copied.popleft()()
        else:
            pixels = sent(self._gathered(self._rows_of(step)), self.device)
        draw = generator(self.seed, _MIRROR, step)
        mirrored = torch.rand(self.size, generator=draw) < _MIRRORED_SHARE
        mirrored = sent(mirrored[parallel.share(self.size)], self.device)
        # as bytes, which are a quarter of what they become
        return from_pixels(mirror(pixels, mirrored))

    def _rows_of(self, step: int) -> Tensor:
        """The faces of this process's share of batch number `step`: (B,) rows."""
        positions = range(step * self.size, (step + 1) * self.size)
        first, last = positions[0] // self.num_faces, positions[-1] // self.num_faces
        orders = [self._order(epoch) for epoch in range(first, last + 1)]
        stream = torch.cat(orders) if len(orders) > 1 else orders[0]
        begin = positions[0] - first * self.num_faces
        return stream[begin : begin + self.size][parallel.share(self.size)]

    def _gathered(self, rows: Tensor) -> Tensor:
        """The faces at `rows` (B,) as bytes (B, H, W, 3), where faces live; for a GPU it is pinned."""
        where = self._pixels.device
        pinned = where.type == "cpu" and self.device.type == "cuda"
        shape = (len(rows), *self._pixels.shape[1:])
        own = torch.empty(shape, dtype=torch.uint8, device=where, pin_memory=pinned)
        return torch.index_select(self._pixels, 0, sent(rows, where), out=own)

    def ends_epoch(self, step: int) -> bool:
        """Whether a pass over the faces ends within batch number `step`."""
        return (step + 1) * self.size % self.num_faces < self.size

    def epochs(self, step: int) -> int:
        """How many passes over the faces have ended with batch number `step`."""
        return (step + 1) * self.size // self.num_faces

    def epoch(self, step: int) -> float:
        """The number of the epoch that ends with batch `step`: no whole one if it is broken off."""
        if self.ends_epoch(step):
            return self.epochs(step)
        return (step + 1) * self.size / self.num_faces

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            draw = generator(self.seed, _ORDER, epoch)
            shuffled = self._rows[torch.randperm(self.num_faces, generator=draw)]
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = shuffled
        return self._orders[epoch]


def live_on(device: torch.device, num_bytes: int) -> bool:
    """Whether faces of so many bytes are kept on a GPU: where they take less than half of what is free."""
    return num_bytes < free_bytes(device) / 2


class Ahead:
    """Gathers in a thread, while a device works, what the next steps need."""

    def __init__(
        self, gather: Callable[[Tensor], Tensor], rows_of: Callable[[int], Tensor], count: int
    ) -> None:
        """`rows_of(step)` are asked for here, and of `count` more steps; `gather` of them elsewhere."""
        self._gather, self._rows_of, self._count = gather, rows_of, count
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="faces")
        self._first, self._coming = 0, deque[Future[Tensor]]()

    def __call__(self, step: int) -> Tensor:
        """What was gathered for `step`, which usually follows the one before."""
        if not self._first <= step < self._first + len(self._coming):
            self._coming.clear()
            self._first = step
        while self._first < step:
            self._coming.popleft()
            self._first += 1
        while len(self._coming) <= self._count:
            rows = self._rows_of(self._first + len(self._coming))
            self._coming.append(self._thread.submit(self._gather, rows))
        self._first += 1
        return self._coming.popleft().result()


def mirror(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Flip left and right those of pixels (B, H, W, 3) whose entry in `chosen` (B,) is true."""
    return torch.where(chosen.view(-1, 1, 1, 1), pixels.flip(-2), pixels)


def batches_of(
    faces: Faces, rows: Rows, device: torch.device, *, mirrored: bool = False, size: int = 128
) -> Iterator[Tensor]:
    """The faces at `rows` in order, as images (≤ size, 3, H, W) on `device`.

    With `mirrored`, each batch is followed by its mirror images.
    """
    for start in range(0, len(rows), size):
        images = from_pixels(torch.from_numpy(faces.pixels[rows[start : start + size]]).to(device))
        yield images
        if mirrored:
            yield images.flip(-1)


def evenly(rows: Rows, count: int) -> Rows:
    """`count` of the rows, taken from everywhere among them; all where there are fewer."""
    count = min(count, len(rows))
    return rows[np.arange(count) * len(rows) // max(count, 1)]


def watched(
    batches: Iterable[Tensor], task: str, total: int, progress: Progress
) -> Iterator[Tensor]:
    """The same batches; when the next one is asked for, it is told how many images are done."""
    done = 0
    for images in batches:
        yield images
        done += len(images)
        progress(task, done, total)
