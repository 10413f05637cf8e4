"""Where things are: relative and absolute position encodings of a 2-D map, and tables of any size."""


import torch
from torch import Tensor, nn


def _resample(table: Tensor, coordinates: Tensor) -> Tensor:
    """Rows of a table (L, d) at fractional coordinates (any shape), linearly interpolated: (..., d)."""
    lower = coordinates.floor()
    upper = coordinates.ceil()
    weight = (coordinates - lower).unsqueeze(-1).to(table.dtype)
    return torch.lerp(table[lower.long()], table[upper.long()], weight)


class RelativePosition(nn.Module):
    """Split relative encodings R_h and R_w (Figure 4): one learned vector per row and per column offset.

    Entry ``key - query + L - 1`` of a table belongs to that offset, L being the table's map side. On a
    smaller map only the offsets that occur are used; on a larger one the table is stretched linearly.

    Args:
        feat_size: (H, W) of the map that the tables describe, in cells.
        dim: width d of one head.
    """

    def __init__(self, feat_size: tuple[int, int], dim: int) -> None:
        super().__init__()
        height, width = feat_size
        self.height_rel = nn.Parameter(torch.empty(2 * height - 1, dim))
        self.width_rel = nn.Parameter(torch.empty(2 * width - 1, dim))
        self.reset_parameters()

    @property
    def feat_size(self) -> tuple[int, int]:
        """(H, W) of the map that the tables describe."""
        return (len(self.height_rel) + 1) // 2, (len(self.width_rel) + 1) // 2

    def reset_parameters(self) -> None:
        """Draw both tables from N(0, d^-0.5)."""
        for table in self.parameters():
            nn.init.normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Encodings for a map of H x W: (H, H, d) by query and key row, (W, W, d) by query and key column."""
        return self._encode(self.height_rel, height), self._encode(self.width_rel, width)

    @staticmethod
    def _encode(table: Tensor, side: int) -> Tensor:
        last = len(table) // 2
        # One expression for crop and stretch, so that an exported graph holds for every map size.
        stretch = last / torch.sym_max(side - 1, max(last, 1))
        cells = torch.arange(side, device=table.device)
        return _resample(table, (cells - cells[:, None]) * stretch + last)


class AbsolutePosition(nn.Module):
    """Split absolute encodings: one learned vector per row and one per column of the keys (Table 4).

    On a smaller map the centre of a table is used; on a larger one the table is stretched linearly.

    Args:
        feat_size: (H, W) of the map that the tables describe, in cells.
        dim: width d of one head.
    """

    def __init__(self, feat_size: tuple[int, int], dim: int) -> None:
        super().__init__()
        height, width = feat_size
        self.height_abs = nn.Parameter(torch.empty(height, dim))
        self.width_abs = nn.Parameter(torch.empty(width, dim))
        self.reset_parameters()

    @property
    def feat_size(self) -> tuple[int, int]:
        """(H, W) of the map that the tables describe."""
        return len(self.height_abs), len(self.width_abs)

    def reset_parameters(self) -> None:
        """Draw both tables from N(0, d^-0.5)."""
        for table in self.parameters():
            nn.init.normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Encodings for a map of H x W: (H, H, d) by query and key row, (W, W, d) by query and key column."""
        return self._encode(self.height_abs, height), self._encode(self.width_abs, width)

    @staticmethod
    def _encode(table: Tensor, side: int) -> Tensor:
        # One expression for crop and stretch, so that an exported graph holds for every map size.
        last = len(table) - 1
        stretch = last / torch.sym_max(side - 1, max(last, 1))
        offset = torch.sym_max(len(table) - side, 0) // 2
        cells = torch.arange(side, device=table.device)
        return _resample(table, cells * stretch + offset).expand(side, -1, -1)
