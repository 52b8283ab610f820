"""Batches of converted faces, for training and for measurements."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from facevae.data.conversion import Progress
from facevae.data.dataset import Faces, Rows
from facevae.data.image_tensors import from_pixels
from facevae.errors import RunError
from facevae.system import parallel
from facevae.system.memory import free_bytes
from facevae.system.runtime import Stream, generator, milestone, sent

_MIRRORED_SHARE = 0.5
_AHEAD = 3  # batches gathered in advance


class Batches:
    """An endless stream of training batches, in which a batch depends on the seed and its index.

    The stream is one shuffled pass over the faces after another, cut into batches that may cross the
    end of a pass. Faces are kept on a GPU, as uint8, if they take less than half of its free memory.
    Otherwise batches are gathered in advance, in pinned memory that the GPU copies from.

    Raises `RunError` if there are more processes than faces in a batch.
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
        is_elsewhere = self._pixels.device.type != device.type
        self._ahead = Ahead(self._gather, self._rows_of, _AHEAD) if is_elsewhere else None
        self._copies = deque[Callable[[], None]]()  # each waits for a copy to the GPU

    def __call__(self, step: int) -> Tensor:
        """Batch number `step`: images (B, 3, size, size) on the device, half of them mirrored.

        With several processes, this process's share of the batch.
        """
        if self._ahead:
            pixels = sent(self._ahead(step), self.device)
            # limits the pinned memory, which is in use until the GPU, many steps behind, has copied it
            self._copies.append(milestone(self.device))
            if len(self._copies) > _AHEAD:
                self._copies.popleft()()
        else:
            pixels = sent(self._gather(self._rows_of(step)), self.device)
        rng = generator(self.seed, Stream.MIRROR, step)
        mirrored = torch.rand(self.size, generator=rng) < _MIRRORED_SHARE
        mirrored = sent(mirrored[parallel.share(self.size)], self.device)
        # mirrored as bytes, a quarter of the size of floats
        return from_pixels(mirror(pixels, mirrored))

    def _rows_of(self, step: int) -> Tensor:
        """Rows (B,) of the faces in this process's share of batch number `step`."""
        positions = range(step * self.size, (step + 1) * self.size)
        first, last = positions[0] // self.num_faces, positions[-1] // self.num_faces
        orders = [self._order(epoch) for epoch in range(first, last + 1)]
        stream = torch.cat(orders) if len(orders) > 1 else orders[0]
        begin = positions[0] - first * self.num_faces
        return stream[begin : begin + self.size][parallel.share(self.size)]

    def _gather(self, rows: Tensor) -> Tensor:
        """Faces at `rows` (B,) as bytes (B, H, W, 3), on the device of all faces.

        On the CPU, they are in pinned memory if they are for a GPU.
        """
        device = self._pixels.device
        pinned = device.type == "cpu" and self.device.type == "cuda"
        shape = (len(rows), *self._pixels.shape[1:])
        faces = torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pinned)
        return torch.index_select(self._pixels, 0, sent(rows, device), out=faces)

    def ends_epoch(self, step: int) -> bool:
        """Whether a pass over the faces ends within batch number `step`."""
        return (step + 1) * self.size % self.num_faces < self.size

    def epochs(self, step: int) -> int:
        """Number of passes over the faces that are complete after batch number `step`."""
        return (step + 1) * self.size // self.num_faces

    def epoch(self, step: int) -> float:
        """Number of the epoch that ends with batch `step`; fractional if the pass is not complete."""
        if self.ends_epoch(step):
            return self.epochs(step)
        return (step + 1) * self.size / self.num_faces

    def _order(self, epoch: int) -> Tensor:
        """Rows of all training faces (N,), shuffled for this pass; the last two are cached."""
        if epoch not in self._orders:
            rng = generator(self.seed, Stream.ORDER, epoch)
            shuffled = self._rows[torch.randperm(self.num_faces, generator=rng)]
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = shuffled
        return self._orders[epoch]


def live_on(device: torch.device, num_bytes: int) -> bool:
    """Whether faces of so many bytes are kept on a GPU: if they take less than half its free memory."""
    return num_bytes < free_bytes(device) / 2


class Ahead:
    """Gathers the batches of the next steps in a thread."""

    def __init__(
        self, gather: Callable[[Tensor], Tensor], rows_of: Callable[[int], Tensor], count: int
    ) -> None:
        """Gather `count` steps in advance; only `gather(rows_of(step))` itself runs in the thread."""
        self._gather, self._rows_of, self._count = gather, rows_of, count
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="faces")
        self._first, self._futures = 0, deque[Future[Tensor]]()  # of steps from `_first` on

    def __call__(self, step: int) -> Tensor:
        """The batch of `step`, which is ready soonest if it follows the previous call's step."""
        if not self._first <= step < self._first + len(self._futures):
            self._futures.clear()
            self._first = step
        while self._first < step:
            self._futures.popleft()
            self._first += 1
        while len(self._futures) <= self._count:
            rows = self._rows_of(self._first + len(self._futures))
            self._futures.append(self._thread.submit(self._gather, rows))
        self._first += 1
        return self._futures.popleft().result()


def mirror(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the images of pixels (B, H, W, 3) whose entry in `chosen` (B,) is true."""
    return torch.where(chosen.view(-1, 1, 1, 1), pixels.flip(-2), pixels)


def batches_of(
    faces: Faces, rows: Rows, device: torch.device, *, mirrored: bool = False, size: int = 128
) -> Iterator[Tensor]:
    """Batches of the faces at `rows`, in order: images (≤ size, 3, H, W) on `device`.

    With `mirrored`, each batch is followed by its mirror images.
    """
    for start in range(0, len(rows), size):
        images = from_pixels(torch.from_numpy(faces.pixels[rows[start : start + size]]).to(device))
        yield images
        if mirrored:
            yield images.flip(-1)


def evenly(rows: Rows, count: int) -> Rows:
    """At most `count` of the rows, evenly spaced."""
    count = min(count, len(rows))
    return rows[np.arange(count) * len(rows) // max(count, 1)]


def watched(
    batches: Iterable[Tensor], task: str, total: int, progress: Progress
) -> Iterator[Tensor]:
    """The same batches, with progress reports: the previous batch is done when the next is taken."""
    done = 0
    for images in batches:
        yield images
        done += len(images)
        progress(task, done, total)
