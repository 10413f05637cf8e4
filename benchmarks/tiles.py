"""A picture larger than the canvas: in tiles, fitted into the canvas, and as one picture on a large canvas.

    python benchmarks/tiles.py
    python benchmarks/tiles.py --checkpoint runs/mine --sides 1500 3000

The quickstart's detector and its digits, scattered over a photograph in the sizes of its data. Tiles of 320
px are fitted into the canvas of 160 px, as the pictures of its training are; "one canvas" is the whole
picture at the same scale. The peak of memory is that of ``predict``, above the picture and the network.
"""

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import peak_memory
from PIL import Image
from rich.console import Console
from rich.table import Table

import botnet
from botnet.demo.digits import NAMES, load_digits, load_photographs
from botnet.demo.scene import extent, paste_digits
from botnet.detection import load_detector
from botnet.detection.detector import TorchDetector
from botnet.detection.metric import CocoMetric
from botnet.detection.results import Truth
from botnet.masks import encode_mask

WINDOW = 320  # pixels of a picture of the quickstart
WAYS = ("in tiles", "fitted into the canvas", "one canvas")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--sides", nargs="+", type=int, default=[1500, 3000], help="of the pictures")
    parser.add_argument("--overlap", type=int, default=160, help="of the tiles in pixels")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()

    table = Table("picture", "digits", "way", "box AP", "box AP50", "mask AP50", "peak MB", "CPU seconds")
    for side in args.sides:
        for way in args.ways:
            # Each in a process of its own: the peak of one is not hidden by what another left.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(measure, (args.checkpoint, side, args.overlap, way))
            table.add_row(f"{side} x {side}", *row)
    Console(width=120).print(table)


def measure(checkpoint: Path, side: int, overlap: int, way: str) -> tuple[str, ...]:
    """The digits of a picture, and how well, at what memory and in what time they are found."""
    torch.set_num_threads(1)
    picture, truth = scatter(side)
    network, about = load_detector(checkpoint)
    options: dict[str, Any] = {}
    if way == "in tiles":
        options = {"tile": WINDOW, "overlap": overlap, "batch_size": 4}
    if way == "one canvas":  # with as many proposals and detections as all tiles have
        scale, windows = about["canvas"] / WINDOW, (side // WINDOW + 1) ** 2
        about["canvas"] = -(-round(side * scale) // 32) * 32
        for most in (network.rpn._pre_nms_top_n, network.rpn._post_nms_top_n):
            most["testing"] *= windows
        network.roi_heads.detections_per_img *= windows
    model = TorchDetector(network, **about)
    seconds: list[float] = []
    answers: list[Any] = []

    def predict() -> None:
        start = time.process_time()
        answers.append(model.predict(picture, threshold=0, **options))
        seconds.append(time.process_time() - start)

    peak = peak_memory(predict)
    metric = CocoMetric(NAMES, about["category_ids"])
    metric.update(botnet.to_coco(answers[-1], 1), truth)
    report = metric.report()
    numbers = report["box"]["AP"], report["box"]["AP50"], report["mask"]["AP50"]
    return (
        str(len(truth["labels"])),
        way,
        *(f"{number:.3f}" for number in numbers),
        f"{peak / 1e6:.0f}",
        f"{min(seconds):.1f}",
    )


def scatter(side: int) -> tuple[np.ndarray, Truth]:
    """Digits of the quickstart's validation on a photograph (side, side, 3) uint8, and their truth."""
    rng = np.random.default_rng(0)
    digits, (photograph, *_) = load_digits(0)["val"], load_photographs("val")
    picture = np.array(photograph.resize((side, side), Image.Resampling.BICUBIC))
    cell = side // (side // WINDOW)
    boxes, labels, areas, masks = [], [], [], []
    for top in range(0, side - cell + 1, cell):
        for left in range(0, side - cell + 1, cell):
            y, x = (start + int(rng.integers(cell - WINDOW + 1)) for start in (top, left))
            window = picture[y : y + WINDOW, x : x + WINDOW]
            for label, visible in paste_digits(rng, window, digits, WINDOW):
                mask = np.zeros((side, side), bool)
                mask[y : y + WINDOW, x : x + WINDOW] = visible
                boxes.append(extent(mask))
                labels.append(label + 1)
                areas.append(float(mask.sum()))
                masks.append(encode_mask(mask))
    return picture, Truth(
        boxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.tensor(labels),
        iscrowd=torch.zeros(len(labels), dtype=torch.int64),
        area=torch.tensor(areas),
        masks=masks,
    )


if __name__ == "__main__":
    main()
