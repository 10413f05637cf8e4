"""What a training sees of a data set, and which canvas and anchors suit it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from botnet.detection.coco import CocoInstances
from botnet.detection.datamodule import CocoDataModule
from botnet.detection.datasets import TrainDataset
from botnet.detection.records import distinct_names
from botnet.detection.rpn import Anchors
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform
from botnet.errors import ConfigError, DataError
from botnet.folders import check_unused, new_folder
from botnet.images import denormalise
from botnet.training.command import data_options
from botnet.visualize.dataset import plot_distributions, write_page
from botnet.visualize.detections import draw

CELL = 4  # pixels of the canvas in a cell of p2
CELLS = (1, 4, 8)
STRIDES = (4, 8, 16, 32, 64)  # of p2 to p6
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)  # anchor sides in cells, to choose from
STEP, LARGEST = 64, 1536  # pixels: a canvas is a multiple of the stride of p6
SMALL_SHARE = 0.1  # of the objects may stay below 4 cells


@dataclass(frozen=True)
class Advice:
    """What the sizes of the objects suggest.

    Args:
        below: the share of objects whose side is below 1, 4 and 8 cells of p2, by the number of cells.
        canvas: the smallest multiple of 64 pixels, up to 1536, on which at most a tenth is below 4 cells.
        overlap: for each anchor scale the mean IoU of an object with the best anchor around the same centre.
        anchor_scale: the scale with the greatest; of equal ones, to two decimals, the largest.
    """

    below: dict[int, float]
    canvas: int
    overlap: dict[float, float]
    anchor_scale: float


def advise(boxes: np.ndarray, longer: np.ndarray, canvas: int) -> Advice:
    """Which canvas and anchors suit objects.

    Args:
        boxes: widths and heights of the objects in pixels of their images, (N, 2).
        longer: the longer side of each object's image, (N,).
        canvas: side in pixels that the longer side is brought to.
    """
    relative = np.sqrt(boxes.prod(1)) / longer
    below = {cells: float((relative * canvas < cells * CELL).mean()) for cells in CELLS}
    needed = 4 * CELL / max(float(np.quantile(relative, SMALL_SHARE)), 1e-9)
    chosen = min(max(STEP * math.ceil(needed / STEP - 1e-9), STEP), LARGEST)
    placed = boxes / longer[:, None] * canvas
    overlap = {scale: float(_best_overlap(placed, scale).mean()) for scale in SCALES}
    best = max(overlap, key=lambda scale: (round(overlap[scale], 2), scale))
    return Advice(below, chosen, overlap, best)


def _best_overlap(boxes: np.ndarray, scale: float) -> np.ndarray:
    """IoU of each box (width, height) with the best anchor of any level around the same centre."""
    ratios = np.sqrt(Anchors(STRIDES, scale).ratios)
    side = scale * np.array(STRIDES)[:, None]
    anchors = np.stack([side / ratios, side * ratios], -1).reshape(-1, 2)
    inside = np.minimum(boxes[:, None], anchors).prod(-1)
    union = boxes.prod(1)[:, None] + anchors.prod(1) - inside
    return (inside / union).max(1)


def recipe_data(recipe: Path, options: Sequence[str] = ()) -> CocoDataModule:
    """The data of a recipe for detectors, as ``botnet fit`` makes them.

    Args:
        recipe: a file, or ``recipes/...`` of the package.
        options: of the command line that override it, ``--data.X VALUE``.

    Raises:
        ConfigError: it is not such a recipe, or a number or word is not allowed.
        DataError: the data are missing or broken.
    """
    kind, arguments = data_options(["--config", str(recipe), *options])
    if not issubclass(kind, CocoDataModule):
        raise ConfigError(f"{recipe}: its data are not those of a detector, but of {kind.__name__}")
    return kind(**arguments)


def plain_data(instances: Path, images: Path, canvas: int) -> TrainDataset:
    """The training images of an instances file, with the jitter and the flip of the defaults."""
    file = CocoInstances(instances)
    return TrainDataset(file, images, TrainTransform(canvas), masks=file.maskless is None)


def browse_data(data: TrainDataset, out: Path, samples: int = 16) -> Advice:
    """Draw what a training sees of a data set into a new folder, completely or not at all.

    Written are ``samples/``, augmented images with their objects as the network takes them; pictures of the
    objects' sizes, aspects, numbers and classes; and ``index.html``, which holds all of it.

    Args:
        data: training images.
        out: new folder.
        samples: number of images to draw.

    Raises:
        ConfigError: the folder is in use.
        DataError: there are no objects, or an image is broken.
    """
    check_unused(out)
    canvas = data.transform.canvas
    boxes, longer, per_image, classes = _objects(data.instances)
    if not len(boxes):
        raise DataError(f"{data.instances.path}: has no objects to learn from")
    advice = advise(boxes, longer, canvas)
    with new_folder(out) as folder:
        (folder / "samples").mkdir()
        drawn = [_draw_sample(data, index, folder / "samples") for index in _spread(len(data), samples)]
        sides = np.sqrt(boxes.prod(1)) / longer * canvas
        marks = {f"{cells} cells" if cells > 1 else "1 cell": cells * CELL for cells in CELLS}
        plots = plot_distributions(folder, sides, marks, boxes[:, 0] / boxes[:, 1], per_image, classes)
        seen = "As the network takes them in the first epoch: scaled, cropped, flipped."
        described = f"{len(data)} images, {len(boxes)} objects of {len(classes)} classes; canvas {canvas}."
        page = [
            ("Canvas and anchors", [described, *advice_lines(advice, canvas)], [plots["sizes"]]),
            ("Objects", [], [plots["aspects"], plots["objects"], plots["classes"]]),
            (
                "Training images",
                [seen],
                drawn,
            ),
        ]
        write_page(folder / "index.html", f"{data.instances.path.name}", page)
    return advice


def advice_lines(advice: Advice, canvas: int) -> list[str]:
    """The advice in words."""
    shares = ", ".join(f"{share:.1%} below {cells}" for cells, share in advice.below.items())
    wanted = f"Canvas: from {advice.canvas} on, at most {SMALL_SHARE:.0%} are below 4 cells."
    if advice.canvas == LARGEST:
        wanted = (
            f"Canvas: more than {SMALL_SHARE:.0%} may be below 4 cells even at {LARGEST}; consider tiles."
        )
    best = ", ".join(f"{scale:g}: {value:.2f}" for scale, value in advice.overlap.items())
    return [
        f"Sides of the objects at canvas {canvas}, in cells of p2 ({CELL} pixels): {shares}.",
        wanted,
        f"Anchors: anchor_scale {advice.anchor_scale:g} at canvas {canvas}. "
        f"Mean IoU of an object with the best anchor, by scale: {best}.",
    ]


def _objects(instances: CocoInstances) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
    """Sizes of the objects, longer sides of their images, objects of each image, and of each class."""
    boxes, longer, per_image = [], [], []
    classes: Counter[int] = Counter()
    for image in instances.images:
        found = [a for a in instances.annotations_of(image.id) if not a.iscrowd]
        boxes += [annotation.bbox[2:] for annotation in found]
        longer += [max(image.height, image.width)] * len(found)
        per_image.append(len(found))
        classes.update(annotation.category_id for annotation in found)
    names = distinct_names(instances.class_names, instances.category_ids)
    counts = {name: classes[category] for name, category in zip(names, instances.category_ids, strict=True)}
    return np.array(boxes, float).reshape(-1, 2), np.array(longer, float), np.array(per_image), counts


def _spread(length: int, number: int) -> list[int]:
    """Indices from the whole of a data set, evenly spaced."""
    return sorted({index * length // number for index in range(number)})


def _draw_sample(data: TrainDataset, index: int, folder: Path) -> Path:
    from supervision import Detections  # takes half a second to import

    image, target = data[0, index]
    labels = target["labels"].numpy()
    detections = Detections(
        xyxy=target["boxes"].numpy(),
        mask=target["masks"].numpy().astype(bool) if "masks" in target else None,
        class_id=labels - 1,
        data={"class_name": np.array(data.instances.class_names, dtype=object)[labels - 1].astype(str)},
    )
    shown = denormalise(image, IMAGENET_MEAN, IMAGENET_STD)
    height, width = target["valid"]
    shown[:, height:], shown[:, :, width:] = 0, 0  # the padding
    path = folder / f"{index:06d}.jpg"
    draw(torch.as_tensor(shown), detections).save(path, quality=90)
    return path
