"""``botnet predict`` with a classifier: the likeliest classes of each image, and where a BoTNet looks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor

from botnet.classification.evaluate import Classifier
from botnet.classification.readers import read_image
from botnet.errors import DataError
from botnet.folders import check_unused
from botnet.images import check_some_left, image_paths
from botnet.visualize.attention import attention_picture, probe_attention


def classify(
    classifier: Classifier,
    sources: Sequence[Path],
    output: Path,
    *,
    attention: bool = False,
    pixel: tuple[int, int] | None = None,
) -> tuple[list[dict[str, Any]], list[DataError]]:
    """Classify images one by one and write ``predictions.json``.

    An image that cannot be read, or of which the network does not see ``pixel``, is left out.

    Args:
        classifier: from :func:`botnet.classification.evaluate.open_classifier`.
        sources: images, and folders whose images are taken (not those of their subfolders).
        output: folder to make.
        attention: whether to draw, in ``output/attention``, what one place of each image attends to.
        pixel: (x, y) of that place in each image's own pixels; default the centre of what the network sees.

    Returns:
        For each image its ``file`` and its ``classes``: up to five, the likeliest first, with ``class``,
        ``index`` and ``score``. Then, what is wrong with the images that were left out.

    Raises:
        DataError: an image that does not exist, none that can be classified, an output folder in use, or no
            attention to draw. Nothing is written then.
    """
    paths = image_paths(sources)
    check_unused(output)
    if attention:
        with probe_attention(classifier.model):
            pass  # an error at once if there is none to draw
    records: list[dict[str, Any]] = []
    broken: list[DataError] = []
    for path in track(paths, f"classifying with {escape(classifier.name)}"):
        try:
            image = read_image(path, str(path))
            y, x = _seen_place(path, image, pixel, classifier.preparation) if pixel else (0.5, 0.5)
        except DataError as error:
            broken.append(error)
            continue
        prepared = classifier.transform(image)
        if attention:
            with probe_attention(classifier.model) as watched:
                logits = _run(classifier, prepared)
                weights, cell = watched.weights(y, x)
            picture = attention_picture(_shown(prepared, classifier), weights, cell)
            (output / "attention").mkdir(parents=True, exist_ok=True)
            picture.save(output / "attention" / f"{path.stem}.png")
        else:
            logits = _run(classifier, prepared)
        scores, indices = logits.softmax(-1).topk(min(5, len(logits)))
        classes = [
            {"class": classifier.class_names[index], "index": index, "score": score}
            for score, index in zip(scores.tolist(), indices.tolist(), strict=True)
        ]
        records.append({"file": str(path), "classes": classes})
    check_some_left(broken, len(paths))
    output.mkdir(parents=True, exist_ok=True)
    (output / "predictions.json").write_text(json.dumps(records, indent=1))
    return records, broken


@torch.inference_mode()
def _run(classifier: Classifier, prepared: Tensor) -> Tensor:
    return classifier.model(prepared[None].to(classifier.device))[0].float().cpu()


def _shown(prepared: Tensor, classifier: Classifier) -> Tensor:
    """The picture that a prepared image shows, (3, h, w) uint8."""
    mean, std = (torch.tensor(classifier.preparation[key])[:, None, None] for key in ("mean", "std"))
    return ((prepared * std + mean) * 255).round().clamp(0, 255).byte()


def _seen_place(
    path: Path, image: Image.Image, pixel: tuple[int, int], preparation: dict[str, Any]
) -> tuple[float, float]:
    """Where a pixel of an image is in the centre crop, as parts of its height and width."""
    side = preparation["input_size"][-1]
    # As timm resizes: the short side to this, the long side cut to whole pixels; then the middle.
    short = int(side / preparation["crop_pct"])
    place = []
    for where, length in zip(pixel, image.size, strict=True):
        resized = short * length // min(image.size)
        seen = (where + 0.5) * resized / length - round((resized - side) / 2)
        place.append(seen / side)
    if not all(0 <= part < 1 for part in place):
        raise DataError(
            f"{path}: of its {image.width} x {image.height} pixels the network does not see {pixel}; choose "
            "one nearer to the centre, or see more of the image by --crop 1"
        )
    return place[1], place[0]


def render(records: Sequence[dict[str, Any]], most: int = 50) -> Table:
    """The classes of the first images, a line each."""
    table = Table("image", "class", "score")
    for record in records[:most]:
        for place, found in enumerate(record["classes"]):
            name = Path(record["file"]).name if place == 0 else ""
            table.add_row(Text(name), Text(found["class"]), f"{found['score']:.3f}")
        table.add_section()
    if len(records) > most:
        table.caption = f"the first {most} of {len(records)} images; predictions.json has all"
    return table
