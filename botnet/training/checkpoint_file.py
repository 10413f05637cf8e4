"""Reading checkpoints as data and writing them atomically, without Lightning."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from botnet.errors import CheckpointError

PARTIAL = ".partial"  # ends the name of a checkpoint that is being written
KINDS = ("detector", "classifier")


@dataclass(frozen=True)
class TaskCheckpoint:
    """A checkpoint of ``botnet fit``, read as data.

    Args:
        path: where it was read.
        kind: what it holds: ``detector`` or ``classifier``.
        spec: arguments that the network was built with.
        metadata: ``class_names``, and what else :meth:`TaskModule.checkpoint_metadata` says.
        contents: all of it, as Lightning wrote it.
    """

    path: Path
    kind: str
    spec: Any
    metadata: dict[str, Any]
    contents: dict[str, Any]

    def expect(self, kind: str) -> "TaskCheckpoint":
        """This checkpoint, if it holds a network of that kind.

        Raises:
            CheckpointError: it does not.
        """
        if self.kind != kind:
            raise CheckpointError(
                f"{self.path} holds a {self.kind}, not a {kind}; give a checkpoint of a {kind}"
            )
        return self


def read_checkpoint(path: str | Path) -> TaskCheckpoint:
    """A checkpoint of a detector or a classifier, read once and as data.

    Args:
        path: ``last.ckpt`` or ``best.ckpt`` of a run.

    Raises:
        CheckpointError: no such file, a broken one, or one that was not written by ``botnet fit``.
    """
    contents = read_file(path)
    metadata: Any = contents.get("botnet") if isinstance(contents, dict) else None
    for kind in KINDS if isinstance(metadata, dict) else ():
        if kind in metadata:
            return TaskCheckpoint(Path(path), kind, metadata[kind], metadata, contents)
    raise CheckpointError(
        f"{path} does not say which network it holds; only checkpoints of `botnet fit` can be read"
    )


def read_file(path: str | Path, map_location: Any = "cpu") -> Any:
    """What a checkpoint file holds, read as data: a file that holds code is refused.

    Raises:
        CheckpointError: there is no such file, it is broken, or it holds more than data.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint; a run keeps its own in checkpoints/") from error
    except Exception as error:  # torch's reader and unpickler have many
        # Of torch's advice how to run the code all the same, only the first sentence.
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise CheckpointError(
            f"{path} cannot be read as data ({reason}); it is broken, or it holds code, which is not executed"
        ) from error


def write_file(contents: Any, path: str | Path) -> None:
    """Write a checkpoint under another name, to the disk, and only then give it its own.

    Whatever happens in between, a checkpoint that stood there before is whole.

    Raises:
        CheckpointError: it cannot be written, for instance because the disk is full.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns some of the first into the second
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        kept = "the previous checkpoint is intact" if path.exists() else "there is no previous one"
        raise CheckpointError(
            f"{path}: the checkpoint cannot be written ({error}); {kept}; make room, and resume with "
            "--ckpt_path last"
        ) from error


def steps_of(path: Path) -> int:
    """The optimiser steps of a checkpoint, of which no tensor is read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    except Exception:  # torch cannot map its older formats; the reader of whole files says what is wrong
        return read_file(path)["global_step"]
