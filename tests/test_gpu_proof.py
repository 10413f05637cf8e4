"""scripts/gpu_proof.py in its tiny version, on the CPU."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from botnet.layers import kernels

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_proof.py"
pytestmark = pytest.mark.long


def prove(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[int, list[dict[str, Any]], str]:
    """The exit status and the two reports."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", "--out", str(folder)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    (rows,), (table,) = folder.glob("cpu-*.json"), folder.glob("cpu-*.md")
    return int(end.value.code), json.loads(rows.read_text()), table.read_text()


def test_proof_passes_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status, rows, table = prove(monkeypatch, tmp_path)
    assert [row for row in rows if row["status"] == "FAIL"] == []
    assert status == 0
    assert {row["part"] for row in rows if row["status"] == "PASS"} >= {
        "machine",
        "sdpa",
        "correctness",
        "layer",
        "time",
    }
    assert {row["why"] for row in rows if row["status"] == "SKIPPED"} == {"needs a GPU"}
    assert table.count("\n| PASS | correctness |") == sum(
        row["status"] == "PASS" and row["part"] == "correctness" for row in rows
    )
    assert "## Proposed for `choose`" in table


def test_wrong_results_fail_and_missing_packages_do_not(monkeypatch, tmp_path: Path) -> None:
    right = kernels.IMPLEMENTATIONS["sdpa"]
    monkeypatch.setitem(kernels.IMPLEMENTATIONS, "sdpa", lambda *given: 1.1 * right(*given))
    monkeypatch.setitem(sys.modules, "bottleneck_transformer_pytorch", None)
    for module in [name for name in sys.modules if name.startswith("bottleneck_transformer_pytorch.")]:
        monkeypatch.delitem(sys.modules, module)
    status, rows, _ = prove(monkeypatch, tmp_path)
    assert status == 1
    wrong = [row for row in rows if row["part"] == "correctness"]
    assert {row["status"] for row in wrong if row["case"].startswith("sdpa")} == {"FAIL"}
    peers = [row for row in rows if row["case"].endswith(": pypi")]
    assert {row["status"] for row in peers} == {"SKIPPED"}
    assert "bottleneck_transformer_pytorch" in peers[0]["why"]
