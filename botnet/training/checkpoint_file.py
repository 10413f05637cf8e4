"""Reading checkpoints as data and writing them atomically, without Lightning."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from botnet.errors import DataError

PARTIAL = ".partial"  # ends the name of a checkpoint that is being written


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name, to the disk, and only then gives it its own.

    Whatever happens in between, the one that stood there before is whole.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            DataError: it cannot be written, for instance for want of space.
        """
        path = Path(path)
        partial = path.with_name(path.name + PARTIAL)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch's writer turns some of the first into the second
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            kept = "the one before it is whole" if path.exists() else "there is none before it"
            raise DataError(
                f"{path}: the checkpoint cannot be written ({error}); {kept}; make room, and go on with "
                "--ckpt_path last"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, onto the CPU whatever device wrote it.

        Raises:
            DataError: there is none, it is broken, or it holds more than data where only data are wanted.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such checkpoint; a run keeps its own in checkpoints/") from error
        except Exception as error:  # torch's reader and unpickler have many
            # Of torch's advice how to run the code all the same, only the first sentence.
            reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
            raise DataError(
                f"{path} cannot be read as data ({reason}); it is broken, or it holds code, which is not "
                "executed"
            ) from error


def newest_checkpoint(folder: Path) -> Path | None:
    """Where a run goes on: its ``last.ckpt``, or what Lightning saved for SLURM if that has more steps.

    Raises:
        DataError: there are several, and one of them cannot be read.
    """
    found = [*folder.glob("checkpoints/last.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")]
    # Times of modification would not do: copying a folder changes them.
    return max(found, key=steps_of, default=None) if len(found) > 1 else next(iter(found), None)


def steps_of(path: Path) -> int:
    """The optimiser steps of a checkpoint, of which no tensor is read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    except Exception:  # the reader of whole checkpoints knows older formats, and says what is wrong
        return AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["global_step"]


def read_checkpoint(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint of a :class:`TaskModule`, read as data, and what it says about itself.

    Args:
        path: ``last.ckpt`` or ``best.ckpt`` of a run.
        kind: what it must hold: ``detector`` or ``classifier``.

    Returns:
        The checkpoint; ``class_names`` and what :meth:`TaskModule.about` returned.

    Raises:
        DataError: no such file, no checkpoint, or one that holds something else.
    """
    checkpoint = AtomicCheckpointIO().load_checkpoint(path, map_location="cpu", weights_only=True)
    about = checkpoint.get("botnet") if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or kind not in about:
        raise DataError(
            f"{path} does not say which {kind} it holds; only checkpoints of `botnet fit` with a {kind} "
            "can be read"
        )
    return checkpoint, about
