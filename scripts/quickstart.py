"""Make a data set, then train and evaluate a small BoTNet Mask R-CNN on it: `make quickstart`."""

import json
import subprocess
import sys
import time
from pathlib import Path

RUN = Path("runs/quickstart")


def botnet(*arguments: str) -> None:
    finished = subprocess.run([sys.executable, "-m", "botnet.cli", *arguments])
    if finished.returncode:
        sys.exit(finished.returncode)


def main() -> None:
    started = time.monotonic()
    botnet("make-digits", "data/digits")
    botnet("fit", "--config", "recipes/quickstart.yaml")
    metrics = json.loads((RUN / "metrics.json").read_text())
    print(
        f"quickstart: box AP50 {metrics['box']['AP50']:.3f}, mask AP50 {metrics['mask']['AP50']:.3f}, "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
