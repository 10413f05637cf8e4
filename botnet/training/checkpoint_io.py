"""Lightning's reading and writing of checkpoints, by :mod:`botnet.training.checkpoint_file`."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from botnet.training.checkpoint_file import read_file, write_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are never half-written, and are read as data, onto the CPU from any device."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; the one before is kept where ``storage_options["previous"]`` says."""
        write_file(checkpoint, path, **(storage_options or {}))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint."""
        contents: dict[str, Any] = read_file(path, map_location or "cpu")
        return contents
