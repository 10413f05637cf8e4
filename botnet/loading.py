"""``botnet.load``: any trained model, ready to answer."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botnet.classification.image_classifier import ImageClassifier
    from botnet.detection.detector import Detector
    from botnet.training.checkpoint_file import TaskCheckpoint


def load(source: "str | Path | TaskCheckpoint", device: str = "auto") -> "Detector | ImageClassifier":
    """A trained model, ready to answer by its ``predict``.

    Args:
        source: a run, of which the best checkpoint is taken, or the last if there is no best; a checkpoint; a
            published folder; ``hf-hub:user/name``; or an ``.onnx`` file of ``botnet export``, which needs
            neither PyTorch nor a GPU.
        device: "cpu", "cuda", ...; "auto" takes an accelerator if there is one.

    Returns:
        :class:`botnet.detection.detector.Detector` or
        :class:`botnet.classification.image_classifier.ImageClassifier`.

    Raises:
        CheckpointError: there is no such model, it is broken, of a newer format, or was not trained here.
        ConfigError: there is no such device.
    """
    if isinstance(source, str | Path) and str(source).endswith(".onnx"):
        from botnet.deploy.answers import load_onnx

        return load_onnx(source)
    from botnet.devices import pick_device
    from botnet.training.checkpoint_file import TaskCheckpoint
    from botnet.training.model_source import open_checkpoint

    checkpoint = source if isinstance(source, TaskCheckpoint) else open_checkpoint(source)
    if checkpoint.kind == "detector":
        from botnet.detection.checkpoint import load_detector
        from botnet.detection.detector import TorchDetector

        network, metadata = load_detector(checkpoint)
        return TorchDetector(network.to(pick_device(device)), **metadata)
    from botnet.classification.classifier import open_classifier
    from botnet.classification.image_classifier import TorchClassifier

    return TorchClassifier(open_classifier(checkpoint, device=device))
