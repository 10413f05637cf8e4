"""The attention layer in the subset of Python that TorchScript supports: the formula as written."""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from botnet.layers.attention import MHSA2d

M = TypeVar("M", bound=nn.Module)


def scriptable(model: M) -> M:
    """A copy of a network that `torch.jit.script` can compile; registered networks call this themselves."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, MHSA2d):
            model.set_submodule(name, ScriptableMHSA2d(layer))
    return model


class ScriptableMHSA2d(nn.Module):
    """The same function as an `MHSA2d`, with all logits stored; only for `torch.jit.script`.

    Args:
        layer: the `MHSA2d` to replace; its parameters are shared.
    """

    height_table: Tensor | None
    width_table: Tensor | None

    def __init__(self, layer: MHSA2d) -> None:
        super().__init__()
        self.qkv = layer.qkv
        self.heads = layer.heads
        self.stride = layer.stride
        self.content = layer.content
        self.relative = layer.position == "relative"
        self.height_table, self.width_table = (
            (None, None) if layer.pos_embed is None else layer.pos_embed.tables
        )

    def forward(self, x: Tensor) -> Tensor:
        """Attend over a map (B, C, H, W); returns (B, C, ceil(H / stride), ceil(W / stride))."""
        batch, dim, height, width = x.shape
        d = dim // self.heads
        q, k, v = self.qkv(x).reshape(batch, 3, self.heads, d, height * width).unbind(1)  # B, heads, d, N
        q = q.transpose(2, 3) * d**-0.5
        logits = q @ k if self.content else torch.zeros([1], dtype=q.dtype, device=q.device)
        height_table, width_table = self.height_table, self.width_table
        if height_table is not None and width_table is not None:
            cells = q.reshape(batch, self.heads, height, width, d)
            rows = _encode(height_table, height, self.relative)
            columns = _encode(width_table, width, self.relative)
            by_row = torch.einsum("bnyxd,ykd->bnyxk", cells, rows)
            by_column = torch.einsum("bnyxd,xkd->bnyxk", cells, columns)
            position = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)
            logits = logits + position.reshape(batch, self.heads, height * width, height * width)
        out = (v @ logits.softmax(-1).transpose(2, 3)).reshape(batch, dim, height, width)
        if self.stride == 2:
            out = F.avg_pool2d(out, 2, ceil_mode=True, count_include_pad=False)
        return out


def _encode(table: Tensor, side: int, relative: bool) -> Tensor:
    """Encodings (side, side, d) by query and key along one axis, as `botnet.layers.position` defines them."""
    cells = torch.arange(side, device=table.device)
    if relative:
        last = table.shape[0] // 2
        at = (cells - cells.unsqueeze(1)) * (last / max(side - 1, last, 1)) + last
    else:
        last = table.shape[0] - 1
        at = cells * (last / max(side - 1, last, 1)) + max(last + 1 - side, 0) // 2
        at = at.expand(side, side)
    lower, upper = at.floor(), at.ceil()
    return torch.lerp(table[lower.long()], table[upper.long()], (at - lower).unsqueeze(-1).to(table.dtype))
