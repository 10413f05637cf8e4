"""Trained classifiers from timm or from checkpoints, with their classes and their input configuration."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import nn

from botnet.arguments import Crop, Side, checked
from botnet.classification.checkpoint import load_classifier
from botnet.devices import pick_device
from botnet.errors import CheckpointError, ConfigError, DataError
from botnet.models import read_weights
from botnet.models.zoo import no_network
from botnet.training.checkpoint_file import TaskCheckpoint
from botnet.training.model_source import is_trained_here, open_checkpoint

HUBS = ("hf-hub:", "local-dir:")  # what timm takes in place of a name


@dataclass(frozen=True)
class Classifier:
    """A trained network, its classes and how to prepare its images.

    Args:
        name: of the network or of its checkpoint.
        model: in evaluation mode, on ``device``.
        device: of the model.
        preparation: timm's data configuration: input_size, crop_pct, interpolation, mean, std, ...
        class_names: display name of each output.
        index_of: output of each class folder's name; None where it is not known.
    """

    name: str
    model: nn.Module
    device: torch.device
    preparation: dict[str, Any]
    class_names: list[str]
    index_of: Mapping[str, int] | None

    @property
    def transform(self) -> Callable[[Image.Image], Any]:
        """timm's evaluation transform, from an image to a tensor (3, S, S)."""
        return create_transform(**self.preparation)


@checked
def open_classifier(
    model: str | TaskCheckpoint,
    weights: Path | None = None,
    *,
    label_map: Path | None = None,
    crop: Crop | None = None,
    size: Side | None = None,
    device: str = "auto",
) -> Classifier:
    """Load a classifier for evaluation.

    Args:
        model: a source of :func:`open_checkpoint` or the checkpoint that it returns, or a name that timm
            knows, this project's included.
        weights: .safetensors, or a .pth of tensors, for a name; by default those that timm downloads.
        label_map: JSON or text, see :func:`read_label_map`; by default that of the checkpoint or of ImageNet.
        crop: part of the short side inside the centre crop; by default that of the checkpoint, else the one
            that timm tests the network with.
        size: side in pixels of the network's input; by default likewise.
        device: "auto" takes an accelerator if there is one.

    Raises:
        ConfigError: no such network or device, a crop outside [0.1, 1], a size below 1 or that the network
            does not take, or weights for a model that brings its own.
        CheckpointError: the weights are missing, broken, hold code or are of another network.
        DataError: the label map cannot be read, or does not fit the network.
    """
    if isinstance(model, str) and is_trained_here(model):
        model = open_checkpoint(model)
    name = str(model.path) if isinstance(model, TaskCheckpoint) else model
    if weights is not None and (isinstance(model, TaskCheckpoint) or model.startswith(HUBS)):
        raise ConfigError(f"{name} has its own weights; leave out --weights {weights}")
    names: Sequence[str] | None = None
    config: dict[str, Any] = {}
    if isinstance(model, TaskCheckpoint):
        network, metadata = load_classifier(model)
        names, config = metadata["class_names"], dict(metadata["evaluation"])
        config["img_size"] = config.pop("image_size")
        config["crop_mode"] = "center"  # as in its validation; timm's may be another one
    else:
        network = _create_trained(model, weights)
    given = {"crop_pct": crop, "img_size": size}
    config |= {key: value for key, value in given.items() if value is not None}
    # Published accuracies are at the test size, which for many networks is not that of training.
    preparation = resolve_data_config(config, model=network, use_test_size=True)
    if size is not None:
        _take_size(network, size, name)
    chosen = pick_device(device)
    class_names, index_of = _classes(int(network.num_classes), names, label_map)  # type: ignore[arg-type]
    return Classifier(name, network.to(chosen).eval(), chosen, preparation, class_names, index_of)


def _create_trained(name: str, weights: Path | None) -> nn.Module:
    """A timm network by its name, with weights from a file or, by default, from timm."""
    if not timm.is_model(name) and not name.startswith(HUBS):
        raise ConfigError(f"no file {name}, and {no_network(name)}")
    if weights is None:
        try:
            return timm.create_model(name, pretrained=True)
        except Exception as error:  # no such tag, no connection, ...: whatever the hub's client raises
            raise CheckpointError(
                f"no weights for {name} ({str(error).splitlines()[0]}); give a file by --weights"
            ) from error
    state = read_weights(weights)
    try:
        # With as many outputs as the file has.
        config = timm.get_pretrained_cfg(name)
        last = state.get(f"{config.classifier}.weight") if config else None
        network = timm.create_model(name, num_classes=None if last is None else len(last))
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{weights}: not the weights of {name}: {reason[:300]}") from error
    return network


@torch.inference_mode()
def _take_size(network: nn.Module, size: int, name: str) -> None:
    """Have a network take images of another size; refused if it cannot."""
    try:
        if hasattr(network, "set_input_size"):  # transformers with a fixed number of tokens
            network.set_input_size(img_size=(size, size))  # type: ignore[operator]
        network.eval()(torch.zeros(1, 3, size, size))  # others only say now that their size is fixed
    except (AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or "its size is fixed"
        raise ConfigError(
            f"--size {size}: {name} does not take such images ({reason}); leave it out"
        ) from error


def _classes(
    outputs: int, names: Sequence[str] | None, label_map: Path | None
) -> tuple[list[str], Mapping[str, int] | None]:
    """Display name of each output of a network, and the output of each class folder's name."""
    if label_map is not None:
        index_of = read_label_map(label_map, outputs)
        name_of = {index: name for name, index in reversed(index_of.items())}
        return [name_of.get(i, f"class {i}") for i in range(outputs)], index_of
    if names is not None:
        return list(names), {name: i for i, name in enumerate(names)}
    subset = infer_imagenet_subset({"num_classes": outputs})
    if subset is None:
        return [f"class {i}" for i in range(outputs)], None
    imagenet = ImageNetInfo(subset)
    return list(imagenet.label_descriptions()), {name: i for i, name in enumerate(imagenet.label_names())}


def read_label_map(path: Path, outputs: int) -> dict[str, int]:
    """Read which output of a network each class folder stands for.

    Args:
        path: JSON, a list of names in the order of the outputs or an object from name to index; or text with
            one name per line, in that order.
        outputs: number of outputs of the network.

    Raises:
        DataError: the file is missing, of another form, or does not fit the network.
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
        raise DataError(f"{path}: expected a list of names, or an object from name to index")
    for name, i in content.items():
        if not 0 <= i < outputs:
            raise DataError(f"{path}: {name!r} is class {i}, the network has classes 0 to {outputs - 1}")
    return content
