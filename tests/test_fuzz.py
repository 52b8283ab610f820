"""Damaged or hostile files end in one clear line, or are sound after all; see `fuzz.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")
# files of each of four kinds; FACEVAE_FUZZ=2500 makes them 10,000
COUNT = os.environ.get("FACEVAE_FUZZ", "150")
SEED = os.environ.get("FACEVAE_FUZZ_SEED", "0")


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_no_damage_to_a_file_is_more_than_one_line_or_takes_much_memory(tmp_path):
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, script, COUNT, SEED, tmp_path],
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    told = done.stdout.splitlines()
    assert len(told) == 4
    for line in told:
        refused, read = (int(word) for word in line.split(": ")[1].split() if word.isdigit())
        assert refused + read == int(COUNT), line
        assert refused > 0.7 * int(COUNT), line
