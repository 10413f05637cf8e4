"""Building a classifier and reading a trained one without a trainer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import timm
from torch import Tensor, nn

from botnet.arguments import Resampling, checked
from botnet.errors import CheckpointError, ConfigError, first_few
from botnet.models.weights import read_weights
from botnet.models.zoo import NETWORKS, NetworkName
from botnet.training.checkpoint_file import TaskCheckpoint, building, peek
from botnet.training.model_source import open_checkpoint


class _Evaluation(msgspec.Struct):
    image_size: int
    crop_pct: float
    interpolation: Resampling
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class _About(msgspec.Struct):
    class_names: list[str]
    evaluation: _Evaluation


@checked
def create_classifier(name: NetworkName, num_classes: int, image_size: int, **kwargs: Any) -> nn.Module:
    """A classifier by its timm name; tables that belong to an image size are made for this one.

    Args:
        name: any that ``timm.create_model`` accepts, this project's included.
        num_classes: number of classes.
        image_size: side of its images in pixels.
        kwargs: timm's further arguments, such as ``drop_path_rate`` or ``pretrained``.

    Raises:
        ConfigError: timm has no network of that name, no weights of it, or it does not take an argument.
    """
    try:
        config = timm.get_pretrained_cfg(name)
        if name in NETWORKS or (config is not None and config.fixed_input_size):
            kwargs["img_size"] = image_size
        return timm.create_model(name, num_classes=num_classes, **kwargs)
    # Of a further argument, a tag, the weights, or the hub.
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        given = f" with {kwargs}" if kwargs else ""
        raise ConfigError(f"{name} cannot be made{given}: {reason[:300]}") from error


def start_from(model: nn.Module, path: Path, class_names: Sequence[str]) -> str:
    """Load weights of the same network, from a checkpoint of ``botnet fit`` or a file of tensors.

    Position tables are resized. A checkpoint names its classes: the classifier's rows are taken by name, and
    those of other classes are reinitialised. A file of tensors does not: its classifier is taken as it is
    if it has as many classes, else it is reinitialised.

    Args:
        model: whose weights are replaced.
        path: the file.
        class_names: of the model's outputs.

    Returns:
        A message on what was taken and what was not.

    Raises:
        CheckpointError: the file cannot be read as data, or is of another network.
    """
    state, theirs = _read_state(path)
    own = model.state_dict()
    names = [name for name in _classifier_tensors(model) if name in state and name in own]
    if theirs is not None:
        message = _take_rows(own, state, names, class_names, theirs)
    elif any(state[name].shape != own[name].shape for name in names):
        message = f"its classifier has {len(state[names[0]])} classes; this one is reinitialised"
        state |= {name: own[name] for name in names}
    else:
        message = f"its {len(class_names)} classes, which it does not name, are taken in their order"
    _load(model, state, path)
    return f"started from {path}: {message}"


def _read_state(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """The network's tensors in a file, and its class names if it is a checkpoint."""
    if path.suffix == ".safetensors" or (path.is_file() and not _is_checkpoint(path)):
        return _network_state(read_weights(path)), None
    checkpoint = open_checkpoint(path).expect("classifier")
    return _network_state(checkpoint.contents["state_dict"]), checkpoint.metadata["class_names"]


def _is_checkpoint(path: Path) -> bool:
    contents = peek(path)
    return isinstance(contents, dict) and "botnet" in contents


def _classifier_tensors(model: nn.Module) -> list[str]:
    """Names of the tensors with a row for each class."""
    heads = model.pretrained_cfg["classifier"]  # type: ignore[index]
    heads = (heads,) if isinstance(heads, str) else heads
    return [f"{head}.{part}" for head in heads for part in ("weight", "bias")]


def _take_rows(
    own: Mapping[str, Tensor],
    state: dict[str, Tensor],
    names: Sequence[str],
    class_names: Sequence[str],
    theirs: Sequence[str],
) -> str:
    """Put the classifier's rows in ``state`` into the order of our classes; returns a message on them."""
    common = [name for name in class_names if name in theirs]
    new = [class_names.index(name) for name in common]
    old = [theirs.index(name) for name in common]
    for name in names:
        if own[name].shape[1:] == state[name].shape[1:]:
            rows = own[name].clone()
            rows[new] = state[name][old].to(rows)
            state[name] = rows
    others = [name for name in class_names if name not in theirs]
    message = f"{len(common)} of {len(class_names)} classes known"
    return message + (f"; the others are reinitialised: {first_few(others)}" if others else "")


def _network_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors by its own names: the average of the weights where a checkpoint has one."""
    for prefix in ("ema.module.", "model."):
        found = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        if found:
            return found
    return dict(state)


def _load(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state, of which every tensor must fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(
            f"{path}: not the weights of this {type(model).__name__}: {reason[:300]}"
        ) from error


def load_classifier(source: str | Path | TaskCheckpoint) -> tuple[nn.Module, dict[str, Any]]:
    """A trained classifier from a checkpoint of ``botnet fit``, read as data.

    Args:
        source: of :func:`open_checkpoint`, or the checkpoint that it returns.

    Returns:
        The network in evaluation mode, with the average of its weights where the run had one; and of its data
        ``class_names``, and in ``evaluation`` how images are prepared: ``image_size``, ``crop_pct``,
        ``interpolation``, ``mean``, ``std``.

    Raises:
        CheckpointError: the file cannot be read, or holds no classifier.
    """
    checkpoint = source if isinstance(source, TaskCheckpoint) else open_checkpoint(source)
    with building(checkpoint.expect("classifier")) as arguments:
        model = create_classifier(**arguments)
        _load(model, _network_state(checkpoint.contents["state_dict"]), checkpoint.path)
        about = msgspec.convert(checkpoint.metadata, _About)
    return model.eval(), {"class_names": about.class_names, "evaluation": checkpoint.metadata["evaluation"]}
