"""Publishing trained models: safetensors, their configuration, and a model card."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from botnet import __version__
from botnet.deploy.card import model_card
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD
from botnet.errors import CheckpointError, DataError
from botnet.folders import check_unused, new_folder
from botnet.training.checkpoint_file import FORMAT, TaskCheckpoint
from botnet.training.model_source import CONFIG, WEIGHTS, open_checkpoint
from botnet.training.run_folder import RunFolder

PICTURES = 3  # of the run's, on the card
WIDEST = 1200  # pixels of a picture


def save_published(source: str | Path, folder: Path, license: str, repo_id: str = "user/name") -> None:
    """Write a trained model to a folder in the hub's form, which ``botnet.load`` reads.

    Args:
        source: a run, a checkpoint or a published model.
        folder: new folder, for ``config.json``, ``model.safetensors``, ``README.md`` with what the run
            measured, its recipe and some of its pictures.
        license: of the model, by its identifier on the hub, such as ``apache-2.0``.
        repo_id: name on the hub, for the examples of the card.

    Raises:
        CheckpointError: there is no such model, or it cannot be built by its name.
        ConfigError: the folder exists and is not empty.
        DataError: the metrics of the run are broken.
    """
    checkpoint = open_checkpoint(source)
    if not checkpoint.spec:
        raise CheckpointError(
            f"{checkpoint.path} cannot be published: its backbone was given as a module; train one by name"
        )
    run = _run_of(checkpoint)
    check_unused(folder)
    with new_folder(folder) as made:
        metadata = {key: value for key, value in checkpoint.metadata.items() if key != "settings"}
        metadata |= {"format": FORMAT, "version": __version__}
        config = {"library_name": "botnet", "preprocessing": _preprocessing(checkpoint), "botnet": metadata}
        (made / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        save_file(_weights(checkpoint), made / WEIGHTS, metadata={"format": "pt"})
        pictures = _copy_pictures(run, made) if run else []
        metrics = run.read_metrics() if run else None
        if run:
            shutil.copy(run.config, made / "recipe.yaml")
        card = model_card(checkpoint, metrics, pictures, license, repo_id)
        (made / "README.md").write_text(card, encoding="utf-8")


def push(source: str | Path, repo_id: str, license: str, private: bool = False) -> str:
    """Publish a trained model on the Hugging Face hub.

    Args:
        source: a run, a checkpoint or a published model.
        repo_id: ``user/name``; the repository is made if there is none.
        license: see :func:`save_published`.
        private: whether a new repository is private. Default False.

    Returns:
        The address of the model.

    Raises:
        CheckpointError: the model cannot be read, or the hub refuses it: log in with ``hf auth login``.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_published(source, folder, license, repo_id)
        api = HfApi()
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=f"Upload by botnet {__version__}"
            )
        except Exception as error:  # no token, no connection, ...: whatever the hub's client raises
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{repo_id} cannot be published ({reason}); log in with `hf auth login` as a user with "
                "write access"
            ) from error
    return str(address)


def _preprocessing(checkpoint: TaskCheckpoint) -> dict[str, Any]:
    """How an image is prepared, for those who read the file without this package."""
    if checkpoint.kind == "classifier":
        return dict(checkpoint.metadata["evaluation"])
    return {"canvas": checkpoint.metadata["canvas"], "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


def _run_of(checkpoint: TaskCheckpoint) -> RunFolder | None:
    """The run that a checkpoint is in, if it is the one that the run has measured last."""
    run = RunFolder(checkpoint.path.parent.parent)
    return run if checkpoint.path.parent == run.checkpoints and run.config.is_file() else None


def _weights(checkpoint: TaskCheckpoint) -> dict[str, Tensor]:
    """The tensors of the network: of a classifier the average of the weights, where it has one."""
    state: Mapping[str, Tensor] = checkpoint.contents["state_dict"]
    prefix = {"detector": "detector.", "classifier": "model."}[checkpoint.kind]
    average = {
        prefix + name.removeprefix("ema.module."): tensor
        for name, tensor in state.items()
        if name.startswith("ema.module.")
    }
    own = average or {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    # safetensors takes neither shared nor strided memory.
    return {name: tensor.detach().clone().contiguous() for name, tensor in own.items()}


def _copy_pictures(run: RunFolder, folder: Path) -> list[str]:
    """Copy the curves and some pictures of the run; returns their names."""
    names = []
    found = sorted(run.pictures.glob("*.png"))
    for path in [run.curves, *found[:: max(1, len(found) // PICTURES)][:PICTURES]]:
        if not path.is_file():
            continue
        try:
            picture = Image.open(path).convert("RGB")
        except OSError as error:
            raise DataError(f"{path} is broken ({error}); evaluate the run again") from error
        picture.thumbnail((WIDEST, WIDEST))
        picture.save(folder / f"{path.stem}.jpg", quality=88)
        names.append(f"{path.stem}.jpg")
    return names
