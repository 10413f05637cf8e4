"""Reading checkpoints as data and writing them atomically, without Lightning."""

import contextlib
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from botnet import __version__
from botnet.errors import CheckpointError

FORMAT = 1  # of what a checkpoint holds under "botnet"; raised when an older version could not read it
PARTIAL = ".partial"  # suffix of a checkpoint that is being written
KINDS = ("detector", "classifier")
# Arguments of networks that name files to read or to fetch.
FETCHING = {
    "weights",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
}


@dataclass(frozen=True)
class TaskCheckpoint:
    """A checkpoint of ``botnet fit``, read as data.

    Args:
        path: the file.
        kind: what it holds: ``detector`` or ``classifier``.
        spec: arguments that the network was built with.
        metadata: ``class_names``, and the rest of :meth:`TaskModule.checkpoint_metadata`.
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


@contextlib.contextmanager
def building(checkpoint: TaskCheckpoint) -> Iterator[dict[str, Any]]:
    """Build a network from what a file says of it; yields its arguments.

    Raises:
        CheckpointError: they would have files fetched or read, which is no business of a checkpoint, or the
            network cannot be built from what the file holds.
    """
    path, spec = checkpoint.path, checkpoint.spec
    foreign = [] if not isinstance(spec, dict) else sorted(FETCHING & spec.keys())
    if foreign or not isinstance(spec, dict):
        what = f"has the argument {foreign[0]!r}" if foreign else f"is {type(spec).__name__}, not a mapping"
        raise CheckpointError(
            f"{path}: its description of the network {what}; it is broken, or was not written by botnet"
        )
    try:
        yield spec
    except CheckpointError:
        raise
    except Exception as error:  # whatever torch and timm raise for arguments and tensors of any kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(
            f"{path}: its {checkpoint.kind} cannot be built from what it holds ({reason}); it is broken, or "
            "from elsewhere"
        ) from error


def read_checkpoint(path: str | Path) -> TaskCheckpoint:
    """A checkpoint of a detector or a classifier, read once and as data.

    Args:
        path: ``last.ckpt`` or ``best.ckpt`` of a run.

    Raises:
        CheckpointError: no such file, a broken one, one of a newer format, or one that was not written by
            ``botnet fit``.
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
    """The contents of a checkpoint file, read as data: a file that holds code is refused.

    Raises:
        CheckpointError: there is no such file, it is broken, holds more than data, or is of a newer format.
    """
    try:
        contents = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such checkpoint; the checkpoints of a run are in checkpoints/"
        ) from error
    except Exception as error:  # torch's reader and unpickler have many
        # Of torch's advice how to run the code all the same, only the first sentence.
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise CheckpointError(
            f"{path} cannot be read as data ({reason}); it is broken, or it holds code, which is not executed"
        ) from error
    check_format(contents, path)
    return contents


def check_format(contents: Any, source: str | Path) -> None:
    """Refuse a checkpoint of a newer format; those of 0.1.0 have no number.

    Args:
        contents: of the file.
        source: its name in the message.

    Raises:
        CheckpointError: the format is newer than this package's.
    """
    metadata = contents.get("botnet") if isinstance(contents, dict) else None
    number = metadata.get("format", 0) if isinstance(metadata, dict) else 0
    if not isinstance(number, int):
        raise CheckpointError(f"{source}: its format is {number!r}, not a number; it is broken")
    if isinstance(metadata, dict) and number > FORMAT:
        raise CheckpointError(
            f"{source} was written by botnet {metadata.get('version')} in format {number}; "
            f"botnet {__version__} reads up to format {FORMAT}: "
            "upgrade with pip install --upgrade bottleneck-transformers"
        )


def write_file(contents: Any, path: str | Path, previous: Path | None = None) -> None:
    """Write a checkpoint under another name, to the disk, and only then give it its own.

    Whatever happens in between, a checkpoint that existed before stays intact.

    Args:
        contents: of the checkpoint.
        path: the file.
        previous: name in the same folder under which the one that existed before is kept.

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
        if previous is not None and path.exists():
            _replace_and_keep(partial, path, previous)
        else:
            os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns some of the first into the second
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        kept = "the previous checkpoint is intact" if path.exists() else "there is no previous one"
        raise CheckpointError(
            f"{path}: the checkpoint cannot be written ({error}); {kept}; make room, and resume with "
            "--ckpt_path last"
        ) from error


def _replace_and_keep(partial: Path, path: Path, previous: Path) -> None:
    """Give a file its name, and what had it before another; at every moment one of the two is whole."""
    kept = previous.with_name(previous.name + PARTIAL)
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)
    except OSError:  # a file system without hard links
        os.replace(path, previous)
        os.replace(partial, path)
        return
    os.replace(partial, path)
    os.replace(kept, previous)


def copy_file(source: Path, destination: Path) -> None:
    """Copy a checkpoint under another name, and only then give it its own."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + PARTIAL)
    shutil.copyfile(source, partial)
    os.replace(partial, destination)


def damage_of(path: Path) -> str:
    """What is wrong with a checkpoint file, by its checksums; empty if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
            return f"{part} in it has another checksum" if part else ""
    except zipfile.BadZipFile as error:
        damage = str(error)
    except OSError as error:
        return error.strerror or str(error)
    try:
        read_file(path)  # of an old format of torch, without checksums
    except CheckpointError:
        return damage
    return ""


def peek(path: str | Path) -> Any:
    """The contents of a checkpoint, of which no tensor is read before it is used.

    Raises:
        CheckpointError: as in :func:`read_file`.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch cannot map its older formats; read_file says what is wrong
        return read_file(path)


def steps_of(path: Path) -> int:
    """The optimiser steps of a checkpoint."""
    return int(peek(path)["global_step"])
