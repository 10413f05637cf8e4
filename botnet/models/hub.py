"""Networks on the Hugging Face hub, and in local folders of the same form."""

import copy
from pathlib import Path

import timm
import torch
from timm.models import get_model_args, push_to_hf_hub, save_for_hf
from torch import nn

from botnet.errors import CheckpointError
from botnet.layers import MHSA2d


def save_pretrained(model: nn.Module, folder: str | Path) -> None:
    """Write a registered network to a folder in the hub's form: config.json and model.safetensors.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` and `from_pretrained` read it.

    Args:
        model: a network made by `timm.create_model`.
        folder: is made if it does not exist.

    Raises:
        ValueError: timm cannot build this network by its name, because it was changed after it was made.
    """
    save_for_hf(_exportable(model), str(folder), safe_serialization=True)


def push_to_hub(model: nn.Module, repo_id: str, private: bool = False) -> None:
    """Publish a registered network on the Hugging Face hub, as .safetensors.

    Args:
        model: a network made by `timm.create_model`.
        repo_id: "owner/name" on the hub; log in with huggingface_hub.
        private: whether the repository is private. Default False.

    Raises:
        ValueError: see `save_pretrained`.
    """
    push_to_hf_hub(_exportable(model), repo_id, private=private, safe_serialization=True)


def _exportable(model: nn.Module) -> nn.Module:
    """A copy with contiguous tensors, for safetensors; refused if timm builds another network by its name."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    rebuilt: nn.Module | None = None
    # A features_only network has no num_classes.
    if name is not None and timm.is_model(name) and hasattr(model, "num_classes"):
        with torch.device("meta"):
            rebuilt = timm.create_model(name, **get_model_args(model))
    if rebuilt is None or _signature(rebuilt) != _signature(model):
        what = f"what timm builds by the name {name!r}" if name else "built by timm"
        raise ValueError(
            f"this {type(model).__name__} is not {what}, so it could not be loaded again; register it with "
            "timm under another name, or use save_weights and load_weights for its tensors"
        )
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


def _signature(model: nn.Module) -> tuple[set[str], dict[str, tuple[int, int] | None]]:
    """Names of all tensors, and the `feat_size` of each `MHSA2d`: names alone fit timm's attention, too."""
    attention = {name: layer.feat_size for name, layer in model.named_modules() if isinstance(layer, MHSA2d)}
    return set(model.state_dict()), attention


def from_pretrained(source: str | Path, num_classes: int | None = None) -> nn.Module:
    """A network with its weights, as `push_to_hub` or `save_pretrained` stored it.

    Args:
        source: "owner/name" on the hub, "hf-hub:owner/name", "local-dir:FOLDER" or a folder.
        num_classes: another number of classes, with a new, random classifier. Default as stored.

    Raises:
        CheckpointError: there is no such network, or its files are broken.
    """
    if Path(source).is_dir():
        source = f"local-dir:{source}"
    elif ":" not in str(source):
        source = f"hf-hub:{source}"
    try:
        return timm.create_model(str(source), pretrained=True, num_classes=num_classes)
    except Exception as error:  # whatever the hub's client raises, and timm for a config.json that is broken
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{source}: no network can be loaded from it ({reason})") from error
