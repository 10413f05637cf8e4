"""scripts/gpu_proof.py in its tiny version, on the CPU."""

import json
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from botnet.layers import kernels

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_proof.py"
pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _modules_of_the_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    before = set(sys.modules)
    yield
    for name in {"proof_report", "proof_training", "step", "common"} - before:
        sys.modules.pop(name, None)


def prove(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str
) -> tuple[int, list[dict[str, Any]], str]:
    """The exit status and the two reports."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", "--out", str(folder), *options])
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
        "detection",
        "training",
        "time",
        "family",
        "loading",
        "devices",
    }
    skipped = {row["why"] for row in rows if row["status"] == "SKIPPED"}
    assert skipped == {"needs a GPU", "needs two GPUs", "there is no checkpoint"}
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
    status, rows, _ = prove(monkeypatch, tmp_path, "--parts", "time,correctness")
    assert status == 1
    assert {row["part"] for row in rows} == {"correctness", "time"}
    wrong = [row for row in rows if row["part"] == "correctness"]
    assert {row["status"] for row in wrong if row["case"].startswith("sdpa")} == {"FAIL"}
    peers = [row for row in rows if row["case"].endswith(": pypi")]
    assert {row["status"] for row in peers} == {"SKIPPED"}
    assert "bottleneck_transformer_pytorch" in peers[0]["why"]


def test_no_check_starts_late_and_a_broken_part_stops_no_other(monkeypatch, tmp_path: Path) -> None:
    import proof_report

    monkeypatch.setattr(proof_report, "describe", lambda row: row["status"])
    proof = proof_report.Proof(torch.device("cpu"), proof_report.TINY, 100)
    proof.run("broken", lambda proof: 1 / 0)
    proof.row("some", "first", lambda: {"ms": 1.0})
    proof.allow(-1)
    proof.row("some", "late", lambda: {"ms": 1.0})
    assert [row["status"] for row in proof.rows] == ["FAIL", "PASS", "SKIPPED"]
    proof = proof_report.Proof(torch.device("cpu"), proof_report.TINY, 100, only=["second"])
    assert proof.row("some", "first", lambda: 1 / 0) == {}
    assert proof.row("some", "second", lambda: {"ms": 1.0})["ms"] == 1.0
    assert proof.cases == ["first", "second"]


def test_waits_are_counted_by_file_and_line(monkeypatch) -> None:
    import proof_training

    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def shape(q: torch.Tensor, *_: Any) -> torch.Tensor:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return q

    monkeypatch.setitem(kernels.IMPLEMENTATIONS, "sdpa", shape)
    given = torch.zeros(1, 1, 4, 8)
    found = proof_training.waits(
        lambda: kernels.relative_attention(given, given, given, None, (2, 2), 1.0, 1, "sdpa")
    )
    (place,) = found
    assert found[place] == 2
    assert place.startswith("botnet/layers/kernels.py:")
    assert modes == ["warn", "default"]
