"""``botnet export``: a trained detector or classifier as one ONNX graph."""

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from botnet import __version__
from botnet.classification.classifier import open_classifier
from botnet.deploy.graphs import ClassifierGraph, DetectorGraph
from botnet.deploy.operators import onnx_forms
from botnet.deploy.session import FORMAT, OnnxModel
from botnet.deploy.verify import FULL, HALF, check_classifier, check_detector, choose_pictures
from botnet.detection import load_detector
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD
from botnet.errors import CheckpointError, ConfigError
from botnet.training.checkpoint_file import PARTIAL, TaskCheckpoint
from botnet.training.model_source import open_checkpoint
from botnet.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

STRIDE = 32  # of the backbone's last map
Size = tuple[int, int]
Check = Callable[[OnnxModel, list[Path]], None]


def export_onnx(
    source: str | Path,
    output: Path,
    *,
    size: Size | None = None,
    half: bool = False,
    verify: bool = True,
    images: Path | None = None,
) -> Path:
    """Write a trained network as an ONNX file that :class:`botnet.deploy.OnnxModel` runs.

    The file gets its name when it is complete and, with ``verify``, equal to the eager network.

    Args:
        source: a run, a checkpoint, a published folder or ``hf-hub:user/name``.
        output: new file.
        size: height and width of the images in pixels; by default the canvas of a detector, the evaluation
            size of a classifier.
        half: weights and activations in float16.
        verify: compare with the eager network, on pictures of the validation set if it is there.
        images: folder of other pictures to compare on.

    Returns:
        ``output``.

    Raises:
        CheckpointError: no checkpoint, one that cannot be read, or an exported network that differs.
        ConfigError: the output exists, or a size that the network does not take.
    """
    check_output(output)
    if size is not None and any(side < STRIDE or side % STRIDE for side in size):
        raise ConfigError(f"--size {size[0]} {size[1]}: give positive multiples of the stride, {STRIDE}")
    if images is not None and not images.is_dir():
        raise ConfigError(f"--images {images}: no such folder; give a folder of pictures")
    checkpoint = open_checkpoint(source)
    build = _detector if checkpoint.kind == "detector" else _classifier
    with _complete(output) as partial:
        check = build(checkpoint, partial, size, half)
        if verify:
            paths, words = choose_pictures(RunFolder(checkpoint.path.parent.parent), images)
            logger.info(f"comparing with the eager network on {words}: {HALF if half else FULL}")
            check(OnnxModel(partial), paths)
    return output


def check_output(output: Path) -> None:
    """Refuse an output that exists, or whose folder does not.

    Raises:
        ConfigError: it cannot be written.
    """
    if output.exists():
        raise ConfigError(f"{output} exists; name another file by --output")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: give a file in a folder that exists")


def _detector(checkpoint: TaskCheckpoint, output: Path, size: Size | None, half: bool) -> Check:
    """Write a detector; returns its comparison with the eager one."""
    detector, about = load_detector(checkpoint)
    size = size or (about["canvas"], about["canvas"])
    graph = DetectorGraph(copy.deepcopy(detector), size, IMAGENET_MEAN, IMAGENET_STD, half)
    # Two images: torch.export would take a batch of one for a constant.
    example = torch.zeros(2, 3, *size, dtype=torch.uint8), torch.tensor([size, size])
    batch = {0: Dim("batch")}
    outputs = ["counts", "boxes", "scores", "labels", *(["masks"] if detector.has_masks else [])]
    metadata = {
        "task": "detector",
        "class_names": list(about["class_names"]),
        "category_ids": list(about["category_ids"]),
        "size": size,
        "fixed_size": True,
        "preparation": {},
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    write_graph(graph, example, {"images": batch, "valid": batch}, outputs, metadata, output)
    return lambda model, paths: check_detector(detector, model, paths, HALF if half else FULL)


def _classifier(checkpoint: TaskCheckpoint, output: Path, size: Size | None, half: bool) -> Check:
    """Write a classifier; returns its comparison with the eager one."""
    classifier = open_classifier(checkpoint, device="cpu")
    about = classifier.preparation
    fixed = bool(getattr(classifier.model, "pretrained_cfg", {}).get("fixed_input_size"))
    own = tuple(about["input_size"][1:])
    if fixed and size not in (None, own):
        raise ConfigError(f"--size: this network takes images of {own[0]} x {own[1]} px only; leave it out")
    size = size or own
    graph = ClassifierGraph(copy.deepcopy(classifier.model), about["mean"], about["std"], half)
    example = (torch.zeros(2, 3, *size, dtype=torch.uint8),)
    dynamic = {0: Dim("batch")} if fixed else {0: Dim("batch"), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    metadata = {
        "task": "classifier",
        "class_names": classifier.class_names,
        "category_ids": [],
        "size": size,
        "fixed_size": fixed,
        "preparation": {key: about[key] for key in ("crop_pct", "interpolation")},
        "mean": about["mean"],
        "std": about["std"],
    }
    write_graph(graph, example, {"images": dynamic}, ["scores"], metadata, output)
    return lambda model, paths: check_classifier(classifier, model, paths, HALF if half else FULL)


def write_graph(
    graph: nn.Module,
    example: tuple[torch.Tensor, ...],
    dynamic: dict[str, Any],
    outputs: list[str],
    metadata: dict[str, Any],
    output: Path,
) -> None:
    """Write a module as an ONNX file.

    Args:
        graph: its arguments are named as the keys of ``dynamic``.
        example: arguments.
        dynamic: axes of each argument that may have any length.
        outputs: their names.
        metadata: stored beside the graph as JSON.
        output: the file.
    """
    # For operators of one image, onnxscript tells of versions that it does not convert.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            example,
            dynamo=True,
            verbose=False,
            input_names=list(dynamic),
            output_names=outputs,
            dynamic_shapes=dynamic,
            custom_translation_table=onnx_forms(),
        )
    assert program is not None
    for key, value in (metadata | {"format": FORMAT, "version": __version__}).items():
        program.model.metadata_props[f"botnet_{key}"] = json.dumps(value)
    program.save(output)


@contextlib.contextmanager
def _complete(output: Path) -> Iterator[Path]:
    """A temporary file, which gets its name if all goes well, and is removed if not."""
    partial = output.with_name(output.name + PARTIAL)
    try:
        yield partial
        os.replace(partial, output)
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written ({error}); make room or name another") from error
    finally:
        partial.unlink(missing_ok=True)
