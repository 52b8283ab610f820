"""A batch depends only on its step; a pass shows every training face once, and no others."""

import threading
from functools import partial

import numpy as np
import pytest
import torch

import facevae.data.batches
from facevae.data.batches import Ahead, Batches, batches_of, evenly, mirror
from facevae.data.dataset import Faces

CPU = torch.device("cpu")
NUM_FACES = 23
HELD_OUT = [0, 7, 11, 22]
TRAIN = [row for row in range(NUM_FACES) if row not in HELD_OUT]


@pytest.fixture
def faces():
    """Faces whose red encodes their row, and whose green shows whether they are mirrored."""
    pixels = np.zeros((NUM_FACES, 8, 8, 3), np.uint8)
    pixels[..., 0] = np.arange(NUM_FACES)[:, None, None]
    pixels[:, :, :4, 1] = 255
    stems = [f"{row:03}" for row in range(NUM_FACES)]
    return Faces(pixels, stems, np.array(TRAIN), np.array(HELD_OUT), [], "fingerprint")


def rows_of(images):
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def are_mirrored(images):
    return images[:, 1, 0, 0].eq(0).tolist()


def shown(batches, num_images):
    """The rows of the first `num_images` images of the stream."""
    steps = range(-(-num_images // batches.size))
    return [row for step in steps for row in rows_of(batches(step))][:num_images]


def test_a_batch_depends_on_its_step_alone(faces):
    batches = Batches(faces, 5, seed=3, device=CPU)
    in_order = [batches(step) for step in range(12)]
    for step in (11, 0, 7, 3, 3, 10, 1):
        assert batches(step).equal(in_order[step])
        assert Batches(faces, 5, seed=3, device=CPU)(step).equal(in_order[step])


def test_a_batch_does_not_depend_on_global_randomness(faces):
    torch.manual_seed(0)
    first = Batches(faces, 5, seed=3, device=CPU)(4)
    torch.manual_seed(1)
    assert Batches(faces, 5, seed=3, device=CPU)(4).equal(first)


@pytest.mark.parametrize("size", [1, 4, 5, len(TRAIN)])
def test_every_pass_shows_every_training_face_once(faces, size):
    stream = shown(Batches(faces, size, seed=0, device=CPU), 6 * len(TRAIN))
    passes = [stream[i : i + len(TRAIN)] for i in range(0, len(stream), len(TRAIN))]
    assert [sorted(one) for one in passes] == [TRAIN] * 6
    assert len(set(map(tuple, passes))) == 6  # each in an order of its own


def test_the_order_does_not_depend_on_the_batch_size(faces):
    streams = {tuple(shown(Batches(faces, n, seed=0, device=CPU), 60)) for n in (1, 4, 7)}
    assert len(streams) == 1


def test_another_seed_is_another_order(faces):
    streams = {tuple(shown(Batches(faces, 5, seed=n, device=CPU), len(TRAIN))) for n in range(5)}
    assert len(streams) == 5


def test_held_out_faces_never_appear(faces):
    stream = shown(Batches(faces, 6, seed=1, device=CPU), 40 * len(TRAIN))
    assert set(stream) == set(TRAIN)


def test_about_half_are_mirrored_and_all_are_whole(faces):
    batches = Batches(faces, 7, seed=2, device=CPU)
    originals = torch.from_numpy(faces.pixels).movedim(-1, 1) / 255
    flips = []
    for step in range(200):
        images = batches(step)
        for image, row, flipped in zip(images, rows_of(images), are_mirrored(images), strict=True):
            expected = originals[row].flip(-1) if flipped else originals[row]
            torch.testing.assert_close(image, expected)
            flips.append(flipped)
    # a fair coin's five standard deviations
    assert abs(sum(flips) - len(flips) / 2) < 5 * (len(flips) / 4) ** 0.5


def test_no_face_is_mirrored_in_every_pass_alike(faces):
    batches = Batches(faces, len(TRAIN), seed=0, device=CPU)
    seen = {}
    for step in range(20):
        images = batches(step)
        for row, flipped in zip(rows_of(images), are_mirrored(images), strict=True):
            seen.setdefault(row, set()).add(flipped)
    assert all(ways == {True, False} for ways in seen.values())


def test_a_batch_of_more_than_the_data_is_all_of_it(faces):
    batches = Batches(faces, 10_000, seed=0, device=CPU)
    assert batches.size == batches.num_faces == len(TRAIN)
    for step in (0, 1, 50):
        assert sorted(rows_of(batches(step))) == TRAIN


def test_images_are_floats_from_0_to_1(faces):
    images = Batches(faces, 4, seed=0, device=CPU)(0)
    assert images.shape == (4, 3, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)


def test_batches_that_are_gathered_ahead_are_the_same(faces):
    """As if faces did not fit on a GPU; this machine has none, so only that part is replaced."""
    batches, plain = (Batches(faces, 5, seed=3, device=CPU) for _ in range(2))
    batches._ahead = Ahead(batches._gather, batches._rows_of, 3)
    for step in (*range(12), 30, 31, 33, 36, 2, 3, 3):
        assert batches(step).equal(plain(step))


def test_of_batches_that_were_gathered_ahead_few_are_on_their_way_at_once(faces, monkeypatch):
    queued, done = [], []

    def milestone(_device):
        queued.append(len(queued))
        return partial(done.append, queued[-1])

    monkeypatch.setattr(facevae.data.batches, "milestone", milestone)
    batches = Batches(faces, 5, seed=3, device=CPU)
    batches._ahead = Ahead(batches._gather, batches._rows_of, 3)
    for step in range(10):
        batches(step)
        assert len(queued) - len(done) <= 3
    assert done == queued[:7]


def test_what_comes_next_is_gathered_meanwhile_and_not_more():
    asked, gathered, may_go_on = [], [], threading.Event()

    def rows_of(step):
        asked.append(step)
        return torch.tensor([step])

    def gather(rows):
        if rows.item() > 20:
            may_go_on.wait(10)
        gathered.append(rows.item())
        return 2 * rows

    ahead = Ahead(gather, rows_of, 2)
    assert [ahead(step).item() for step in (17, 18, 20)] == [34, 36, 40]
    assert asked == [17, 18, 19, 20, 21, 22]
    assert gathered == [17, 18, 19, 20]  # the caller has it, though the next one takes long
    may_go_on.set()
    assert ahead(21).item() == 42


def test_what_gathering_ahead_meets_is_met_at_its_own_step():
    def gather(rows):
        if rows.item() == 2:
            raise OSError("the disk is gone")
        return rows

    ahead = Ahead(gather, torch.tensor, 2)
    assert [ahead(step).item() for step in (0, 1)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        ahead(2)
    assert ahead(3).item() == 3


def test_mirror_flips_left_and_right_of_the_chosen():
    pixels = torch.randint(256, (3, 4, 5, 3), dtype=torch.uint8)
    got = mirror(pixels, torch.tensor([True, False, True]))
    for i, expected in enumerate([pixels[0].flip(1), pixels[1], pixels[2].flip(1)]):
        assert got[i].equal(expected)


def test_batches_of_keeps_the_order_of_its_rows(faces):
    rows = np.array([5, 0, 22, 3, 11])
    parts = list(batches_of(faces, rows, CPU, size=2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert rows_of(torch.cat(parts)) == rows.tolist()
    assert not any(are_mirrored(torch.cat(parts)))


def test_batches_of_follows_each_batch_with_its_mirror_images(faces):
    parts = list(batches_of(faces, np.array([5, 0, 22]), CPU, mirrored=True, size=2))
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    for images, flipped in (parts[:2], parts[2:]):
        assert flipped.equal(images.flip(-1))
        assert all(are_mirrored(flipped))


def test_batches_of_nothing_is_nothing(faces):
    assert list(batches_of(faces, np.array([], np.int64), CPU)) == []


@pytest.mark.parametrize("count", [1, 4, 10, 22, 23, 40])
def test_so_many_rows_are_taken_from_everywhere(count):
    rows = np.arange(100, 123)
    found = evenly(rows, count)
    assert len(found) == min(count, len(rows))
    assert set(found) <= set(rows)
    steps = np.diff([*found, rows[-1] + 1])  # to the next one, and from the last to the end
    assert np.ptp(steps) <= 1
