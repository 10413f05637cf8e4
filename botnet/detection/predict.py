"""Detecting objects in image files: pictures and COCO results of ``botnet predict``."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track
from supervision import Detections
from torch import Tensor

from botnet.detection.check import image_problems
from botnet.detection.checkpoint import load_detector
from botnet.detection.coco import CocoInstances, read_images
from botnet.detection.image_files import image_ids, recorded_paths
from botnet.detection.placement import Placement
from botnet.detection.postprocess import to_original
from botnet.detection.rcnn import RCNN
from botnet.detection.records import ImageRecord
from botnet.detection.results import Objects, ResultRecord, coco_results, true_detections, write_results
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, load_on_canvas
from botnet.devices import pick_device
from botnet.errors import DataError
from botnet.folders import check_unused, make_folder
from botnet.images import check_some_left, denormalise, image_paths, load_image
from botnet.training.checkpoint_file import TaskCheckpoint
from botnet.visualize.attention import AttentionProbe, attention_sheet, probe_attention
from botnet.visualize.detections import beside_truth, draw

logger = logging.getLogger(__name__)


class PredictedRecord(ResultRecord):
    """A detection, and the name of its image's file."""

    file_name: str


def predict(
    checkpoint: str | Path | TaskCheckpoint,
    sources: Sequence[Path],
    output: Path,
    *,
    score: float = 0.5,
    truth: Path | None = None,
    attention: bool = False,
    block: str | None = None,
    pixel: tuple[int, int] | None = None,
    device: str = "auto",
) -> tuple[list[PredictedRecord], list[DataError]]:
    """Detect objects in images; draw each image and write COCO results files.

    An image that cannot be read, or that does not contain ``pixel``, is left out.

    Args:
        checkpoint: of ``botnet fit``, or its path; it holds the detector, its classes and its canvas.
        sources: image files, and folders of images, with their subfolders.
        output: new folder, for one picture per image and ``results_bbox.json`` and ``results_segm.json`` with
            all detections, also those below ``score``.
        score: lowest score that is drawn.
        truth: instances file. Images with a record in it (:func:`image_ids`) are drawn beside their ground
            truth, and their EXIF orientation is applied or not as the size in the record requires.
        attention: draw the attention of one query of each image in ``output/attention``.
        block: name of the BoT block whose attention is drawn, or "all"; the first one by default.
        pixel: (x, y) of that query in each image's own pixels; by default the centre of the image.
        device: "auto" takes an accelerator if there is one.

    Returns:
        The records of the files, each with the ``image_id`` that :func:`image_ids` gives and the
        ``file_name``. And the errors of the images that were left out.

    Raises:
        CheckpointError: the checkpoint cannot be read. Nothing is written.
        ConfigError: no such device or block, no attention to draw, or the output folder is not empty. Nothing
            is written.
        DataError: an image does not exist, or none can be predicted. Nothing is written.
    """
    names = image_paths(sources)
    paths = list(names)
    check_unused(output)
    detector, metadata = load_detector(checkpoint)
    instances = CocoInstances(truth) if truth else None
    ids = image_ids(paths, instances.images if instances else [])
    if instances and (unknown := sum(not known for _, known in ids)):
        logger.warning(f"{truth} does not know {unknown} of the {len(paths)} images")
    detector = detector.to(pick_device(device))
    if attention:
        with probe_attention(detector, block):
            pass  # raises if the detector has no attention
    records: list[PredictedRecord] = []
    broken: list[DataError] = []
    for path, (image_id, known) in track(list(zip(paths, ids, strict=True)), "predicting"):
        try:
            shown = load_image(path, instances.size_of(image_id) if instances and known else None)
            size = (shown.height, shown.width)
            query = _query(path, size, pixel if attention else None)
            image, placement = _prepare(path, size, metadata["canvas"])
            with probe_attention(detector, block) if attention else nullcontext() as probes:
                found = _detect(detector, image, placement, metadata["class_names"])
            picture = draw(shown, found, score)
            if instances and known:
                picture = _beside_truth(shown, picture, instances, image_id, score)
        except DataError as error:
            broken.append(error)
            continue
        drawing = output / f"{names[path]}.png"
        make_folder(drawing.parent)
        picture.save(drawing)
        if probes:
            sheet_file = output / "attention" / f"{names[path]}.png"
            make_folder(sheet_file.parent)
            _draw_attention(probes, image, placement, query).save(sheet_file)
        for record in coco_results(found, image_id, metadata["category_ids"]):
            records.append({**record, "file_name": f"{names[path]}{path.suffix}"})
    check_some_left(broken, len(paths))
    files = write_results(output, records)
    left_out = f", {len(broken)} left out" if broken else ""
    print(f"{len(paths) - len(broken)} images{left_out}, {len(records)} detections; pictures in {output}")
    _print_results(files)
    return records, broken


def predict_coco(
    checkpoint: str | Path | TaskCheckpoint,
    folders: Sequence[Path],
    output: Path,
    images_json: Path,
    *,
    device: str = "auto",
) -> list[ResultRecord]:
    """Write COCO results files for all images of a list, in the form that COCO's server takes.

    Args:
        checkpoint: of ``botnet fit``, or its path.
        folders: of the images; file names are relative to one of them. Other files in them are ignored.
        output: new folder, for ``results_bbox.json`` and ``results_segm.json``.
        images_json: instances or image_info file, with the images' names, sizes and ids.
        device: "auto" takes an accelerator if there is one.

    Returns:
        The records of the files, boxes and masks in original pixels.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: no such device, or the output folder is not empty.
        DataError: an image is missing, unreadable or of another size, or the detector has other categories.
    """
    check_unused(output)
    images, categories = read_images(images_json)
    paths = recorded_paths(images, folders, images_json)
    detector, metadata = load_detector(checkpoint)
    own = dict(zip(metadata["category_ids"], metadata["class_names"], strict=True))
    if not own.items() <= categories.items():
        strange = next(f"{key} ({name})" for key, name in own.items() if categories.get(key) != name)
        raise DataError(
            f"the detector finds category {strange}, which {images_json} does not have; "
            "give the image list of the data it was trained for"
        )
    _check_images(paths, images, images_json)
    detector = detector.to(pick_device(device))
    records: list[ResultRecord] = []
    for image, path in track(list(zip(images, paths, strict=True)), "predicting"):
        prepared = _prepare(path, (image["height"], image["width"]), metadata["canvas"])
        found = _detect(detector, *prepared, metadata["class_names"])
        records += coco_results(found, image["id"], metadata["category_ids"])
    make_folder(output)
    files = write_results(output, records)
    print(f"{len(images)} images, {len(records)} detections")
    _print_results(files)
    return records


def _check_images(paths: Sequence[Path], images: Sequence[ImageRecord], images_json: Path) -> None:
    """Refuse broken images before the first is predicted."""
    problems: list[str] = []
    for image, path in track(list(zip(images, paths, strict=True)), "checking"):
        problems += [problem.message for problem in image_problems(path, image, decode=True)]
    if problems:
        raise DataError(
            f"{len(problems)} of the {len(images)} images of {images_json} cannot be used, and results must "
            f"cover every image; the first: {problems[0]}"
        )


def _print_results(files: dict[str, Path]) -> None:
    for task, path in files.items():
        print(f"COCO results, {task}: {path}")


def _prepare(path: Path, size: tuple[int, int], canvas: int) -> tuple[Tensor, Placement]:
    """An image of ``size`` (height, width) on the canvas, as the detector takes it."""
    placement = EvalTransform(canvas).place(size)
    return torch.from_numpy(load_on_canvas(path, placement, canvas)), placement


def _detect(detector: RCNN, image: Tensor, placement: Placement, class_names: Sequence[str]) -> Detections:
    """The detections in one prepared image, in its original pixels."""
    device = next(detector.parameters()).device
    with torch.inference_mode():
        (detection,) = detector(image[None].to(device), valid=[placement.valid])
    return to_original(detection, placement.scale, placement.size, class_names)


def _query(path: Path, size: tuple[int, int], pixel: tuple[int, int] | None) -> tuple[int, int]:
    """The pixel (x, y) whose attention is drawn, by default the centre."""
    height, width = size
    x, y = pixel or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise DataError(f"{path} has {width} x {height} pixels, none at {x} {y}; choose another --pixel")
    return x, y


def _draw_attention(
    probes: Sequence[AttentionProbe], image: Tensor, placement: Placement, query: tuple[int, int]
) -> Image.Image:
    """The attention of a query (x, y) in original pixels, on the canvas that the detector was given."""
    (scale_y, scale_x), (height, width) = placement.scale, image.shape[-2:]
    x, y = (query[0] + 0.5) * scale_x / width, (query[1] + 0.5) * scale_y / height
    return attention_sheet(denormalise(image, IMAGENET_MEAN, IMAGENET_STD), probes, y, x)


def _beside_truth(
    image: Image.Image, picture: Image.Image, instances: CocoInstances, image_id: int, score: float
) -> Image.Image:
    """The ground truth of an image, and to its right the picture of its predictions."""
    annotations = instances.annotations_of(image_id)
    x, y, w, h = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4).unbind(1)
    labels = [instances.category_ids.index(a["category_id"]) + 1 for a in annotations]
    truth: Objects = {
        "boxes": torch.stack([x, y, x + w, y + h], dim=1),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": [instances.mask_of(annotation) for annotation in annotations],
    }
    left = draw(image, true_detections(truth, instances.class_names, (image.height, image.width)))
    return beside_truth(left, picture, score)
