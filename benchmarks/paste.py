"""Masks from the network's grids to COCO's run lengths on the image: three ways, on one thread.

    python benchmarks/paste.py

"botnet" is paste_masks and to_rles. "mask by mask" samples the pixels of each box by torch's grid_sample and
encodes an image for each. "torchvision" is its paste_masks_in_image, then pycocotools' encode. 100 boxes with
sides from 2 % of the image's to all of it, evenly in the logarithm; round masks of 28 x 28 cells.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternate, load, machine, options, ratio, save
from pycocotools import mask as pycocotools
from rich.console import Console
from rich.table import Table
from torchvision.models.detection.roi_heads import paste_masks_in_image

from botnet.masks import encode_mask, to_rles
from botnet.pasting import paste_masks

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.pasting import coco_like, paste_mask

SIZES = ((480, 640), (2160, 3840))  # height, width
COUNT = 100
TARGETS = {(480, 640): 10, (2160, 3840): 120}  # ms


def main() -> None:
    args = options(__doc__, "paste.json", 5, resumes=False).parse_args()
    torch.set_num_threads(1)
    results = load(args.out)
    for height, width in SIZES:
        seconds = alternate(ways(height, width), args.rounds)
        results[f"{width} x {height}"] = {
            "seconds": seconds,
            "target": TARGETS[height, width],
            "machine": machine(torch.device("cpu"), time.perf_counter),
        }
        save(args.out, results)
    Console().print(tabulate(results))


def ways(height: int, width: int) -> dict[str, Callable[[], list[Any]]]:
    """Each way from grids and boxes to compressed run lengths."""
    probabilities, boxes = coco_like(COUNT, height, width)
    grids, corners = torch.from_numpy(probabilities), torch.from_numpy(boxes)

    def mask_by_mask() -> list[Any]:
        return [
            encode_mask(paste_mask(grid, box, height, width).numpy())
            for grid, box in zip(grids, corners, strict=True)
        ]

    def torchvision() -> list[Any]:
        return [
            pycocotools.encode(
                np.asfortranarray(
                    paste_masks_in_image(grid[None, None], box[None], (height, width))[0, 0] >= 0.5
                )
            )
            for grid, box in zip(grids, corners, strict=True)
        ]

    def botnet() -> list[Any]:
        return to_rles(paste_masks(probabilities, boxes, height, width))

    if botnet() != mask_by_mask():
        raise RuntimeError("paste_masks and grid_sample give different masks")
    return {"botnet": botnet, "mask by mask": mask_by_mask, "torchvision": torchvision}


def tabulate(results: dict[str, Any]) -> Table:
    table = Table("image", "way", f"ms for {COUNT} masks", "of botnet's time")
    for case, result in results.items():
        for name, seconds in result["seconds"].items():
            own = name == "botnet"
            table.add_row(
                case if own else "",
                name,
                f"{1e3 * statistics.median(seconds):.1f}" + (f" (<= {result['target']})" if own else ""),
                f"{ratio(seconds, result['seconds']['botnet']):.1f}x",
            )
        table.add_section()
    return table


if __name__ == "__main__":
    main()
