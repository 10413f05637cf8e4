"""The paper's image size on this machine: BoT50 Mask R-CNN, canvas 1024, jitter [0.1, 2.0].

Trains three steps of one image and evaluates two images; prints losses, times and the peak memory.
"""

import argparse
import math
import resource
import sys
import tempfile
import time
from pathlib import Path

import lightning.pytorch as L

from botnet.detection import CocoDataModule, DetectionModule, mask_rcnn


class Clock(L.Callback):
    """Prints each training step's losses and seconds, and the seconds of the evaluation."""

    def on_train_batch_start(self, *_: object) -> None:
        self.started = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        seconds = time.monotonic() - self.started
        losses = {name: float(value) for name, value in trainer.callback_metrics.items() if "train/" in name}
        shown = "  ".join(f"{name.removeprefix('train/')} {value:.4f}" for name, value in losses.items())
        print(f"training step {trainer.global_step}: {seconds:.1f} s  {shown}", flush=True)
        if not all(map(math.isfinite, losses.values())):
            sys.exit("a loss is not finite")

    def on_validation_batch_start(self, *_: object) -> None:
        self.started = time.monotonic()

    def on_validation_batch_end(self, *_: object) -> None:
        print(f"evaluated an image: {time.monotonic() - self.started:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "data", type=Path, help="folder with instances_train.json, instances_val.json, images/"
    )
    folder = parser.parse_args().data
    if not (folder / "instances_train.json").is_file():
        raise SystemExit(f"no instances_train.json in {folder}; make full-size COCO_BY=folder (see README)")
    L.seed_everything(0)
    data = CocoDataModule(
        folder / "instances_train.json",
        folder / "images",
        folder / "instances_val.json",
        folder / "images",
        batch_size=1,
        val_batch_size=1,
        num_workers=1,
    )
    detector = mask_rcnn("botnet50", data.num_classes, bn_momentum=0.003, bn_eps=1e-4)
    # The linear scaling rule: 0.08 is for 64 images.
    module = DetectionModule(detector, learning_rate=0.08 / 64, warmup_learning_rate=0.0067 / 64)
    with tempfile.TemporaryDirectory() as run:
        trainer = L.Trainer(
            default_root_dir=run,
            max_epochs=1,
            limit_train_batches=3,
            limit_val_batches=2,
            num_sanity_val_steps=0,
            callbacks=[Clock()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"full size: 3 training steps and 2 evaluated images, peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
