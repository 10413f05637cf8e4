"""The arithmetic of many GPUs, against the same by hand, and its page."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def printed(*options: str) -> str:
    command = [sys.executable, "scripts/cluster.py", "--steps", "1", "100", "8", "600", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines[2:]}


@pytest.mark.long
def test_the_page_shows_what_the_script_prints():
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert printed().rstrip() in page


@pytest.mark.long
def test_64_gpus_by_hand():
    text = printed("--network", "10", "--latency", "0", "--prepared", "1")
    gradients = float(text.split(" M gradients")[0].split()[-1]) * 1e6
    images, computing, reduce, norms, others, loading, step, epoch, *_ = rows(text)["64"]
    assert (images, norms, others) == ("1", "0.0", "0.0")
    # Of a ring of 64, each sends the gradients twice but for a 64th, at 10 GB/s.
    milliseconds = 2 * 63 / 64 * 4 * gradients / 10e9 * 1e3
    assert float(reduce.split()[0]) == pytest.approx(milliseconds, rel=0.01)
    # Eight images of a step on a machine of 128 cores at one image a second.
    assert float(loading) == pytest.approx(8 / 128 * 1e3, abs=0.6)
    assert float(step) == pytest.approx(100 + milliseconds / 2, abs=1)
    assert float(epoch) == pytest.approx(118_287 // 64 * float(step) / 60_000, rel=0.02)
    assert computing == "100"


@pytest.mark.long
def test_slow_loading_is_what_binds():
    cells = rows(printed("--prepared", "0.1"))["8"]
    assert cells[5] == cells[6]
    assert cells[-1] == "loading"
