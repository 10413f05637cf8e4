"""The rows of `make proof-gpu`, and its report."""

import gc
import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from botnet.layers.kernels import Implementation

MARGIN = 1.15  # how much faster than the next the Triton kernel must be to be chosen


class Scale(NamedTuple):
    """How much is proved.

    Args:
        sides: of square maps whose kernel is looked up.
        sizes: of maps on which results are compared; the first one with all combinations.
        width: of a head.
        implementations: of the attention, that are compared and compiled.
        timed: map side and batch of the timings of the layer.
        images: image sides of the timings of BoT50 and R50.
        rounds: of a timing.
        detectors: backbones and images a step of the detectors' timings; the last backbone is a BoTNet.
        canvas: their side.
        classifier: network, image side and images a step of the training runs.
        family: networks, image sides and images a step of the last comparison.
        files: images for the loaders.
    """

    sides: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    width: int
    implementations: tuple[Implementation, ...]
    timed: tuple[tuple[int, int], ...]
    images: tuple[int, ...]
    rounds: int
    detectors: tuple[str, str]
    detector_options: dict[str, Any]
    canvas: int
    batches: tuple[int, ...]
    classifier: tuple[str, int, int]
    family: tuple[tuple[str, int], tuple[str, int]]
    family_batch: int
    files: int


FULL = Scale(
    sides=(7, 14, 24, 25, 32, 40, 63, 64, 69, 80),
    sizes=((25, 19), (14, 14), (1, 33), (32, 32)),
    width=128,
    implementations=("sdpa", "triton", "flex"),
    timed=((14, 128), (24, 32), (32, 8), (64, 8), (80, 4)),
    images=(1024, 1280),
    rounds=10,
    detectors=("resnet50", "botnet50"),
    detector_options={},
    canvas=1024,
    batches=(2, 8),
    classifier=("botnet50", 224, 64),
    family=(("botnet_t7", 384), ("efficientnet_b7", 600)),
    family_batch=8,
    files=4096,
)
TINY = Scale(
    sides=(5,),
    sizes=((3, 5),),
    width=16,
    implementations=("sdpa", "triton"),
    timed=((4, 2),),
    images=(),
    rounds=1,
    detectors=("resnet_tiny", "botnet_tiny"),
    detector_options={
        "fpn_channels": 16,
        "roi_samples": 16,
        "box_channels": 32,
        "mask_channels": 16,
        "mask_convs": 1,
    },
    canvas=64,
    batches=(2,),
    classifier=("botnet_s1_tiny", 32, 8),
    family=(("botnet_s1_tiny", 32), ("resnet_tiny", 32)),
    family_batch=2,
    files=48,
)


class Skip(Exception):
    """A part that cannot run here, and why."""


def outcome(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a check returns, and its status; it raises AssertionError if something is wrong, or Skip."""
    start = time.monotonic()
    found: dict[str, Any] = {"status": "PASS"}
    try:
        found |= check()
    except Skip as reason:
        found = {"status": "SKIPPED", "why": str(reason)}
    except ImportError as error:
        found = {"status": "SKIPPED", "why": f"{error.name or error} cannot be imported: {error}"}
    except torch.OutOfMemoryError:
        found = {"status": "SKIPPED", "why": "out of memory"}
    except Exception as error:
        found = {"status": "FAIL", "why": f"{type(error).__name__}: {str(error)[:500]}"}
    return found | {"seconds": round(time.monotonic() - start, 2)}


class Proof:
    """The rows of the report, and the machine they were made on.

    Args:
        device: that is proved.
        scale: how much.
        seconds: after which no check starts.
        only: run no other cases.

    Attributes:
        name: of the report: the GPU and the commit.
        cases: all that the parts have, run or not.
        done: outcomes of cases that other processes have checked, by part and case.
    """

    def __init__(
        self,
        device: torch.device,
        scale: Scale,
        seconds: float,
        only: Collection[str] | None = None,
    ) -> None:
        self.device, self.scale, self.only = device, scale, only
        self.end = self.deadline = time.monotonic() + seconds
        gpu = torch.cuda.get_device_name(device) if self.gpu else "cpu"
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
        self.name = f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}-{head.strip() or 'unknown'}"
        self.cases: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.done: dict[tuple[str, str], dict[str, Any]] = {}

    @property
    def gpu(self) -> bool:
        """Whether this is the real thing."""
        return self.device.type == "cuda"

    def allow(self, seconds: float) -> None:
        """Begin a part, which starts no check after these seconds."""
        self.deadline = min(self.end, time.monotonic() + seconds)

    def row(self, part: str, case: str, check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a check and add its outcome to the report."""
        self.cases.append(case)
        if self.only is not None and case not in self.only:
            return {}
        found = self.done.get((part, case))
        if found is None and time.monotonic() > self.deadline:
            why = "no time left: give --parts with what is missing, or more --minutes"
            found = {"status": "SKIPPED", "why": why}
        row = {"part": part, "case": case} | (found or outcome(check))
        self.rows.append(row)
        print(describe(row), flush=True)
        return row

    def run(self, name: str, part: Callable[["Proof"], None]) -> None:
        """All checks of a part; one that breaks outside of its checks does not stop the others."""
        start = time.monotonic()
        try:
            part(self)
        except Exception as error:
            self.rows.append({"part": name, "case": "whole", "status": "FAIL", "why": repr(error)[:500]})
            print(describe(self.rows[-1]), flush=True)
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)

    def synchronize(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], Any]) -> float:
        """Median time of a call after some that are not counted; of CUDA events on a GPU."""
        times = []
        warm = 2 if self.gpu else 1
        for turn in range(self.scale.rounds + warm):
            self.synchronize()
            if self.gpu:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                torch.cuda.synchronize()
                elapsed = start.elapsed_time(end)
            else:
                begin = time.perf_counter()
                call()
                elapsed = 1e3 * (time.perf_counter() - begin)
            if turn >= warm:
                times.append(elapsed)
        return statistics.median(times)

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """Peak memory of a call above what was allocated before."""
        if not self.gpu:
            raise Skip("memory is measured on a GPU only")
        call()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before


def describe(row: dict[str, Any]) -> str:
    told = ("part", "case", "status", "why", "seconds")
    rest = {key: value for key, value in row.items() if key not in told}
    figures = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in rest.items()
    )
    return " | ".join(filter(None, (row["status"], row["part"], row["case"], figures, row.get("why"))))


def proposal(rows: list[dict[str, Any]]) -> list[str]:
    """For each case of the timings, the implementation that `choose` should take."""
    times: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["part"] == "time" and "ms" in row:
            case, _, name = row["case"].rpartition(": ")
            times.setdefault(case, {})[name] = row["ms"]
    lines = []
    for case, found in times.items():
        own = {name: found[name] for name in ("sdpa", "reference") if name in found}
        if not own:
            continue
        best = min(own, key=own.__getitem__)
        gain = own[best] / found["triton"] if "triton" in found else 0.0
        chosen = "triton" if gain >= MARGIN else best
        lines.append(f"| {case} | {chosen} | {gain:.2f} |" if gain else f"| {case} | {chosen} | |")
    return lines


def write(proof: Proof, folder: Path) -> Path:
    """Write the rows so far into a folder; returns the path of the table."""
    name = proof.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(proof.rows, indent=1) + "\n")
    table = [f"# {name}", "", "| | part | case | result |", "|---|---|---|---|"]
    for row in proof.rows:
        status, part, case, *rest = describe(row).replace("\n", " ").split(" | ")
        table.append(f"| {status} | {part} | {case} | {'; '.join(rest)} |")
    if lines := proposal(proof.rows):
        head = [
            "",
            "## Proposed for `choose`",
            "",
            "| case | implementation | gain of triton |",
            "|---|---|---|",
        ]
        table += [*head, *lines]
    path = folder / f"{name}.md"
    path.write_text("\n".join(table) + "\n")
    return path
