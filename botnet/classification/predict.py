"""Classifying image files, with pictures of a BoTNet's attention: ``botnet predict`` with a classifier.

The module loads without PyTorch.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from PIL import Image
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text

from botnet.classification.image_classifier import ImageClassifier, TorchClassifier
from botnet.classification.images import read_image
from botnet.errors import ConfigError, DataError
from botnet.folders import check_unused, make_folder
from botnet.images import check_some_left, denormalise, image_files

if TYPE_CHECKING:
    from supervision import Classifications

    from botnet.visualize.attention import AttentionProbe

Guess = TypedDict("Guess", {"class": str, "index": int, "score": float})


class Prediction(TypedDict):
    """The file of an image and its most likely classes."""

    file: str
    classes: list[Guess]


def classify(
    classifier: ImageClassifier,
    sources: Sequence[Path],
    output: Path,
    *,
    recursive: bool = False,
    attention: bool = False,
    block: str | None = None,
    pixel: tuple[int, int] | None = None,
) -> tuple[list[Prediction], list[DataError]]:
    """Classify images one by one and write ``predictions.json``.

    An image that cannot be read, or whose ``pixel`` is outside the centre crop, is left out.

    Args:
        classifier: of :func:`botnet.load`.
        sources: image files, and folders of images.
        output: new folder.
        recursive: take the images in subfolders, too.
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
    files = image_files(sources, recursive)
    check_unused(output)
    with _probes(classifier, block) if attention else nullcontext():
        pass  # raises if the network has no attention
    predictions: list[Prediction] = []
    broken: list[DataError] = []
    for name, path in track(files.items(), f"classifying with {escape(classifier.name)}", len(files)):
        try:
            with _probes(classifier, block) if attention else nullcontext() as probes:
                found = classifier.predict(path)
            if probes:
                _draw_attention(classifier, path, probes, pixel, output / "attention" / f"{name}.png")
        except DataError as error:
            broken.append(error)
            continue
        predictions.append({"file": str(path), "classes": _most_likely(found, classifier.class_names)})
    check_some_left(broken, len(files))
    make_folder(output)
    (output / "predictions.json").write_text(json.dumps(predictions, indent=1))
    return predictions, broken


def _most_likely(found: "Classifications", class_names: Sequence[str]) -> list[Guess]:
    assert found.confidence is not None
    scores, indices = found.confidence[:5].tolist(), found.class_id[:5].tolist()
    return [
        {"class": class_names[index], "index": index, "score": score}
        for score, index in zip(scores, indices, strict=True)
    ]


def _probes(classifier: ImageClassifier, block: str | None) -> "AbstractContextManager[list[AttentionProbe]]":
    """Probes of the attention in a classifier that PyTorch runs."""
    if not isinstance(classifier, TorchClassifier):
        raise ConfigError("an exported model does not show its attention; give the run or its checkpoint")
    from botnet.visualize.attention import probe_attention

    return probe_attention(classifier.network, block)


def _draw_attention(
    classifier: ImageClassifier,
    path: Path,
    probes: "Sequence[AttentionProbe]",
    pixel: tuple[int, int] | None,
    output: Path,
) -> None:
    """Draw the attention of the pixel, or of the centre of the crop."""
    import torch

    from botnet.visualize.attention import attention_sheet

    assert isinstance(classifier, TorchClassifier)
    preparation, image = classifier.preparation, read_image(path, str(path))
    with Image.open(path) as whole:  # of a strip, ``image`` is only the middle
        y, x = _place_in_crop(path, whole, pixel, preparation) if pixel else (0.5, 0.5)
    shown = denormalise(torch.from_numpy(classifier.prepare(image)), preparation["mean"], preparation["std"])
    make_folder(output.parent)
    attention_sheet(shown, probes, y, x).save(output)


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
