"""Paired timing, peak memory and the roofline, shared by the benchmarks."""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


def alternate(
    functions: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each function, called in alternation, so that other load on the machine affects all alike.

    Args:
        functions: what to time, by name; each is called once before, untimed.
        rounds: timed calls of each.
        clock: seconds; default wall-clock time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for turn in range(rounds):
        names = list(functions)
        for name in names if turn % 2 == 0 else reversed(names):
            synchronize()
            start = clock()
            functions[name]()
            synchronize()
            seconds[name].append(clock() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of the ratio of the first to the second time."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def options(doc: str | None, file: str, rounds: int, *, resumes: bool = True) -> argparse.ArgumentParser:
    """The options that benchmarks share.

    Args:
        doc: the benchmark's docstring.
        file: results file in build/benchmarks.
        rounds: default number of rounds.
        resumes: whether it keeps earlier results, and can measure CPU time.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks") / file)
    if resumes:
        parser.add_argument("--again", action="store_true", help="measure again what the results file has")
        parser.add_argument(
            "--cpu-time", action="store_true", help="CPU time of one thread, for a busy machine"
        )
    return parser


@contextlib.contextmanager
def busy_core(busy: bool) -> Iterator[None]:
    """Within it, another process computes all the time."""
    if not busy:
        yield
        return
    # Spawned: a forked process would share the threads' state of this one.
    other = get_context("spawn").Process(target=_compute, daemon=True)
    other.start()
    try:
        yield
    finally:
        other.kill()
        other.join()


def _compute() -> None:
    torch.set_num_threads(1)
    a = torch.randn(512, 512)
    while True:
        a = (a @ a).clamp(-1, 1)


def choose_clock(cpu_time: bool) -> Callable[[], float]:
    """Wall-clock time; or the CPU time of one thread, for a machine that others use too."""
    if not cpu_time:
        return time.perf_counter
    torch.set_num_threads(1)
    return time.process_time


def synchronize() -> None:
    """Wait for a GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(function: Callable[[], Any]) -> int:
    """Peak bytes of one call, above what is allocated before it.

    On a CPU this is the peak resident memory of the process on Linux, so it contains libraries' workspaces.
    """
    function()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux"):
        raise RuntimeError("peak memory of a CPU run is read from Linux's /proc; run on Linux or on a GPU")
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from what is resident now
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def gemm_rate(dtype: torch.dtype, device: torch.device, clock: Callable[[], float]) -> float:
    """Multiply-adds per second of a large square matrix product: the roof of a roofline."""
    side = 4096
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return side**3 / min(alternate({"gemm": lambda: a @ b}, 3, clock)["gemm"])


def machine(device: torch.device, clock: Callable[[], float]) -> dict[str, Any]:
    """The machine and settings of a measurement."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {
        "device": name,
        "clock": clock.__name__,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


def load(path: Path) -> dict[str, Any]:
    """Results of earlier runs, by case; empty without a file."""
    return json.loads(path.read_text()) if path.exists() else {}


def save(path: Path, results: dict[str, Any]) -> None:
    """Write the results so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1))
