"""Writing the page: an image, what a model finds in it, and the attention of all its BoT blocks."""

import os
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from PIL import Image

from botnet import __version__
from botnet.classification.image_classifier import ImageClassifier, TorchClassifier, as_read
from botnet.detection.detector import Detector, TorchDetector
from botnet.errors import ConfigError
from botnet.explorer.terms import block_terms
from botnet.images import as_image, denormalise
from botnet.visualize.attention import COLOURS, probe_attention
from botnet.visualize.detections import PALETTE, ink_on
from botnet.visualize.embed import embedded_picture

if TYPE_CHECKING:
    from supervision import Detections

MOST_GUESSES = 5  # classes of a classifier that the page names


def explore(
    model: Detector | ImageClassifier,
    image: "str | PathLike[str] | Image.Image",
    output: str | PathLike[str],
    *,
    threshold: float = 0.5,
    name: str | None = None,
) -> Path:
    """Write a page that shows what each place of an image attends to, in every head of every BoT block.

    The page is one file and needs no network. Its weights are those of ``MHSA2d.attention_weights``, computed
    in the browser from terms that are rounded to 16 bits.

    Args:
        model: of :func:`botnet.load`, with at least one BoT block.
        image: a path, or a Pillow image.
        output: HTML file, which may exist, in a folder that does.
        threshold: least score of a detection on the page. Default 0.5.
        name: of the model on the page; by default its kind.

    Returns:
        The page.

    Raises:
        ConfigError: an exported model, one without a BoT block, a threshold outside of [0, 1], or an output
            that cannot be written.
        DataError: the image cannot be read, or the attention to it is not finite.
    """
    output = Path(output)
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"{output}: give a file in a folder that exists")
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold {threshold}: give a confidence from 0 to 1")
    if isinstance(model, TorchDetector):
        content = _detector_content(model, image, threshold)
    elif isinstance(model, TorchClassifier):
        content = _classifier_content(model, image)
    else:
        raise ConfigError("an exported model does not show its attention; give the run or its checkpoint")
    content["colours"] = (COLOURS(np.arange(256), bytes=True)[:, :3]).tolist()
    title = Path(image).name if isinstance(image, str | PathLike) else "image"
    _write(output, _render(content, title, name or f"a {model.task}"))
    return output


def _detector_content(
    detector: TorchDetector, image: "str | PathLike[str] | Image.Image", threshold: float
) -> dict[str, Any]:
    prepared = detector.prepare(image)
    with probe_attention(detector.network, "all") as probes:
        found = detector.detect([prepared])[0]
    blocks = [block_terms(probe) for probe in probes]
    height, width = (valid / detector.canvas for valid in prepared.placement.valid)
    scale_y, scale_x = (scale / detector.canvas for scale in prepared.placement.scale)
    found = cast("Detections", found[cast(np.ndarray, found.confidence) >= threshold])
    return {
        "task": "detection",
        "picture": embedded_picture(as_image(image)),
        "shown": [height, width],
        "sides": [1, 1],
        "threshold": threshold,
        "objects": _objects(found, np.array([scale_x, scale_y, scale_x, scale_y])),
        "blocks": blocks,
    }


def _objects(found: "Detections", scale: np.ndarray) -> list[dict[str, Any]]:
    """Detections with their boxes as fractions of the network's input, left, top, right, bottom."""
    assert found.confidence is not None
    assert found.class_id is not None
    colours = [PALETTE.by_idx(index) for index in found.class_id.tolist()]
    return [
        {
            "name": str(name),
            "score": score,
            "box": box,
            "colour": colour.as_hex(),
            "ink": ink_on(colour),
        }
        for name, score, box, colour in zip(
            found.data["class_name"],
            found.confidence.tolist(),
            (found.xyxy * scale).tolist(),
            colours,
            strict=True,
        )
    ]


def _classifier_content(
    classifier: TorchClassifier, image: "str | PathLike[str] | Image.Image"
) -> dict[str, Any]:
    prepared = classifier.prepare(as_read(image))
    with probe_attention(classifier.network, "all") as probes:
        scores = classifier.run(prepared[None])[0]
    blocks = [block_terms(probe) for probe in probes]
    preparation = classifier.preparation
    shown = denormalise(torch.from_numpy(prepared), preparation["mean"], preparation["std"])
    order = np.argsort(-scores, kind="stable")[:MOST_GUESSES]
    return {
        "task": "classification",
        "picture": embedded_picture(Image.fromarray(shown.permute(1, 2, 0).numpy())),
        "shown": [1, 1],
        "sides": [prepared.shape[1], prepared.shape[2]],
        "guesses": [
            {"name": classifier.class_names[index], "score": float(scores[index])} for index in order
        ],
        "objects": [],
        "blocks": blocks,
    }


def _render(content: dict[str, Any], image: str, model: str) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("botnet.explorer").joinpath("page.html.j2").read_text("utf-8"))
    return template.render(content=content, image=image, model=model, version=__version__)


def _write(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); make room or name another file"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
