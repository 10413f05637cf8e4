"""Make a data set, then train and evaluate a small BoT-S1 and its ResNet: `make quickstart-classify`."""

import json
import subprocess
import sys
import time
from pathlib import Path

from fetch_fashion_mnist import fetch

SOURCE = Path("data/fashion-mnist")
RUNS = Path("runs/quickstart_classify")


def botnet(*arguments: str) -> None:
    finished = subprocess.run([sys.executable, "-m", "botnet.cli", *arguments])
    if finished.returncode:
        sys.exit(finished.returncode)


def main() -> None:
    fetch(SOURCE)
    botnet("make-images", "data/fashion", "--source", str(SOURCE), "--train", "12000", "--val", "2000")
    lines = []
    for network in ("botnet_s1_tiny", "resnet_tiny"):
        started, run = time.monotonic(), RUNS / network
        botnet(
            "fit", "--config", "recipes/quickstart_classify.yaml",
            "--model.model", network, "--trainer.default_root_dir", str(run),
        )  # fmt: skip
        metrics = json.loads((run / "metrics.json").read_text())
        seconds = time.monotonic() - started
        lines.append(
            f"{network}: top-1 {metrics['top1']:.1f} %, {seconds:.0f} s, pictures and curves in {run}"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
