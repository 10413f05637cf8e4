"""Two machines of two processes each, started by torchrun on the loopback interface (gloo)."""

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.tiny import differing, end_at, learnt, write_tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_a_step_on_two_machines_is_the_step_of_one_process(digits, tmp_path):
    prove = runpy.run_path(str(ROOT / "scripts" / "ddp.py"))["prove"]
    proof = prove(digits / "instances_train.json", digits / "train", 64, "botnet_tiny", tmp_path, machines=2)
    assert proof["moved"] > 1e-3
    assert proof["apart"] < 1e-6
    assert all(proof["same"].values())
    assert proof["records"] > 10


class Machine:
    """What one machine of two starts.

    Args:
        number: of the machine.
        port: of the first one.
        recipe: to be trained.
    """

    def __init__(self, number: int, port: int, recipe: Path) -> None:
        launcher = ["--nnodes", "2", "--node_rank", str(number), "--nproc_per_node", "2"]
        launcher += ["--master_addr", "127.0.0.1", "--master_port", str(port), "-m", "botnet.cli"]
        command = ["fit", "--config", str(recipe), "--ckpt_path", "last", "--save_minutes", "0"]
        self.log = recipe.with_name(f"machine{number}.txt")
        # By which its processes are found, which have sessions of their own.
        self.mark = f"{recipe}-{number}-{port}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "MACHINE": self.mark}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *launcher, *command],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def switch_off(self) -> None:
        """Kill the launcher and all that it has started, at once."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"MACHINE={self.mark}\0".encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        self.process.wait()


def start(recipe: Path) -> list[Machine]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [Machine(number, port, recipe) for number in range(2)]


def test_a_run_of_which_a_machine_was_switched_off_ends_like_another(tmp_path):
    # Of 48 samples, four processes see one each in a step.
    data, trainer = {"length": 48, "batch_size": 1}, {"devices": 2, "num_nodes": 2, "strategy": "ddp"}
    recipes = {}
    for name, callbacks in (("whole", []), ("run", end_at("on_train_batch_start", 8, "SIGSTOP", rank=2))):
        (tmp_path / name).mkdir()
        recipes[name] = write_tiny(
            tmp_path / name / "tiny.yaml", tmp_path / name, data, "TinyTask", callbacks=callbacks, **trainer
        )
    for machine in start(recipes["whole"]):
        assert machine.process.wait(900) == 0, machine.log.read_text()[-4000:]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    machines = start(recipes["run"])
    try:
        until = time.monotonic() + 900
        # The second machine stands still in its ninth step, so the run cannot end before.
        while not last.exists() or learnt(tmp_path / "run")["global_step"] < 8:
            assert time.monotonic() < until, machines[0].log.read_text()[-4000:]
            time.sleep(0.1)
        machines[1].switch_off()
        # The first one notices that the connection is closed.
        assert machines[0].process.wait(300) != 0
    finally:
        for machine in machines:
            machine.switch_off()
    assert learnt(tmp_path / "run")["global_step"] == 8
    write_tiny(recipes["run"], tmp_path / "run", data, "TinyTask", **trainer)
    for machine in start(recipes["run"]):
        assert machine.process.wait(900) == 0, machine.log.read_text()[-4000:]
    assert differing(learnt(tmp_path / "run"), learnt(tmp_path / "whole")) == []
