"""Running an exported network with onnxruntime: without torch, on prepared images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from botnet import __version__
from botnet.arguments import Resampling
from botnet.errors import CheckpointError

FORMAT = 1  # of inputs, outputs and metadata; raised when an older version could not run the graph


class _Preparation(msgspec.Struct):
    crop_pct: float
    interpolation: Resampling


class _About(msgspec.Struct):
    format: int
    version: str
    task: Literal["detector", "classifier"]
    class_names: list[str]
    category_ids: list[int]
    size: tuple[int, int]
    fixed_size: bool
    preparation: _Preparation | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class OnnxModel:
    """A detector or a classifier of ``botnet export``, on the CPU.

    Several threads may call :meth:`run` at once.

    Args:
        path: the ``.onnx`` file.
        threads: of one call; by default onnxruntime's choice.

    Attributes:
        task: ``detector`` or ``classifier``.
        class_names: of labels 1, 2, ... of a detector, of outputs 0, 1, ... of a classifier.
        category_ids: a detector's category of each class; empty for a classifier.
        size: height and width in pixels: of a detector's canvas, of a classifier's images.
        fixed_size: whether images must have that size; those of most classifiers need not.
        preparation: a classifier's ``crop_pct`` and ``interpolation``; empty for a detector.
        mean, std: of the channels of images from 0 to 1; the graph itself normalises by them.
        version: of the package that wrote the file.

    Raises:
        CheckpointError: the file is missing, broken, of another program or of a newer format.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        import onnxruntime

        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{path}: no such file; write one by botnet export")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised, too
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class for each kind, all of them private
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path} cannot be run by onnxruntime {onnxruntime.__version__} ({reason}); "
                "if it is broken or truncated, write it again by botnet export"
            ) from error
        about = self._metadata()
        self.task: str = about.task
        self.class_names = about.class_names
        self.category_ids = about.category_ids
        self.size = about.size
        self.fixed_size = about.fixed_size
        self.preparation = msgspec.to_builtins(about.preparation) if about.preparation else {}
        self.mean, self.std, self.version = about.mean, about.std, about.version

    def _metadata(self) -> "_About":
        """What ``botnet export`` wrote beside the graph."""
        try:
            stored = self.session.get_modelmeta().custom_metadata_map
            if "botnet_format" not in stored:
                raise CheckpointError(
                    f"{self.path} was not written by botnet export: it does not name its classes; "
                    "export the run by botnet export"
                )
            about = {
                key.removeprefix("botnet_"): json.loads(value)
                for key, value in stored.items()
                if key.startswith("botnet_")
            }
            newer = about["format"] > FORMAT
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path}: its metadata are broken ({error}); write it again by botnet export"
            ) from error
        if newer:
            raise CheckpointError(
                f"{self.path} was written by botnet {about.get('version')} in format {about['format']}; "
                f"botnet {__version__} runs up to format {FORMAT}: "
                "upgrade with pip install --upgrade bottleneck-transformers"
            )
        if missing := set(_About.__struct_fields__) - about.keys():
            raise CheckpointError(
                f"{self.path}: its metadata lack {', '.join(sorted(missing))}; "
                "write it again by botnet export"
            )
        try:
            known = msgspec.convert(about | {"preparation": about["preparation"] or None}, _About)
            if known.task == "classifier" and known.preparation is None:
                raise msgspec.ValidationError("a classifier without the preparation of its images")
        except msgspec.ValidationError as error:
            raise CheckpointError(
                f"{self.path}: its metadata are broken ({error}); write it again by botnet export"
            ) from error
        return known

    def run(
        self, images: np.ndarray, valid: Sequence[tuple[int, int]] | np.ndarray | None = None
    ) -> list[dict[str, np.ndarray]]:
        """What the network finds in prepared images.

        Args:
            images: ``(B, 3, H, W)`` uint8 RGB: a detector's resized into the canvas and padded at the bottom
                and right, a classifier's resized and cropped.
            valid: a detector's ``(height, width)`` of each image's unpadded region; the canvas by default.

        Returns:
            For each image, of a detector: ``boxes`` ``(n, 4)`` xyxy in canvas pixels, ``scores``, ``labels``
            from 1 and, for Mask R-CNN, ``masks`` ``(n, 28, 28)``, probabilities, best score first. Of a
            classifier: ``scores``, the probability of each class.

        Raises:
            ValueError: images of another shape or type, or a region that is not inside of them.
        """
        expected = (3, *self.size) if self.fixed_size else (3,)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:][: len(expected)] != expected:
            shape = ", ".join(map(str, (*expected, "H", "W")[:3]))
            raise ValueError(f"images: expected uint8 (B, {shape}), got {images.dtype} {images.shape}")
        if self.task == "classifier":
            (scores,) = self.session.run(None, {"images": images})
            return [{"scores": of_image} for of_image in scores]
        canvas = images.shape[2:]
        region = np.array([canvas] * len(images) if valid is None else valid, np.int64).reshape(-1, 2)
        if len(region) != len(images) or (region < 1).any() or (region > canvas).any():
            raise ValueError(
                f"valid: expected the (height, width) of each of {len(images)} images, up to {canvas}"
            )
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(None, {"images": images, "valid": region}), strict=True))
        ends = np.cumsum(found.pop("counts"))[:-1]
        parts = {name: np.split(values, ends) for name, values in found.items()}
        return [{name: values[i] for name, values in parts.items()} for i in range(len(images))]
