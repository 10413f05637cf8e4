"""Trained models outside of a run: ONNX files, and the Hugging Face hub."""

from typing import TYPE_CHECKING

from botnet.lazy import lazy

if TYPE_CHECKING:
    from botnet.deploy.export import export_onnx
    from botnet.deploy.session import OnnxModel

__all__ = ["OnnxModel", "export_onnx"]

__getattr__, __dir__ = lazy(
    __name__, {"OnnxModel": "botnet.deploy.session", "export_onnx": "botnet.deploy.export"}
)
