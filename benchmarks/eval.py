"""Validation of a detector: pasting, encoding and scoring on a thread, beside doing so before the next batch.

The images and the network are random; with a score threshold of 0 each image has 100 detections with masks.
The records and metrics of both must be equal.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from botnet.detection import CocoDataModule, DetectionModule, mask_rcnn, scoring


def make_images(folder: Path, count: int, width: int, height: int) -> None:
    """Images of noise with ten rectangles each, as a COCO-format data set."""
    rng, images = np.random.default_rng(0), []
    annotations: list[dict[str, Any]] = []
    (folder / "images").mkdir()
    for number in range(1, count + 1):
        small = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        small.resize((width, height)).save(folder / "images" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        for x, y in rng.integers(0, [width // 2, height // 2], (10, 2)).tolist():
            right, bottom = x + width // 3, y + height // 3
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + len(annotations) % 80,
                    "bbox": [x, y, right - x, bottom - y],
                    "segmentation": [[x, y, right, y, right, bottom, x, bottom]],
                }
            )
    categories = [{"id": label, "name": f"class {label}"} for label in range(1, 81)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(truth))


class Clock(L.Callback):
    """Seconds from the first batch to the numbers."""

    def on_validation_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *given: Any) -> None:
        if given[1] == 0:
            self.started = time.perf_counter()

    def on_validation_epoch_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def validate(module: DetectionModule, data: CocoDataModule, waiting: int) -> tuple[float, Any]:
    """Images per second, and the records and metrics, with so many images waiting."""
    scoring.WAITING, clock = waiting, Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = L.Trainer(
            default_root_dir=folder,
            devices=1,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.validate(module, data, verbose=False)
    return len(data.val_set) / clock.seconds, (module.results, module.report)


def compare(
    detector: Mapping[str, Any], size: tuple[int, int], images: int, canvas: int, batch: int, rounds: int
) -> tuple[dict[str, list[float]], float]:
    """Images per second of both in each round, and the detections of an image.

    Args:
        detector: arguments of :func:`botnet.detection.mask_rcnn`.
        size: (width, height) of the images.
        images: how many.
        canvas: side of the square on which the network sees them.
        batch: images at once.
        rounds: validations of each, in alternation.
    """
    background = scoring.WAITING
    waiting = {"before the next batch": 0, "on a thread": background}
    rates: dict[str, list[float]] = {name: [] for name in waiting}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_images(folder, images, *size)
        files = (folder / "instances.json", folder / "images")
        data = CocoDataModule(
            *files, *files, canvas=canvas, batch_size=1, val_batch_size=batch, num_workers=1
        )
        network = mask_rcnn(num_classes=data.num_classes, canvas=canvas, score_threshold=0.0, **detector)
        module, found = DetectionModule(network, pictures=0), []
        for turn in range(rounds):
            for name in list(waiting)[:: 1 if turn % 2 == 0 else -1]:
                rate, numbers = validate(module, data, waiting[name])
                rates[name].append(rate)
                found.append(numbers)
    scoring.WAITING = background
    if any(numbers != found[0] for numbers in found):
        raise SystemExit("the validations differ")
    return rates, len(found[0][0]) / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--canvas", type=int, default=1024)
    parser.add_argument("--backbone", default="botnet50")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    L.seed_everything(0)
    rates, detections = compare(
        {"backbone": args.backbone}, tuple(args.size), args.images, args.canvas, args.batch, args.rounds
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{args.backbone} at {args.canvas} px on {device}: {args.images} images of {args.size[0]} x "
        f"{args.size[1]}, {detections:.0f} detections each"
    )
    table = Table("pasting, encoding, scoring", "images/s, median", "each round")
    for name, values in rates.items():
        table.add_row(name, f"{np.median(values):.3g}", ", ".join(f"{value:.3g}" for value in values))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
