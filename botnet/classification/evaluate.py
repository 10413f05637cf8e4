"""Accuracy of a classifier on labelled images: ``botnet evaluate``."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.utils.data import default_collate

from botnet.arguments import Count, Reader, Workers, checked
from botnet.classification.classifier import Classifier
from botnet.classification.datasets import ImageSet
from botnet.classification.readers import class_names, open_reader
from botnet.errors import DataError, first_few
from botnet.training.loader import make_loader

WORST = 10  # classes in the table

logger = logging.getLogger(__name__)

Confusion = TypedDict("Confusion", {"class": str, "images": int})
ClassReport = TypedDict(
    "ClassReport",
    {
        "folder": str,
        "class": str,
        "index": int,
        "images": int,
        "top1": float,
        "top5": float,
        "taken_for": Confusion | None,
    },
)


class AmongPresent(TypedDict, total=False):
    """Accuracy in per cent over the classes of the data only, where they are fewer than the network's."""

    top1_among_present: float
    top5_among_present: float


class Report(AmongPresent):
    """Accuracy of a classifier in per cent, overall and of every class."""

    model: str
    data: str
    size: int
    crop: float
    images: int
    images_per_second: float
    top1: float
    top5: float
    classes: list[ClassReport]


@checked
def validate(
    classifier: Classifier,
    data: Path,
    *,
    reader: Reader = "folder",
    batch_size: Count = 64,
    num_workers: Workers | None = None,
) -> Report:
    """Measure a classifier on labelled images, each used once.

    Args:
        classifier: from :func:`botnet.classification.classifier.open_classifier`.
        data: images in class folders, or the source of another reader.
        reader: as in :func:`botnet.classification.readers.open_reader`.
        batch_size: images in a batch.
        num_workers: processes that prepare images; default: :func:`botnet.training.loader.default_workers`.

    Returns:
        ``top1`` and ``top5`` in per cent over all outputs of the network; where the data have fewer classes
        than the network, ``top1_among_present`` and ``top5_among_present`` over those classes only; number
        of ``images``, ``images_per_second``, the settings, and under ``classes`` the numbers of each class.

    Raises:
        ConfigError: a number out of its range.
        DataError: no images, an empty class folder, one that stands for no output of the network, or an
            image that cannot be read.
    """
    images = ImageSet(open_reader(data, reader), classifier.transform)
    folders = class_names(images.reader)
    indices = _outputs_of(classifier, folders, data)
    loader = make_loader(images, batch_size, num_workers, default_collate, train=False)
    to_output = torch.tensor(indices)
    present = to_output.unique()
    started = time.perf_counter()
    labels, top, top_present = _run(classifier, loader, present)
    seconds = time.perf_counter() - started
    top1, top5 = _accuracy(top, to_output[labels])
    among: AmongPresent = {}
    if len(present) < len(classifier.class_names):
        among["top1_among_present"], among["top5_among_present"] = _accuracy(top_present, to_output[labels])
    return {
        "model": classifier.name,
        "data": str(data),
        "size": classifier.preparation["input_size"][-1],
        "crop": classifier.preparation["crop_pct"],
        "images": len(labels),
        "images_per_second": len(labels) / seconds,
        "top1": top1,
        "top5": top5,
        **among,
        "classes": [
            _class_report(classifier, folder, indices[label], top[labels == label])
            for label, folder in enumerate(folders)
        ],
    }


def _outputs_of(classifier: Classifier, folders: Sequence[str], data: Path) -> list[int]:
    """The output of the network that each class folder stands for."""
    outputs = len(classifier.class_names)
    known = classifier.index_of or {}
    if all(folder in known for folder in folders):
        return [known[folder] for folder in folders]
    unknown = [folder for folder in folders if folder not in known]
    if len(unknown) < len(folders) or len(folders) != outputs:
        raise DataError(
            f"{data} has {len(folders)} classes, the network {outputs}, and {len(unknown)} class folders are "
            f"none of them: {first_few(unknown)}; map them to its classes by --label-map FILE"
        )
    logger.warning(f"{data}: its {outputs} class folders are taken as the network's classes in their order")
    return list(range(outputs))


@torch.inference_mode()
def _run(
    classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], present: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (N,) and top five outputs (N, 5) of all images, over all outputs and over those in the data."""
    labels, top, top_present = [], [], []
    for images, target in track(batches, f"validating {escape(classifier.name)}"):
        logits = classifier.model(images.to(classifier.device)).float().cpu()
        labels.append(target)
        top.append(_top5(logits))
        top_present.append(present[_top5(logits[:, present])])
    return torch.cat(labels), torch.cat(top), torch.cat(top_present)


def _top5(logits: Tensor) -> Tensor:
    return logits.topk(min(5, logits.shape[1])).indices


def _accuracy(top: Tensor, truth: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in per cent."""
    hits = top == truth[:, None]
    return 100 * int(hits[:, 0].sum()) / len(hits), 100 * int(hits.sum()) / len(hits)


def _class_report(classifier: Classifier, folder: str, index: int, top: Tensor) -> ClassReport:
    """Accuracy on the images of one class, and the class that they are most often taken for instead."""
    top1, top5 = _accuracy(top, torch.full((len(top),), index))
    wrong = Counter(guess for guess in top[:, 0].tolist() if guess != index).most_common(1)
    return {
        "folder": folder,
        "class": classifier.class_names[index],
        "index": index,
        "images": len(top),
        "top1": top1,
        "top5": top5,
        "taken_for": {"class": classifier.class_names[wrong[0][0]], "images": wrong[0][1]} if wrong else None,
    }


def render(report: Report) -> Table:
    """A table of the overall accuracy and of the worst classes."""
    title = "{model} on {data}: {images} images at {size} px, crop {crop:g}".format(**report)
    table = Table(
        "class", "images", "top-1", "top-5", "most often taken for", title=Text(title, "table.title")
    )
    table.add_row("all", str(report["images"]), f"{report['top1']:.3f}", f"{report['top5']:.3f}", "")
    if "top1_among_present" in report:
        table.add_row(
            f"all, among these {len(report['classes'])} classes only",
            "",
            f"{report['top1_among_present']:.3f}",
            f"{report['top5_among_present']:.3f}",
            "",
        )
    table.add_section()
    ranked = sorted(report["classes"], key=lambda row: row["top1"])
    for row in ranked[:WORST]:
        other = row["taken_for"]
        table.add_row(
            Text(row["class"] if row["class"] == row["folder"] else f"{row['class']} ({row['folder']})"),
            str(row["images"]),
            f"{row['top1']:.1f}",
            f"{row['top5']:.1f}",
            Text(f"{other['class']} ({other['images']})") if other else "",
        )
    if len(ranked) > WORST:
        table.caption = f"the {WORST} worst of {len(ranked)} classes"
    return table
