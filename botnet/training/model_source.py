"""Where a trained model is read from: a checkpoint, a run, a published folder, the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any

from botnet.errors import CheckpointError
from botnet.training.checkpoint_file import KINDS, TaskCheckpoint, check_format, read_checkpoint
from botnet.training.run_folder import RunFolder

HUB = "hf-hub:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = (CONFIG, WEIGHTS)  # of a published model, all that is downloaded


def open_checkpoint(source: str | Path) -> TaskCheckpoint:
    """A trained model, read as data.

    Args:
        source: a checkpoint file; the folder of a run, of which the best checkpoint is taken, or the last if
            there is no best; a folder of :func:`botnet.deploy.save_published`; or ``hf-hub:user/name``.

    Raises:
        CheckpointError: there is no such model, it is broken, of a newer format, or was not written here.
    """
    if str(source).startswith(HUB):
        return read_published(fetch(str(source).removeprefix(HUB)), str(source))
    folder = Path(source)
    if not folder.is_dir():
        return read_checkpoint(source)
    if (folder / CONFIG).is_file():
        return read_published(folder)
    run = RunFolder(folder)
    path = run.best if run.best.is_file() else run.newest()
    if path is not None:
        return read_checkpoint(path)
    raise CheckpointError(
        f"{folder} holds neither a run with checkpoints/best.ckpt or last.ckpt nor a published model "
        f"({CONFIG} and {WEIGHTS})"
    )


def is_trained_here(source: str) -> bool:
    """Whether :func:`open_checkpoint` reads a model; what timm names may be on the hub, too.

    Raises:
        CheckpointError: the hub has no such model, or cannot be reached.
    """
    if not source.startswith(HUB):
        return Path(source).exists()
    return _metadata(fetch(source.removeprefix(HUB), (CONFIG,)) / CONFIG) is not None


def fetch(repo_id: str, files: tuple[str, ...] = FILES) -> Path:
    """Download a published model into the cache of ``huggingface_hub``, unless it is there.

    Args:
        repo_id: ``user/name``, or ``user/name@revision``.
        files: to download.

    Returns:
        The folder of the files.

    Raises:
        CheckpointError: the hub has no such model, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = repo_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:  # no such name, no connection, ...: whatever the hub's client raises
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{HUB}{repo_id} cannot be fetched ({reason})") from error


def read_published(folder: Path, name: str | None = None) -> TaskCheckpoint:
    """A published model: ``config.json`` and ``model.safetensors``.

    Args:
        folder: with both files.
        name: of the model in errors; default the folder.

    Raises:
        CheckpointError: a file is missing or broken, of a newer format, or of another package.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = name or str(folder)
    metadata = _metadata(folder / CONFIG)
    kind = next((kind for kind in KINDS if metadata and kind in metadata), None)
    if metadata is None or kind is None:
        raise CheckpointError(
            f"{name} was not published by botnet push: its {CONFIG} is missing or has no entry of botnet"
        )
    check_format({"botnet": metadata}, name)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{name}: its {WEIGHTS} cannot be read ({error}); publish it again") from error
    return TaskCheckpoint(Path(name), kind, metadata[kind], metadata, {"state_dict": state})


def _metadata(path: Path) -> dict[str, Any] | None:
    """What a ``config.json`` says of this package; None if it is not one of its own."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is broken ({error}); publish the model again") from error
    metadata = config.get("botnet") if isinstance(config, dict) else None
    return metadata if isinstance(metadata, dict) else None
