"""Trained networks outside of PyTorch: ONNX files, written by ``botnet export`` and run without torch."""

from typing import TYPE_CHECKING

from botnet.lazy import lazy

if TYPE_CHECKING:
    from botnet.deploy.export import export_onnx
    from botnet.deploy.session import OnnxModel

__all__ = ["OnnxModel", "export_onnx"]

__getattr__, __dir__ = lazy(
    __name__, {"OnnxModel": "botnet.deploy.session", "export_onnx": "botnet.deploy.export"}
)
