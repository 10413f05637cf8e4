"""``botnet validate --model``: the accuracy of any network of timm, or of a checkpoint, on class folders."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import default_collate

from botnet.classification.checkpoint import load_classifier
from botnet.classification.datasets import ImageSet
from botnet.classification.readers import class_names, open_reader
from botnet.devices import pick_device
from botnet.errors import ConfigError, DataError, nearest
from botnet.models import read_weights
from botnet.training.loader import make_loader

HUBS = ("hf-hub:", "local-dir:")  # what timm takes in place of a name
WORST = 10  # classes in the table


# ---- a network and what it knows


@dataclass(frozen=True)
class Classifier:
    """A network that is ready to be asked, and what it needs and knows.

    Args:
        name: of the network or of its checkpoint.
        model: in evaluation mode, on its device.
        device: where that is.
        preparation: timm's data configuration: input_size, crop_pct, interpolation, mean, std, ...
        class_names: for people, one for each of its outputs.
        index_of: names of class folders, and the outputs they mean; None where nobody said.
    """

    name: str
    model: nn.Module
    device: torch.device
    preparation: dict[str, Any]
    class_names: list[str]
    index_of: Mapping[str, int] | None

    @property
    def transform(self) -> Callable[[Image.Image], Any]:
        """timm's preparation of a picture for evaluation: (3, S, S)."""
        return create_transform(**self.preparation)


def open_classifier(
    model: str,
    weights: Path | None = None,
    *,
    label_map: Path | None = None,
    crop: float | None = None,
    size: int | None = None,
    device: str = "auto",
) -> Classifier:
    """A network with its weights, read as data.

    Args:
        model: a name that timm knows, this project's included, or a checkpoint of ``botnet fit``.
        weights: .safetensors, or a .pth of tensors, for a name; without, timm fetches its own.
        label_map: JSON or text, see :func:`read_label_map`; default what the checkpoint or ImageNet says.
        crop: part of the short side that the centre crop keeps; default that of the checkpoint, or timm's for
            testing the network, else for training it.
        size: side in pixels of what the network is given; default likewise.
        device: "auto" takes an accelerator if there is one.

    Raises:
        DataError: no such network (the nearest names are told), weights that are missing, broken, hold code
            or do not fit, a label map that does not, a crop outside (0, 1], a size below 1.
    """
    if crop is not None and not 0 < crop <= 1:
        raise DataError(f"--crop {crop}: give the part of the short side that is kept, above 0 and up to 1")
    if size is not None and size < 1:
        raise DataError(f"--size {size}: give a positive number of pixels")
    names: Sequence[str] | None = None
    own: dict[str, Any] = {}
    if weights is not None and (Path(model).is_file() or model.startswith(HUBS)):
        raise DataError(f"{model} has its own weights; leave out --weights {weights}")
    if Path(model).is_file():
        network, about = load_classifier(Path(model))
        names, own = about["class_names"], dict(about["evaluation"])
        own["img_size"] = own.pop("image_size")
    else:
        network = _build(model, weights)
    asked = {"crop_pct": crop, "img_size": size}
    own |= {key: value for key, value in asked.items() if value is not None}
    # Published accuracies are at the test size, which for many networks is not that of training.
    preparation = resolve_data_config(own, model=network, use_test_size=True)
    if size is not None and hasattr(network, "set_input_size"):  # transformers, whose tokens are counted
        network.set_input_size(img_size=(size, size))  # type: ignore[operator]
    chosen = pick_device(device)
    outputs = int(network.num_classes)  # type: ignore[arg-type]
    known, index_of = _classes(outputs, names, label_map)
    return Classifier(model, network.to(chosen).eval(), chosen, preparation, known, index_of)


def is_classifier(model: str) -> bool:
    """Whether a name or a checkpoint means a classifier; a file that cannot be read does not."""
    if not Path(model).is_file():
        return True
    try:
        checkpoint = torch.load(model, map_location="cpu", weights_only=True, mmap=True)
        return "classifier" in checkpoint["botnet"]
    except Exception:  # whatever a strange file makes torch or the look-ups raise
        return False


def _build(name: str, weights: Path | None) -> nn.Module:
    """A network of timm by its name, with weights from a file or from where timm has them."""
    if not timm.is_model(name) and not name.startswith(HUBS):
        raise ConfigError(f"no file {name}, and no network of timm{nearest(name, timm.list_models())}")
    if weights is None:
        try:
            return timm.create_model(name, pretrained=True)
        except Exception as error:  # no such tag, no connection, ...: whatever the hub's client makes of it
            raise DataError(
                f"no weights for {name} ({str(error).splitlines()[0]}); give a file by --weights"
            ) from error
    try:
        state = read_weights(weights)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(str(error)) from error
    try:
        # As many outputs as the file has.
        config = timm.get_pretrained_cfg(name)
        last = state.get(f"{config.classifier}.weight") if config else None
        network = timm.create_model(name, num_classes=None if last is None else len(last))
        network.load_state_dict(state)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise DataError(f"{weights}: not the weights of {name}: {what[:300]}") from error
    return network


def _classes(
    outputs: int, names: Sequence[str] | None, label_map: Path | None
) -> tuple[list[str], Mapping[str, int] | None]:
    """What the outputs of a network are called, and which class folders mean which of them."""
    if label_map is not None:
        index_of = read_label_map(label_map, outputs)
        called = {index: name for name, index in reversed(index_of.items())}
        return [called.get(i, f"class {i}") for i in range(outputs)], index_of
    if names is not None:
        return list(names), {name: i for i, name in enumerate(names)}
    subset = infer_imagenet_subset({"num_classes": outputs})
    if subset is None:
        return [f"class {i}" for i in range(outputs)], None
    imagenet = ImageNetInfo(subset)
    return list(imagenet.label_descriptions()), {name: i for i, name in enumerate(imagenet.label_names())}


def read_label_map(path: Path, outputs: int) -> dict[str, int]:
    """Which class folder means which output of the network.

    Args:
        path: JSON, a list of names in the order of the outputs or an object from name to number; or text,
            one name a line in that order.
        outputs: of the network.

    Raises:
        DataError: no such file, another form, or names that do not fit the network.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a label map") from error
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as a label map ({error})") from error
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        if len(content) != outputs:
            raise DataError(f"{path} names {len(content)} classes, the network has {outputs}")
        twice = [name for name, count in Counter(content).items() if count > 1]
        if twice:
            raise DataError(f"{path} names {twice[0]!r} more than once; every class needs its own name")
        return {name: i for i, name in enumerate(content)}
    if not isinstance(content, dict) or not all(type(i) is int for i in content.values()):
        raise DataError(f"{path}: expected a list of names, or an object from name to number")
    for name, i in content.items():
        if not 0 <= i < outputs:
            raise DataError(f"{path}: {name!r} is class {i}, the network has classes 0 to {outputs - 1}")
    return content


# ---- measuring


def validate(
    classifier: Classifier,
    data: Path,
    *,
    reader: str = "folder",
    batch_size: int = 64,
    num_workers: int = 4,
) -> dict[str, Any]:
    """Accuracy on labelled images, each seen once.

    Args:
        classifier: from :func:`open_classifier`.
        data: images in class folders, or what another reader reads.
        reader: as in :func:`botnet.classification.readers.open_reader`.
        batch_size: images at once.
        num_workers: processes that prepare images.

    Returns:
        ``top1`` and ``top5`` in per cent over all outputs of the network; where the data have fewer classes
        than the network, ``top1_among_present`` and ``top5_among_present`` over those alone; ``images``,
        ``images_per_second``, what was run, and under ``classes`` the same for each class.

    Raises:
        DataError: no images, a class folder that is empty or means no class of the network, a broken image.
    """
    images = ImageSet(open_reader(data, reader), classifier.transform)
    folders = class_names(images.reader)
    indices = _outputs_of(classifier, folders, data)
    loader = make_loader(images, batch_size, num_workers, default_collate, train=False)
    truth, within, among = [], [], []
    to_output = torch.tensor(indices)
    present = to_output.unique()
    started = time.perf_counter()
    with torch.inference_mode():
        for batch, labels in track(loader, f"validating {escape(classifier.name)}"):
            logits = classifier.model(batch.to(classifier.device)).float().cpu()
            truth.append(labels)
            within.append(_top5(logits))
            among.append(present[_top5(logits[:, present])])
    seconds = time.perf_counter() - started
    labels, top, top_present = torch.cat(truth), torch.cat(within), torch.cat(among)
    size = classifier.preparation["input_size"][-1]
    report: dict[str, Any] = {
        "model": classifier.name,
        "data": str(data),
        "size": size,
        "crop": classifier.preparation["crop_pct"],
        "images": len(labels),
        "images_per_second": len(labels) / seconds,
        **_accuracy(top, to_output[labels]),
    }
    if len(present) < len(classifier.class_names):
        alone = _accuracy(top_present, to_output[labels])
        report |= {f"{name}_among_present": value for name, value in alone.items()}
    report["classes"] = [
        {
            "folder": folder,
            "class": classifier.class_names[indices[label]],
            "index": indices[label],
            **_of_class(classifier, top[labels == label], indices[label]),
        }
        for label, folder in enumerate(folders)
    ]
    return report


def _outputs_of(classifier: Classifier, folders: Sequence[str], data: Path) -> list[int]:
    """The output of the network that each class folder means."""
    outputs = len(classifier.class_names)
    known = classifier.index_of or {}
    if all(folder in known for folder in folders):
        return [known[folder] for folder in folders]
    strange = [folder for folder in folders if folder not in known]
    if len(strange) < len(folders) or len(folders) != outputs:
        raise DataError(
            f"{data} has {len(folders)} classes, the network {outputs}, and {len(strange)} class folders mean"
            f" none of them: {', '.join(strange[:5])}{', ...' * (len(strange) > 5)}; say what they mean by "
            "--label-map FILE"
        )
    print(f"{data}: its {outputs} class folders are taken for the network's classes in their order")
    return list(range(outputs))


def _top5(logits: Tensor) -> Tensor:
    return logits.topk(min(5, logits.shape[1])).indices


def _accuracy(top: Tensor, truth: Tensor) -> dict[str, float]:
    """Per cent of the images whose class comes first, and among the first five."""
    hits = top == truth[:, None]
    return {"top1": 100 * int(hits[:, 0].sum()) / len(hits), "top5": 100 * int(hits.sum()) / len(hits)}


def _of_class(classifier: Classifier, top: Tensor, index: int) -> dict[str, Any]:
    """The accuracy on the images of one class, and what they are most often taken for instead."""
    wrong = Counter(guess for guess in top[:, 0].tolist() if guess != index).most_common(1)
    return {
        "images": len(top),
        **_accuracy(top, torch.full((len(top),), index)),
        "taken_for": {"class": classifier.class_names[wrong[0][0]], "images": wrong[0][1]} if wrong else None,
    }


def render(report: Mapping[str, Any]) -> Table:
    """The classes that a network does worst on, and above them how it does on all."""
    title = "{model} on {data}: {images} images at {size} px, crop {crop:g}".format(**report)
    table = Table(
        "class", "images", "top-1", "top-5", "most often taken for", title=Text(title, "table.title")
    )
    table.add_row("all", str(report["images"]), f"{report['top1']:.3f}", f"{report['top5']:.3f}", "")
    if "top1_among_present" in report:
        values = (f"{report[f'top{k}_among_present']:.3f}" for k in (1, 5))
        table.add_row(f"all, among these {len(report['classes'])} classes alone", "", *values, "")
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
