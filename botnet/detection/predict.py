"""Detecting objects in image files: pictures and COCO results of ``botnet predict``.

The module loads without PyTorch.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from rich.progress import track
from supervision import Detections

from botnet.detection.check import image_problems
from botnet.detection.coco import CocoInstances, read_images
from botnet.detection.detector import Detector, Prepared, TorchDetector
from botnet.detection.image_files import image_ids, recorded_paths
from botnet.detection.records import ImageRecord
from botnet.detection.results import ResultRecord, to_coco, write_results
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD, to_canvas
from botnet.errors import ConfigError, DataError
from botnet.folders import check_unused, make_folder
from botnet.images import check_some_left, denormalise, image_files, load_image
from botnet.visualize.detections import beside_truth, draw

if TYPE_CHECKING:
    from botnet.visualize.attention import AttentionProbe

logger = logging.getLogger(__name__)


class PredictedRecord(ResultRecord):
    """A detection, and the name of its image's file."""

    file_name: str


def predict(
    detector: Detector,
    sources: Sequence[Path],
    output: Path,
    *,
    recursive: bool = False,
    score: float = 0.5,
    tile: int | None = None,
    truth: Path | None = None,
    attention: bool = False,
    block: str | None = None,
    pixel: tuple[int, int] | None = None,
) -> tuple[list[PredictedRecord], list[DataError]]:
    """Detect objects in images; draw each image and write COCO results files.

    An image that cannot be read, or that does not contain ``pixel``, is left out.

    Args:
        detector: of :func:`botnet.load`.
        sources: image files, and folders of images.
        output: new folder, for one picture per image and ``results_bbox.json`` and ``results_segm.json`` with
            all detections, also those below ``score``. Images in subfolders get the same subfolders.
        recursive: take the images in subfolders, too.
        score: lowest score that is drawn.
        tile: side in pixels of the tiles that images are cut into; None: they are not.
        truth: instances file. Images with a record in it (:func:`image_ids`) are drawn beside their ground
            truth, and their EXIF orientation is applied or not as the size in the record requires.
        attention: draw the attention of one query of each image in ``output/attention``.
        block: name of the BoT block whose attention is drawn, or "all"; the first one by default.
        pixel: (x, y) of that query in each image's own pixels; by default the centre of the image.

    Returns:
        The records of the files, each with the ``image_id`` that :func:`image_ids` gives and the
        ``file_name``. And the errors of the images that were left out.

    Raises:
        ConfigError: no such block, no attention to draw, or the output folder is not empty. Nothing is
            written.
        DataError: an image does not exist, or none can be predicted. Nothing is written.
    """
    files = image_files(sources, recursive)
    check_unused(output)
    instances = CocoInstances(truth) if truth else None
    ids = image_ids(list(files.values()), instances.images if instances else [])
    if instances and (unknown := sum(not known for _, known in ids)):
        logger.warning(f"{truth} does not know {unknown} of the {len(files)} images")
    with _probes(detector, block) if attention else nullcontext():
        pass  # raises if the detector has no attention
    records: list[PredictedRecord] = []
    broken: list[DataError] = []
    for (name, path), (image_id, known) in track(list(zip(files.items(), ids, strict=True)), "predicting"):
        try:
            shown = load_image(path, instances.size_of(image_id) if instances and known else None)
            size = (shown.height, shown.width)
            query = _query(path, size, pixel if attention else None)
            prepared = detector.prepare(path, size)
            with _probes(detector, block) if attention else nullcontext() as probes:
                found = _detect(detector, prepared, shown, tile)
                if probes and tile is not None:
                    detector.detect([prepared])  # the picture is of the whole canvas, not of the last tile
            picture = draw(shown, found, score)
            if instances and known:
                left = draw(shown, instances.detections_of(image_id))
                picture = beside_truth(left, picture, score)
        except DataError as error:
            broken.append(error)
            continue
        _save(picture, output / f"{name}.png")
        if probes:
            sheet = _draw_attention(probes, prepared, max(detector.size), query)
            _save(sheet, output / "attention" / f"{name}.png")
        for record in to_coco(found, image_id):
            records.append({**record, "file_name": name + path.suffix})
    check_some_left(broken, len(files))
    written = write_results(output, records)
    left_out = f", {len(broken)} left out" if broken else ""
    print(f"{len(files) - len(broken)} images{left_out}, {len(records)} detections; pictures in {output}")
    _print_results(written)
    return records, broken


def predict_coco(
    detector: Detector, folders: Sequence[Path], output: Path, images_json: Path, *, tile: int | None = None
) -> list[ResultRecord]:
    """Write COCO results files for all images of a list, in the form that COCO's server takes.

    Args:
        detector: of :func:`botnet.load`.
        folders: of the images; file names are relative to one of them. Other files in them are ignored.
        output: new folder, for ``results_bbox.json`` and ``results_segm.json``.
        images_json: instances or image_info file, with the images' names, sizes and ids.
        tile: side in pixels of the tiles that images are cut into; None: they are not.

    Returns:
        The records of the files, boxes and masks in original pixels.

    Raises:
        ConfigError: the output folder is not empty.
        DataError: an image is missing, unreadable or of another size, or the detector has other categories.
    """
    check_unused(output)
    images, categories = read_images(images_json)
    paths = recorded_paths(images, folders, images_json)
    own = dict(zip(detector.category_ids, detector.class_names, strict=True))
    if not own.items() <= categories.items():
        strange = next(f"{key} ({name})" for key, name in own.items() if categories.get(key) != name)
        raise DataError(
            f"the detector finds category {strange}, which {images_json} does not have; "
            "give the image list of the data it was trained for"
        )
    _check_images(paths, images, images_json)
    records: list[ResultRecord] = []
    for image, path in track(list(zip(images, paths, strict=True)), "predicting"):
        size = (image.height, image.width)
        shown = load_image(path, size) if tile else None
        records += to_coco(_detect(detector, detector.prepare(path, size), shown, tile), image.id)
    make_folder(output)
    files = write_results(output, records)
    print(f"{len(images)} images, {len(records)} detections")
    _print_results(files)
    return records


def _detect(
    detector: Detector, prepared: Prepared, shown: Image.Image | None, tile: int | None
) -> Detections:
    """All detections in an image: prepared, or if there are tiles, ``shown``."""
    if tile is None:
        return detector.detect([prepared])[0]
    assert shown is not None
    return detector.predict(shown, threshold=0, tile=tile)


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


def _query(path: Path, size: tuple[int, int], pixel: tuple[int, int] | None) -> tuple[int, int]:
    """The pixel (x, y) whose attention is drawn, by default the centre."""
    height, width = size
    x, y = pixel or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise DataError(f"{path} has {width} x {height} pixels, none at {x} {y}; choose another --pixel")
    return x, y


def _probes(detector: Detector, block: str | None) -> "AbstractContextManager[list[AttentionProbe]]":
    """Probes of the attention in a detector that PyTorch runs."""
    if not isinstance(detector, TorchDetector):
        raise ConfigError("an exported model does not show its attention; give the run or its checkpoint")
    from botnet.visualize.attention import probe_attention

    return probe_attention(detector.network, block)


def _draw_attention(
    probes: "Sequence[AttentionProbe]", prepared: Prepared, canvas: int, query: tuple[int, int]
) -> Image.Image:
    """The attention of a query (x, y) in original pixels, on the canvas that the detector was given."""
    import torch

    from botnet.visualize.attention import attention_sheet

    scale_y, scale_x = prepared.placement.scale
    x, y = (query[0] + 0.5) * scale_x / canvas, (query[1] + 0.5) * scale_y / canvas
    image = torch.from_numpy(to_canvas(prepared.pixels, canvas))
    return attention_sheet(denormalise(image, IMAGENET_MEAN, IMAGENET_STD), probes, y, x)


def _save(picture: Image.Image, path: Path) -> None:
    make_folder(path.parent)
    picture.save(path)
