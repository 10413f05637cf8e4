"""Images of an instances file in their own pixels, with their truth."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from botnet.detection.coco import EvalDataset, load_image
from botnet.detection.masks import decode_mask
from botnet.detection.transforms import EvalTransform


def originals(instances, folder: Path) -> Iterator[tuple[np.ndarray, dict]]:
    """Pictures (H, W, 3) uint8 with the evaluation's target, whose masks are pixels (N, H, W)."""
    samples = EvalDataset(instances, folder, EvalTransform(8))
    for index, record in enumerate(samples.instances.images):
        _, target = samples[index]
        size = target["size"]
        picture = np.asarray(load_image(Path(folder) / record["file_name"], size))
        masks = np.zeros((len(target["masks"]), *size), np.uint8)
        for mask, rle in zip(masks, target["masks"], strict=True):
            mask[:] = decode_mask(rle, *size)
        yield picture, target | {"masks": masks}
