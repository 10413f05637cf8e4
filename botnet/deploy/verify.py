"""Comparing an exported network with the eager one on pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from botnet.classification.classifier import Classifier
from botnet.deploy.session import OnnxModel
from botnet.detection import RCNN
from botnet.detection.placement import load_placed
from botnet.detection.transforms import EvalTransform, to_canvas
from botnet.errors import CheckpointError, DataError
from botnet.images import image_extensions, load_image
from botnet.layouts.find import configured_split
from botnet.training.run_folder import RunFolder

PICTURES = 8  # of a set, evenly spread
Found = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Tolerance:
    """How far an exported network may be from the eager one.

    Args:
        boxes: largest difference of a box in canvas pixels.
        scores: of a score or a probability.
        least: part of the detections that must have such a partner, on both sides.
        score: lowest score of the detections that are compared.
    """

    boxes: float
    scores: float
    least: float
    score: float

    def __str__(self) -> str:
        return f"boxes to {self.boxes:g} px, scores to {self.scores:g}"


FULL = Tolerance(boxes=1e-3, scores=1e-5, least=1.0, score=0.0)
# Three decimal digits. Boxes that nearly suppress one another, or nearly reach a threshold, may come or go.
HALF = Tolerance(boxes=2.0, scores=0.05, least=0.95, score=0.3)


def choose_pictures(run: RunFolder, given: Path | None) -> tuple[list[Path], str]:
    """Some pictures to compare on, and what they are in words; none where the run has no folder of them.

    Args:
        run: whose configuration may name its validation set.
        given: a folder of pictures to take instead.

    Raises:
        DataError: that folder holds no picture.
    """
    folder, words = given, f"pictures of {given}"
    if folder is None and run.config.is_file():
        settings = run.read_config().get("data") or {}
        try:
            validation = configured_split(settings, "val")
        except DataError:  # its root is not here
            validation = None
        named = validation.images if validation else settings.get("init_args", settings).get("val")
        if named and Path(named).is_dir():
            folder, words = Path(named), "pictures of the run's validation set"
    files = folder.rglob("*") if folder else ()
    paths = sorted(path for path in files if path.suffix.lower() in image_extensions())
    if given and not paths:
        raise DataError(f"{given} holds no image; give another folder by --images, or leave it out")
    if not paths:
        return [], "synthetic pictures (the run's validation set is not here; --images names others)"
    return paths[:: max(1, len(paths) // PICTURES)][:PICTURES], words


def synthetic(size: tuple[int, int], count: int = 4) -> list[np.ndarray]:
    """Pictures (h, w, 3) uint8 of smooth noise, each with its own height and width up to ``size``."""
    rng = np.random.default_rng(0)
    pictures = []
    for part in np.linspace(1, 0.4, count):
        height, width = (max(1, int(side * share)) for side, share in zip(size, (part, 1), strict=True))
        coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        pictures.append(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])
    return pictures


def on_canvas(pictures: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (h, w, 3) uint8 as one batch (B, 3, H, W), and their heights and widths (B, 2)."""
    images = np.zeros((len(pictures), 3, *size), np.uint8)
    for image, picture in zip(images, pictures, strict=True):
        image[:, : picture.shape[0], : picture.shape[1]] = picture.transpose(2, 0, 1)
    return images, np.array([picture.shape[:2] for picture in pictures], np.int64)


def check_detector(detector: RCNN, model: OnnxModel, paths: Sequence[Path], tolerance: Tolerance) -> None:
    """Compare an exported detector with the eager one on pictures; a black one must run.

    Raises:
        CheckpointError: they differ by more than the tolerance.
        DataError: a picture cannot be read.
    """
    place = EvalTransform(model.size).place
    pictures = [load_placed(path, place(load_image(path).size[::-1])) for path in paths]
    pictures = pictures or synthetic(model.size)
    # Not compared: the anchors of an even picture have equal scores, and each runtime picks others of them.
    model.run(*on_canvas([np.zeros((*model.size, 3), np.uint8)], model.size))
    for start in range(0, len(pictures), 3):
        images, valid = on_canvas(pictures[start : start + 3], model.size)
        eager = run_eager(detector, pictures[start : start + 3], model.size)
        compare(eager, model.run(images, valid), tolerance, detector.roi_heads.detections_per_img)


def run_eager(detector: RCNN, pictures: Sequence[np.ndarray], size: tuple[int, int]) -> Found:
    """What the eager detector finds in pictures (h, w, 3) uint8."""
    batch = torch.stack(
        [torch.from_numpy(to_canvas(picture, max(size)))[:, : size[0], : size[1]] for picture in pictures]
    )
    with torch.inference_mode():
        found: list[dict[str, Tensor]] = detector(batch, valid=[picture.shape[:2] for picture in pictures])
    for detection in found:
        if "masks" in detection:
            detection["masks"] = detection["masks"][:, 0]
    return [{name: values.numpy() for name, values in detection.items()} for detection in found]


def compare(eager: Found, exported: Found, tolerance: Tolerance, most: int) -> None:
    """Refuse detections of the same images that differ.

    Args:
        eager, exported: of each image, as :meth:`OnnxModel.run` gives them.
        tolerance: how far they may differ.
        most: detections of an image at which the detector cuts.

    Raises:
        CheckpointError: too many of them have no partner.
    """
    total = matched = 0
    for ours, theirs in zip(eager, exported, strict=True):
        for some, others in ((ours, theirs), (theirs, ours)):
            floor = tolerance.score
            if len(some["scores"]) >= most:  # those next to the cut may be on either side of it
                floor = max(floor, float(some["scores"].min()) + tolerance.scores)
            compared = some["scores"] >= floor
            near = (
                (abs(some["boxes"][:, None] - others["boxes"]).max(-1, initial=0) <= tolerance.boxes)
                & (abs(some["scores"][:, None] - others["scores"]) <= tolerance.scores)
                & (some["labels"][:, None] == others["labels"])
            )
            total += int(compared.sum())
            matched += int((near.any(1) & compared).sum())
    if matched < tolerance.least * total:
        raise CheckpointError(
            f"the exported detector differs from the eager one: {total - matched} of {total} detections have "
            f"no partner ({tolerance}); nothing was written; --no-verify writes it all the same"
        )


def check_classifier(
    classifier: Classifier, model: OnnxModel, paths: Sequence[Path], tolerance: Tolerance
) -> None:
    """Compare an exported classifier with the eager one, on pictures.

    Raises:
        CheckpointError: their probabilities differ by more than the tolerance.
        DataError: a picture cannot be read.
    """
    prepare = classifier.transform
    if paths:
        tensors = torch.stack([prepare(load_image(path)) for path in paths])
    else:
        noise = [torch.from_numpy(picture).permute(2, 0, 1) for picture in synthetic(model.size, 1)]
        tensors = (torch.stack(noise) / 255 - _column(model.mean)) / _column(model.std)
    with torch.inference_mode():
        eager = classifier.model(tensors).softmax(-1).numpy()
    pixels = ((tensors * _column(model.std) + _column(model.mean)) * 255).round().clamp(0, 255)
    found = np.stack([image["scores"] for image in model.run(pixels.to(torch.uint8).numpy())])
    # The score of a class may be any number of ulps of 1 away.
    worst = float(abs(eager - found).max())
    if not worst <= tolerance.scores:
        raise CheckpointError(
            f"the exported classifier differs from the eager one: a probability by {worst:.2g}, "
            f"{tolerance.scores:g} is allowed; nothing was written; --no-verify writes it all the same"
        )


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]
