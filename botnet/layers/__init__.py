"""The layers that the paper introduces: plain modules, tensors in, tensors out."""

from botnet.layers.attention import MHSA2d
from botnet.layers.kernels import relative_attention
from botnet.layers.position import AbsolutePosition, RelativePosition, resize_position_tables

__all__ = ["AbsolutePosition", "MHSA2d", "RelativePosition", "relative_attention", "resize_position_tables"]
