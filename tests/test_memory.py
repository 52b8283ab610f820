"""What memory there is and was taken."""

import mmap
import sys

import torch

from facevae.system import memory

CPU = torch.device("cpu")


def test_memory_held_so_far_is_known():
    kept = torch.ones(2**20)
    assert memory.peak_bytes(CPU) > kept.numel() * 4


def test_memory_is_that_of_this_process_and_grows_with_it():
    filling = b"1" * 2**26
    before = memory.memory_bytes(CPU)
    assert before.keys() <= {"process"}
    # pages of its own, since what was freed before may be taken again
    with mmap.mmap(-1, len(filling)) as held:
        held.write(filling)
        after = memory.memory_bytes(CPU)
    if sys.platform == "linux":
        assert after["process"] - before["process"] > 0.8 * len(filling)
        assert after["process"] < 2**40


def test_what_is_free_is_known_of_gpus_alone():
    assert memory.free_bytes(CPU) == 0


def test_all_memory_is_more_than_this_process_has():
    if sys.platform != "win32":
        assert memory.peak_bytes(CPU) < memory.total_bytes(CPU) < 2**50
