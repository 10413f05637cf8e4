"""Classifying image files, with pictures of a BoTNet's attention: ``botnet predict`` with a classifier."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from PIL import Image
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor

from botnet.classification.classifier import Classifier
from botnet.classification.images import read_image
from botnet.errors import DataError
from botnet.folders import check_unused, make_folder
from botnet.images import check_some_left, denormalise, image_paths
from botnet.visualize.attention import attention_sheet, probe_attention

Guess = TypedDict("Guess", {"class": str, "index": int, "score": float})


class Prediction(TypedDict):
    """The file of an image and its most likely classes."""

    file: str
    classes: list[Guess]


def classify(
    classifier: Classifier,
    sources: Sequence[Path],
    output: Path,
    *,
    attention: bool = False,
    block: str | None = None,
    pixel: tuple[int, int] | None = None,
) -> tuple[list[Prediction], list[DataError]]:
    """Classify images one by one and write ``predictions.json``.

    An image that cannot be read, or whose ``pixel`` is outside the centre crop, is left out.

    Args:
        classifier: from :func:`botnet.classification.classifier.open_classifier`.
        sources: image files, and folders of images, with their subfolders.
        output: new folder.
        attention: draw the attention of one query of each image in ``output/attention``.
        block: name of the BoT block whose attention is drawn, or "all"; the first one by default.
        pixel: (x, y) of that query in each image's own pixels; by default the centre of the crop.

    Returns:
        For each image its ``file`` and its ``classes``: up to five in descending order of ``score``, each
        with ``class`` and ``index``. And the errors of the images that were left out.

    Raises:
        ConfigError: no such block, no attention to draw, or the output folder is not empty. Nothing is
            written.
        DataError: an image does not exist, or none can be classified. Nothing is written.
    """
    paths = image_paths(sources)
    check_unused(output)
    if attention:
        with probe_attention(classifier.model, block):
            pass  # raises if the network has no attention
    predictions: list[Prediction] = []
    broken: list[DataError] = []
    for path in track(paths, f"classifying with {escape(classifier.name)}"):
        try:
            image = read_image(path, str(path))
            y, x = _place_in_crop(path, image, pixel, classifier.preparation) if pixel else (0.5, 0.5)
        except DataError as error:
            broken.append(error)
            continue
        prepared = classifier.transform(image)
        if attention:
            with probe_attention(classifier.model, block) as probes:
                logits = _run(classifier, prepared)
            shown = denormalise(prepared, classifier.preparation["mean"], classifier.preparation["std"])
            sheet = output / "attention" / f"{paths[path]}.png"
            make_folder(sheet.parent)
            attention_sheet(shown, probes, y, x).save(sheet)
        else:
            logits = _run(classifier, prepared)
        predictions.append({"file": str(path), "classes": _most_likely(logits, classifier.class_names)})
    check_some_left(broken, len(paths))
    make_folder(output)
    (output / "predictions.json").write_text(json.dumps(predictions, indent=1))
    return predictions, broken


@torch.inference_mode()
def _run(classifier: Classifier, prepared: Tensor) -> Tensor:
    """Logits of one image, on the CPU."""
    return classifier.model(prepared[None].to(classifier.device))[0].float().cpu()


def _most_likely(logits: Tensor, class_names: Sequence[str]) -> list[Guess]:
    scores, indices = logits.softmax(-1).topk(min(5, len(logits)))
    return [
        {"class": class_names[index], "index": index, "score": score}
        for score, index in zip(scores.tolist(), indices.tolist(), strict=True)
    ]


def _place_in_crop(
    path: Path, image: Image.Image, pixel: tuple[int, int], preparation: dict[str, Any]
) -> tuple[float, float]:
    """Where a pixel (x, y) of an image is in the centre crop, as fractions of its height and width."""
    side = preparation["input_size"][-1]
    # As timm resizes: the short side to this, the long side truncated to whole pixels; then the centre crop.
    short = int(side / preparation["crop_pct"])
    place = []
    for where, length in zip(pixel, image.size, strict=True):
        resized = short * length // min(image.size)
        cropped = (where + 0.5) * resized / length - round((resized - side) / 2)
        place.append(cropped / side)
    if not all(0 <= part < 1 for part in place):
        raise DataError(
            f"{path}: pixel {pixel} of its {image.width} x {image.height} is outside the centre crop; choose "
            "one nearer to the centre, or a larger crop by --crop 1"
        )
    return place[1], place[0]


def render(predictions: Sequence[Prediction], most: int = 50) -> Table:
    """A table of the classes of the first ``most`` images."""
    table = Table("image", "class", "score")
    for prediction in predictions[:most]:
        for rank, guess in enumerate(prediction["classes"]):
            name = Path(prediction["file"]).name if rank == 0 else ""
            table.add_row(Text(name), Text(guess["class"]), f"{guess['score']:.3f}")
        table.add_section()
    if len(predictions) > most:
        table.caption = f"the first {most} of {len(predictions)} images; predictions.json has all"
    return table
