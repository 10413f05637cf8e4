"""A valid data set on disk for tests to break, and images in their own pixels with their truth."""

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import botnet
from botnet.detection.check import check_data
from botnet.detection.coco import CocoInstances
from botnet.detection.datasets import CocoDataset, EvalDataset, TrainDataset
from botnet.detection.transforms import EvalTransform, TrainTransform
from botnet.images import load_image
from botnet.masks import decode_mask


def originals(instances, folder: Path) -> Iterator[tuple[np.ndarray, dict]]:
    """Images (H, W, 3) uint8 with the evaluation's target, whose masks are pixels (N, H, W)."""
    samples = EvalDataset(instances, folder, EvalTransform(8))
    for index, record in enumerate(samples.instances.images):
        _, target = samples[index]
        size = target["size"]
        picture = np.asarray(load_image(Path(folder) / record.file_name, size))
        masks = np.zeros((len(target["masks"]), *size), np.uint8)
        for mask, rle in zip(masks, target["masks"], strict=True):
            mask[:] = decode_mask(rle, *size)
        yield picture, target | {"masks": masks}


def write_detector(path: Path) -> Path:
    """A checkpoint as a run leaves it, of an untrained detector."""
    torch.manual_seed(0)
    built = botnet.mask_rcnn("botnet_tiny", num_classes=2, canvas=128)
    about = {"detector": built.spec, "class_names": ["a", "b"], "category_ids": [1, 2], "canvas": 128}
    weights = {f"detector.{name}": tensor for name, tensor in built.state_dict().items()}
    torch.save({"botnet": about, "state_dict": weights}, path)
    return path


SQUARE = [[10, 5, 30, 5, 30, 25, 10, 25]]


def sound_set() -> dict:
    """Two 40 x 30 images, ids with gaps, categories out of order, no optional key anywhere."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 30, "width": 40},
            {"id": 12, "file_name": "b.png", "height": 30, "width": 40},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 100, "image_id": 7, "category_id": 90, "bbox": [10, 5, 20, 20], "segmentation": SQUARE},
            {
                "id": 105,
                "image_id": 7,
                "category_id": 3,
                "bbox": [0, 0, 4, 6],
                "segmentation": [[0, 0, 4, 0, 4, 6]],
            },
        ],
    }


class Set:
    """An instances file and a folder on disk."""

    def __init__(self, root: Path) -> None:
        self.file, self.folder, self.data = root / "instances.json", root / "images", sound_set()
        self.folder.mkdir()
        rng = np.random.default_rng(0)
        for image in self.data["images"]:
            pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.folder / image["file_name"])

    def write(self) -> Path:
        self.file.write_text(json.dumps(self.data))
        return self.file

    def annotation(self, **changes) -> None:
        """Add an annotation to the valid ones: the first of them, changed."""
        self.data["annotations"].append(copy.deepcopy(self.data["annotations"][0]) | {"id": 200} | changes)

    def dataset(self, train: bool = False, **arguments) -> CocoDataset:
        """The set on a canvas of 40, on which its images keep their size."""
        instances = CocoInstances(self.write())
        if train:
            return TrainDataset(instances, self.folder, TrainTransform(40, (1, 1), flip=0), **arguments)
        return EvalDataset(instances, self.folder, EvalTransform(40), **arguments)

    def target(self, train: bool = False, index: int = 0, **arguments) -> dict:
        _, target = self.dataset(train, **arguments)[(0, index) if train else index]
        return target

    def kinds(self, **arguments) -> Counter:
        return Counter(
            (problem.kind, problem.severity) for problem in check_data(self.write(), self.folder, **arguments)
        )
