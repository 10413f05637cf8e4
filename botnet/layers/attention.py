"""Multi-head self-attention over a 2-D map: the layer of Figure 4."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from botnet.layers.kernels import Implementation, attention_weights, relative_attention
from botnet.layers.position import AbsolutePosition, PositionTables, RelativePosition

Position = Literal["relative", "absolute"]
QkvStd = float | Literal["fan_in"]

POSITIONS: dict[str, type[AbsolutePosition] | type[RelativePosition]] = {
    "relative": RelativePosition,
    "absolute": AbsolutePosition,
}


class MHSA2d(nn.Module):
    """All-to-all attention among the cells of a feature map, with split 2-D position encodings (Figure 4).

    Logits are ``q k^T + q r^T`` with q scaled by d^-0.5 before both products. There is no output projection.

    Args:
        dim: channels C in and out; a multiple of `heads`.
        heads: attention heads, each of width d = dim / heads.
        stride: 1, or 2 for a 2x2 average pool after the attention (Section 3); output sides are rounded up.
        position: "relative", "absolute" or None (Table 4).
        content: whether the logits have the term q k^T; False leaves only the position term (Table 4).
        feat_size: (H, W) of the position tables, in cells; `forward` accepts maps of any other size.
        qkv_std: initial standard deviation of the query, key and value projections. Default 0.01, as the
            authors have it. With few channels the logits are then nearly zero, and so are the gradients that
            would change them: "fan_in", C^-0.5, is the better choice for small networks.

    Raises:
        ValueError: no heads, a width not divisible by them, another stride or position, no logits at all, or
            a `qkv_std` that is neither positive nor "fan_in".
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        stride: int = 1,
        position: Position | None = "relative",
        content: bool = True,
        feat_size: tuple[int, int] | None = None,
        qkv_std: QkvStd = 0.01,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads={heads}: expected a positive number")
        if dim % heads:
            raise ValueError(f"dim={dim} is not divisible by heads={heads}")
        if stride not in (1, 2):
            raise ValueError(f"stride={stride}: expected 1 or 2")
        if position is None and not content:
            raise ValueError("position=None and content=False leave no logits: keep one of the two terms")
        if position is not None and position not in POSITIONS:
            raise ValueError(f"position={position!r}: expected 'relative', 'absolute' or None")
        if qkv_std != "fan_in" and not (isinstance(qkv_std, int | float) and 0 < qkv_std < math.inf):
            raise ValueError(f"qkv_std={qkv_std!r}: expected a positive number or 'fan_in'")
        self.dim = dim
        self.heads = heads
        self.stride = stride
        self.position = position
        self.content = content
        self.qkv_std = dim**-0.5 if qkv_std == "fan_in" else qkv_std
        self.implementation: Implementation | None = None  # force one of kernels.IMPLEMENTATIONS
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.pos_embed: PositionTables | None = None
        if position is not None:
            if feat_size is None:
                raise ValueError(f"position={position!r} needs feat_size=(H, W), the map size of its tables")
            self.pos_embed = POSITIONS[position](feat_size, dim // heads)
        self.reset_parameters()

    @property
    def feat_size(self) -> tuple[int, int] | None:
        """(H, W) of the position tables, in cells; None without position."""
        return None if self.pos_embed is None else self.pos_embed.feat_size

    def reset_parameters(self) -> None:
        """Draw q, k, v from N(0, qkv_std) and the tables from N(0, d^-0.5)."""
        nn.init.normal_(self.qkv.weight, std=self.qkv_std)
        if self.pos_embed is not None:
            self.pos_embed.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: the position tables."""
        return {name for name, _ in self.named_parameters() if name.startswith("pos_embed.")}

    def forward(self, x: Tensor) -> Tensor:
        """Attend over a map (B, C, H, W); returns (B, C, ceil(H / stride), ceil(W / stride))."""
        q, k, v, position = self._project(x)
        batch, _, height, width = x.shape
        out = relative_attention(
            q,
            k if self.content else None,
            v,
            position,
            (height, width),
            (self.dim // self.heads) ** -0.5,
            self.stride,
            self.implementation,
        )
        sides = [(side + self.stride - 1) // self.stride for side in (height, width)]
        out = out.transpose(1, 2).reshape(batch, *sides, self.dim).permute(0, 3, 1, 2)
        # By its stride: vmap cannot be asked for a memory format.
        return out if x.stride(1) == 1 else out.contiguous()

    def attention_weights(self, x: Tensor, cells: Tensor) -> Tensor:
        """Attention weights of some cells of a map: exact softmax rows, which `forward` does not store.

        Args:
            x: map (B, C, H, W).
            cells: (M,) indices into the N = H * W cells, row by row, before any pooling.

        Returns:
            (B, heads, M, N); each row sums to 1.
        """
        q, k, _, position = self._project(x)
        return attention_weights(
            q[:, :, cells],
            k if self.content else None,
            None if position is None else position[:, :, cells],
            (x.shape[2], x.shape[3]),
            (self.dim // self.heads) ** -0.5,
        )

    def logit_terms(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the logits of a map are made of: the terms q k^T and q r^T of Table 4.

        Args:
            x: map (B, C, H, W).

        Returns:
            Queries (B, heads, N, d), scaled by d^-0.5; keys of the same shape, or None without content; and
            position logits (B, heads, N, H + W), what a query adds to the keys of each row, then of each
            column, or None without position.
        """
        q, k, _, position = self._project(x)
        return q * (self.dim // self.heads) ** -0.5, k if self.content else None, position

    def __prepare_scriptable__(self) -> nn.Module:
        """The layer that `torch.jit.script` compiles in place of this one, also after torch.fx."""
        from botnet.layers.torchscript import ScriptableMHSA2d

        return ScriptableMHSA2d(self)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values (B, heads, N, d), and position logits (B, heads, N, H + W)."""
        if x.ndim != 4 or x.shape[1] != self.dim:
            raise ValueError(f"expected a map (B, {self.dim}, H, W), got a tensor of shape {tuple(x.shape)}")
        _, _, height, width = x.shape
        d = self.dim // self.heads
        # Views of a channels-last map: no copies, neither here nor of the gradients in the backward pass.
        qkv = self.qkv(x).permute(0, 2, 3, 1).unflatten(-1, (3, self.heads, d))
        q, k, v = qkv.unbind(3)  # B, H, W, heads, d
        position = None
        if self.pos_embed is not None:
            by_row, by_column = (table * d**-0.5 for table in self.pos_embed(height, width))
            to_rows = torch.einsum("byxnd,ykd->bnyxk", q, by_row)
            to_columns = torch.einsum("byxnd,xkd->bnyxk", q, by_column)
            position = torch.cat([to_rows, to_columns], -1).flatten(2, 3).to(q.dtype)
        q, k, v = (t.permute(0, 3, 1, 2, 4).flatten(2, 3) for t in (q, k, v))  # B, heads, N, d
        return q, k, v, position
