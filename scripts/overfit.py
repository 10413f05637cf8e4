"""Overfit a detector on four photographs: a check of boxes and masks end to end.

It takes, from a COCO-format set, the first four photographs (by id) with 3 to 8 objects, none of them a
crowd and none under 15% of the photograph's longer side, and runs recipes/overfit.yaml on them.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OBJECTS = range(3, 9)
MIN_SIDE = 0.15  # of the photograph's longer side
TARGET = 0.80  # mask AP50 on the four


def choose(truth: dict[str, Any]) -> dict[str, Any]:
    """The instances file of the four photographs."""
    chosen = []
    for image in sorted(truth["images"], key=lambda image: image["id"]):
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        min_side = MIN_SIDE * max(image["height"], image["width"])
        if len(objects) in OBJECTS and all(
            not a.get("iscrowd") and max(a["bbox"][2:]) >= min_side for a in objects
        ):
            chosen.append(image)
    chosen = chosen[:4]
    if len(chosen) < 4:
        sys.exit(f"only {len(chosen)} photographs have {OBJECTS.start} to {OBJECTS.stop - 1} large objects")
    ids = {image["id"] for image in chosen}
    return {
        "images": chosen,
        "annotations": [a for a in truth["annotations"] if a["image_id"] in ids],
        "categories": truth["categories"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("instances", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/overfit"), help="new run folder")
    options = parser.parse_args()
    started = time.monotonic()
    if not options.instances.is_file():
        sys.exit(f"no instances file {options.instances}; give one: make overfit COCO_BY=folder (see README)")
    if options.run.exists():
        sys.exit(f"{options.run} exists; remove it, or give another folder by --run")
    options.run.mkdir(parents=True, exist_ok=True)
    four = options.run / "instances.json"
    four.write_text(json.dumps(choose(json.loads(options.instances.read_text()))))
    paths = {"train_instances": four, "train_images": options.images}
    paths |= {"val_instances": four, "val_images": options.images}
    changes = [f"--data.{name}={path}" for name, path in paths.items()]
    subprocess.run(
        [
            *(sys.executable, "-m", "botnet.cli", "fit", "--config", "recipes/overfit.yaml"),
            *changes,
            f"--trainer.default_root_dir={options.run}",
        ],
        check=True,
    )
    metrics = json.loads((options.run / "metrics.json").read_text())
    reached = metrics["mask"]["AP50"]
    print(
        f"overfit: box AP50 {metrics['box']['AP50']:.3f}, mask AP50 {reached:.3f} on its own four training "
        f"photographs, {time.monotonic() - started:.0f} s"
    )
    if reached < TARGET:
        sys.exit(f"mask AP50 is under {TARGET}")


if __name__ == "__main__":
    main()
