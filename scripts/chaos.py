"""Disturb training runs at random moments, resume them, and compare their ends with an undisturbed run's.

    python scripts/chaos.py                   60 moments, at most 15 minutes
    python scripts/chaos.py --moments 3       three of them

A small detector with workers is trained on handwritten digits, in one process and in two (gloo). It is killed
by SIGKILL in a training step, in a validation, while it writes a checkpoint or the cache of its annotations;
its disk fills, its images are away for a while, its last checkpoint is truncated, it gets SIGTERM twice. Each
time it is started again with --ckpt_path last, and must end with the parameters and the momentum of an
undisturbed run, bit for bit, leaving no process and no half-written file behind.
"""

import argparse
import atexit
import os
import random
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from small_detector import DETECTOR

# Runs are forked from this process, which has imported all that they need: a start takes no time.
import botnet.training.command  # noqa: F401
from botnet.cli import main as botnet_command
from botnet.demo.digits import make_digits
from botnet.detection import DetectionModule, pack
from botnet.training import checkpoint_io
from botnet.training.run_folder import RunFolder

PHASES = ("training", "validation", "checkpoint", "cache")
LONGEST = 240  # seconds of a run, on a busy machine


# ---- runs


def recipe(folder: Path, processes: int) -> Path:
    """Two epochs of six steps, in two processes of three; the data are behind a link."""
    data = folder / "data"
    content = {
        "model": {
            "class_path": "botnet.detection.DetectionModule",
            "init_args": {
                "detector": {"class_path": "botnet.detection.RCNN", "init_args": DETECTOR},
                "learning_rate": 0.01,
                "warmup_steps": 2,
                "warmup_learning_rate": 0.001,
                "pictures": 1,
            },
        },
        "data": {
            "class_path": "botnet.detection.CocoDataModule",
            "init_args": {
                "train_instances": str(data / "instances_train.json"),
                "train_images": str(data / "train"),
                "val_instances": str(data / "instances_val.json"),
                "val_images": str(data / "val"),
                "canvas": 64,
                "jitter": [0.8, 1.2],
                "batch_size": 2,
                "val_batch_size": 1,
                "num_workers": 1,
            },
        },
        "trainer": {
            "default_root_dir": str(folder / "run"),
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": processes,
            "strategy": "ddp" if processes > 1 else "auto",
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Run:
    """One start of a training in one or more processes, and the events that they report.

    Args:
        folder: of the run, prepared by :func:`prepare`.
        processes: how many.
        full_at: the write of a checkpoint from which on no file may grow; None: never.
    """

    def __init__(self, folder: Path, processes: int, minutes: float, full_at: int | None = None) -> None:
        self.folder, self.began = folder, time.monotonic()
        self.seen: Counter[str] = Counter()
        self.times: list[tuple[str, float]] = []
        self._events, written = os.pipe()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = ["fit", "--config", str(folder / "recipe.yaml"), "--ckpt_path", "last"]
        arguments += ["--save_minutes", str(minutes)]
        sys.stdout.flush()
        self.codes: dict[int, int | None] = {}
        for rank in range(processes):
            pid = os.fork()
            if pid == 0:
                self._work(rank, processes, port, written, arguments, full_at)
            self.codes[pid] = None
        os.close(written)

    def _work(
        self, rank: int, processes: int, port: int, events: int, arguments: list[str], full_at: int | None
    ) -> None:
        """What a process does; it never returns."""
        code: Any = 1
        try:
            os.setsid()
            log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(log, stream)
            os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")
            if processes > 1:  # as torchrun sets them
                os.environ |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
                    "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "chaos",
                    "GLOO_SOCKET_IFNAME": "lo",
                }  # fmt: skip
            _report(events, rank, full_at)
            code = botnet_command(arguments)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            atexit._run_exitfuncs()
            os._exit(code if isinstance(code, int) else 1)

    def _reap(self) -> None:
        for pid in self.codes:
            if self.codes[pid] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)

    def poll(self, seconds: float = 0.02) -> bool:
        """Take note of events and ends; whether a process still runs."""
        if select.select([self._events], [], [], seconds)[0]:
            chunk = os.read(self._events, 65536).decode().split()
            if not chunk:  # all ends of the pipe are closed
                time.sleep(seconds)
            for name in chunk:
                self.seen[name] += 1
                self.times.append((name, time.monotonic()))
        self._reap()
        return None in self.codes.values()

    def wait_for(self, phase: str, count: int) -> bool:
        """Wait until a phase has begun so many times; False if the run ended before."""
        while self.seen[phase] < count:
            if not self.poll() or time.monotonic() - self.began > LONGEST:
                return False
        return True

    def wait(self) -> list[int]:
        """Wait for the end; as launchers do, end the others 10 seconds after one that failed.

        Returns:
            Exit codes, negative for a signal.
        """
        failed: float | None = None
        while self.poll():
            codes = [code for code in self.codes.values() if code is not None]
            if failed is None and any(codes):
                failed = time.monotonic()
            late = time.monotonic() - self.began > LONGEST
            if late or (failed is not None and time.monotonic() - failed > 10):
                self.signal(signal.SIGKILL)
        os.close(self._events)
        return [code if code is not None else 0 for code in self.codes.values()]

    def signal(self, number: int, only: int | None = None, group: bool = False) -> None:
        """Send a signal to the processes that run, to one of them, or to their workers, too."""
        for rank, (pid, code) in enumerate(self.codes.items()):
            if code is None and only in (None, rank):
                (os.killpg if group else os.kill)(pid, number)

    def left(self) -> bool:
        """Whether workers are still there 20 seconds after the end; they are then killed."""
        until = time.monotonic() + 20
        for pid in self.codes:
            try:
                while True:
                    os.killpg(pid, 0)
                    if time.monotonic() > until:
                        os.killpg(pid, signal.SIGKILL)
                        return True
                    time.sleep(0.1)
            except ProcessLookupError:
                continue
        return False

    def gap(self, phase: str, count: int) -> float:
        """Seconds from the beginning of a phase to the next event, in this run."""
        places = [i for i, (name, _) in enumerate(self.times) if name == phase]
        place = places[count - 1]
        if place + 1 == len(self.times):
            return 0.1
        return self.times[place + 1][1] - self.times[place][1]


def _report(events: int, rank: int, full_at: int | None) -> None:
    """Let this process write the beginning of each phase into the pipe."""
    written = [0]

    def reporting(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def reported(*given: Any, **named: Any) -> Any:
            os.write(events, f"{phase}\n".encode())
            if phase == "checkpoint":
                written[0] += 1
                if written[0] == full_at:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            result = function(*given, **named)
            os.write(events, b"end\n")
            return result

        return reported

    pack.write_pack = reporting("cache", pack.write_pack)
    if rank == 0:
        checkpoint_io.write_file = reporting("checkpoint", checkpoint_io.write_file)
        module: Any = DetectionModule
        module.training_step = reporting("training", module.training_step)
        module.validation_step = reporting("validation", module.validation_step)


def prepare(folder: Path, digits: Path, processes: int) -> None:
    """The folder of a run: its recipe, and a link to the data."""
    folder.mkdir()
    (folder / "data").symlink_to(digits)
    recipe(folder, processes)


def end_of(folder: Path) -> dict[str, Any]:
    """What a run has learnt."""
    checkpoint = torch.load(RunFolder(folder / "run").last, map_location="cpu", weights_only=True)
    return {
        key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    }


def same(first: Any, second: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)


# ---- disturbances: each returns what was done, and what the log must hold


@dataclass
class Case:
    """One disturbance.

    Args:
        name: of it; a phase, in which the run is killed, or another of ``OTHERS``.
        processes: of the run.
        count: before which occurrence of the phase.
        part: of the time until the next event, from 0 to 1.
        whole: an undisturbed run.
        random: for further choices.
    """

    name: str
    processes: int
    count: int
    part: float
    whole: Run
    random: random.Random

    def disturb(self, folder: Path) -> tuple[str, list[int], str]:
        """Start a run and disturb it.

        Returns:
            What was done, the exit codes, and a text that the logs must contain in the end.
        """
        if self.name in PHASES:
            return self._kill(folder)
        return getattr(self, "_" + self.name.replace(" ", "_"))(folder)

    def _kill(self, folder: Path) -> tuple[str, list[int], str]:
        run = Run(folder, self.processes, self.random.choice([0, 10]))
        run.wait_for(self.name, self.count)
        delay = self.part * self.whole.gap(self.name, self.count)
        time.sleep(delay)
        only = self.random.choice([None, *range(self.processes)]) if self.processes > 1 else None
        run.signal(signal.SIGKILL, only)
        if only is not None:
            time.sleep(self.random.random())
            run.signal(signal.SIGKILL)
        codes = run.wait()
        who = "" if self.processes == 1 else " all at once" if only is None else f" process {only} first"
        return f"SIGKILL after {1000 * delay:.0f} ms{who}{_left(run)}", codes, ""

    def _disk_full(self, folder: Path) -> tuple[str, list[int], str]:
        codes = Run(folder, self.processes, 0, full_at=self.count).wait()
        return f"no room from checkpoint {self.count} on", codes, "the checkpoint cannot be written"

    def _data_removed(self, folder: Path) -> tuple[str, list[int], str]:
        run, data = Run(folder, self.processes, 0), folder / "data"
        run.wait_for("training", self.count)
        away = data.rename(folder / "away")
        codes = run.wait()
        away.rename(data)
        return f"images away from step {self.count} on", codes, str(data)

    def _truncated(self, folder: Path) -> tuple[str, list[int], str]:
        run = Run(folder, self.processes, 0)
        run.wait_for("training", self.count + 2)
        run.signal(signal.SIGKILL)
        codes, last = run.wait(), RunFolder(folder / "run").last
        length = int(self.part * last.stat().st_size)
        os.truncate(last, length)
        return f"last.ckpt cut to {length} bytes{_left(run)}", codes, "previous.ckpt is taken"

    def _SIGTERM_twice(self, folder: Path) -> tuple[str, list[int], str]:
        run = Run(folder, self.processes, 10)
        run.wait_for("training", self.count)
        run.signal(signal.SIGTERM, group=True)
        time.sleep(0.1 * self.part)
        run.poll(0)
        run.signal(signal.SIGTERM, group=True)
        codes = run.wait()
        return f"SIGTERM twice within {100 * self.part:.0f} ms{_left(run)}", codes, "stopped by SIGTERM"


OTHERS = ("disk full", "data removed", "truncated", "SIGTERM twice")


def _left(run: Run) -> str:
    return ", PROCESSES LEFT" if run.left() else ""


def outcome(folder: Path, case: Case, expected: dict[str, Any]) -> tuple[list[str], bool]:
    """Disturb a run, resume it and compare; the cells of its row, and whether all is well."""
    done, codes, message = case.disturb(folder)
    path = RunFolder(folder / "run").last
    step = "-"
    if path.exists() and "truncated" not in case.name:
        step = str(torch.load(path, weights_only=True)["global_step"])
    again = Run(folder, case.processes, 10)
    resumed = again.wait()
    problems = ["PROCESSES LEFT"] if "LEFT" in done or again.left() else []
    if any(resumed):
        problems.append(f"resumed run ended with {resumed}")
    elif not same(end_of(folder), expected):
        problems.append("OTHER WEIGHTS")
    if message and message not in (folder / "log.txt").read_text():
        problems.append(f"no message {message!r}")
    if case.name in OTHERS and case.name != "truncated":
        wanted = 143 if case.name == "SIGTERM twice" else 2
        if wanted not in codes:
            problems.append(f"status {codes}, not {wanted}")
    partial = [file.name for file in folder.rglob("*") if file.name.endswith(".partial") or _is_scratch(file)]
    if partial:
        problems.append(f"left: {', '.join(partial)}")
    where = f"{case.name} {case.count}" if case.name in PHASES else case.name
    cells = [
        str(case.processes),
        where,
        done,
        " ".join(map(str, codes)),
        step,
        "; ".join(problems) or "the same",
    ]
    return cells, not problems


def _is_scratch(file: Path) -> bool:
    return file.parent.name == "botnet" and file.name.startswith(".")


def cases(moments: int, wholes: dict[int, Run], others: bool, seed: int) -> list[Case]:
    """So many kills at random moments, and the other disturbances, in one process and in two."""
    rng, chosen = random.Random(seed), []
    for number in range(moments):
        processes = 1 + number % 2
        phase = PHASES[(number + number // len(PHASES)) % len(PHASES)]
        whole = wholes[processes]
        chosen.append(Case(phase, processes, rng.randint(1, whole.seen[phase]), rng.random(), whole, rng))
    if others:
        disturbed = [(name, processes) for name in OTHERS for processes in wholes]
        chosen[:0] = [
            Case(name, processes, rng.randint(2, 4), rng.random(), wholes[processes], rng)
            for name, processes in disturbed
        ]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=60, help="kills")
    parser.add_argument("--kills-only", action="store_true", help="without the other disturbances")
    parser.add_argument("--minutes", type=float, default=15, help="no further one is begun after these")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # forked processes could not use the threads of this one
    pack.SMALLEST_CACHED = 0  # the small file is cached like a large one
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that must not grow is an error, not a signal
    began, rows, failed = time.monotonic(), [], 0
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        digits = scratch / "digits"
        if (maker := os.fork()) == 0:
            make_digits(digits, train=12, val=3, size=96, progress=False)
            os._exit(0)
        os.waitpid(maker, 0)
        wholes, ends = {}, {}
        for processes in (1, 2):
            folder = scratch / f"whole{processes}"
            prepare(folder, digits, processes)
            wholes[processes] = run = Run(folder, processes, 0)
            if any(run.wait()):
                sys.exit(f"the undisturbed run failed:\n{(folder / 'log.txt').read_text()}")
            ends[processes] = end_of(folder)
        chosen = cases(args.moments, wholes, not args.kills_only, args.seed)
        for number, case in enumerate(chosen, 1):
            if time.monotonic() - began > 60 * args.minutes:
                break
            folder = scratch / f"case{number}"
            prepare(folder, digits, case.processes)
            cells, good = outcome(folder, case, ends[case.processes])
            rows.append([str(number), *cells])
            print(*rows[-1], sep=" | ", flush=True)
            if not good:
                failed += 1
                print((folder / "log.txt").read_text()[-6000:], flush=True)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    table = Table("", "processes", "moment", "disturbance", "status", "saved step", "end")
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(rows)} of {len(chosen)} disturbances in {minutes:.1f} minutes, {failed} with another end")
    if failed or not rows:
        sys.exit(1)


if __name__ == "__main__":
    main()
