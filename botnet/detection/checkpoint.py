"""Reading a trained detector without a trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from botnet.detection.rcnn import RCNN
from botnet.detection.records import distinct_names
from botnet.errors import CheckpointError, first_few
from botnet.layers.position import PositionTables
from botnet.training.checkpoint_file import TaskCheckpoint, building
from botnet.training.model_source import open_checkpoint

# Parts of the detector with one row, or four, for the background and each class.
CLASS_PARTS = tuple(
    f"roi_heads.{name}."
    for name in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
)


class _About(msgspec.Struct):
    class_names: list[str]
    category_ids: list[int]
    canvas: int


def detector_state(checkpoint: TaskCheckpoint) -> dict[str, Tensor]:
    """The detector's tensors in a checkpoint, by its own names."""
    return {
        name.removeprefix("detector."): value for name, value in checkpoint.contents["state_dict"].items()
    }


def load_detector(source: str | Path | TaskCheckpoint) -> tuple[RCNN, dict[str, Any]]:
    """A trained detector from a checkpoint of ``botnet fit``, read as data.

    Args:
        source: of :func:`open_checkpoint`, or the checkpoint that it returns.

    Returns:
        The detector in evaluation mode, and of its data ``class_names``, ``category_ids`` and ``canvas``.

    Raises:
        CheckpointError: the file cannot be read, holds no detector, or does not name its backbone.
    """
    checkpoint = source if isinstance(source, TaskCheckpoint) else open_checkpoint(source)
    if not checkpoint.expect("detector").spec:
        raise CheckpointError(
            f"{checkpoint.path} does not say which detector it holds: its backbone was given as a module; "
            "build it and read the checkpoint with torch.load"
        )
    with building(checkpoint) as arguments:
        detector = RCNN(**arguments)
        detector.load_state_dict(detector_state(checkpoint))
        about = msgspec.convert(checkpoint.metadata, _About)
        if not len(about.class_names) == len(about.category_ids) == detector.num_classes:
            raise ValueError(f"{len(about.class_names)} classes for {detector.num_classes} outputs")
    return detector.eval(), msgspec.structs.asdict(about)


def initialise(detector: RCNN, path: Path, class_names: Sequence[str]) -> str:
    """Start a detector from a trained one of other classes: fine-tuning, from COCO to a custom set.

    Every tensor that fits is taken. What belongs to a class is taken by the class's name, so that classes of
    both are known from the start; position tables of another canvas are resized.

    Args:
        detector: whose weights are replaced.
        path: checkpoint of :class:`DetectionModule`.
        class_names: of labels 1, 2, ... of the new detector, each once (:func:`distinct_names`).

    Returns:
        A message on what was taken and what was not.

    Raises:
        CheckpointError: the file cannot be read, holds no detector, or no kernel of its backbone fits.
    """
    checkpoint = open_checkpoint(path).expect("detector")
    theirs = distinct_names(checkpoint.metadata["class_names"], checkpoint.metadata["category_ids"])
    own = detector.state_dict()
    taken = _fitting(detector, detector_state(checkpoint), class_names, theirs)
    if not any(name.startswith("backbone.") and value.ndim == 4 for name, value in taken.items()):
        raise CheckpointError(
            f"{path}: no kernel of its backbone fits, and {len(taken)} of the {len(own)} tensors of the "
            "detector; it is of another network"
        )
    detector.load_state_dict(taken, strict=False)
    common, left = sum(name in theirs for name in class_names), sorted(own.keys() - taken.keys())
    return (
        f"started from {path}: {len(taken)} of {len(own)} tensors taken, {common} of {len(class_names)} "
        "classes known" + (f"; unchanged: {first_few(left)}" if left else "")
    )


def _fitting(
    detector: RCNN, state: dict[str, Tensor], class_names: Sequence[str], theirs: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of a state that fit the detector, with the rows of its classes in its order."""
    common = [name for name in class_names if name in theirs]
    new = [0, *(1 + class_names.index(name) for name in common)]  # 0 is the background
    old = [0, *(1 + theirs.index(name) for name in common)]
    own, taken = detector.state_dict(), {}
    for name in own.keys() & state.keys():
        before, value = own[name], state[name]
        if name.startswith(CLASS_PARTS):
            before = before.unflatten(0, (len(class_names) + 1, -1)).clone()
            value = value.unflatten(0, (len(theirs) + 1, -1))
            if before.shape[1:] == value.shape[1:]:
                before[new] = value[old]
                taken[name] = before.flatten(0, 1)
        elif before.shape == value.shape or isinstance(
            detector.get_submodule(name.rpartition(".")[0]), PositionTables
        ):
            taken[name] = value
    return taken
