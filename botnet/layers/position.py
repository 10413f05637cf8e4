"""Relative and absolute position encodings of a 2-D map, and resizing their tables."""

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)


class PositionTables(nn.Module):
    """Base of both encodings: a table for the rows and one for the columns, resized to the map.

    A smaller map uses the centre of a table, unchanged; for a larger one the table is interpolated linearly.
    """

    table_names: tuple[str, str]

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """The table of the rows and that of the columns."""
        # By name: pruning changes the order of the parameters, and DataParallel's copies have none.
        rows, columns = (getattr(self, name) for name in self.table_names)
        return rows, columns

    @property
    def feat_size(self) -> tuple[int, int]:
        """(H, W) of the map that the tables describe, in cells."""
        height, width = (self._side(len(table)) for table in self.tables)
        return height, width

    def reset_parameters(self) -> None:
        """Draw both tables from N(0, d^-0.5)."""
        for table in self.tables:
            nn.init.normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Encodings for a map of H x W: (H, H, d) by query and key row, (W, W, d) by query and key column."""
        rows, columns = self.tables
        return self._encode(rows, height), self._encode(columns, width)

    def resize(self, feat_size: tuple[int, int]) -> str:
        """Replace the tables by those of a map of `feat_size` (H, W); returns what was done to each axis."""
        if not set(self.table_names) <= self._parameters.keys():
            raise ValueError(
                f"{' and '.join(self.table_names)} cannot be resized, being pruned or parametrized: make "
                "that permanent with torch.nn.utils.prune.remove or parametrize.remove_parametrizations"
            )
        done = _describe(self.feat_size, feat_size)
        for name, table, side in zip(self.table_names, self.tables, feat_size, strict=True):
            resized = self._resized(table.detach(), side)
            setattr(self, name, nn.Parameter(resized, requires_grad=table.requires_grad))
        return done

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        errors: list[str] = args[-1]
        old, new = list(self.feat_size), self.feat_size
        for axis, (name, table) in enumerate(zip(self.table_names, self.tables, strict=True)):
            loaded = state_dict.get(prefix + name)
            if loaded is None:
                continue
            if not loaded.is_meta and loaded.isnan().any():
                errors.append(f"position table {prefix}{name} has NaN entries: the checkpoint is damaged")
            fits = loaded.ndim == 2 and loaded.shape[1] == table.shape[1] and self._fits(len(loaded))
            if fits and len(loaded) != len(table):
                old[axis] = self._side(len(loaded))
                state_dict[prefix + name] = self._resized(loaded, new[axis])
        if tuple(old) != new:
            warnings.warn(f"position tables resized on loading: {_describe(old, new)}", stacklevel=2)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @staticmethod
    def _side(entries: int) -> int:
        """Side of the map that a table with this number of entries describes."""
        raise NotImplementedError

    @staticmethod
    def _fits(entries: int) -> bool:
        """Whether any map side has a table with this number of entries."""
        raise NotImplementedError

    @staticmethod
    def _resized(table: Tensor, side: int) -> Tensor:
        """The table for another map side."""
        raise NotImplementedError

    @classmethod
    def _encode(cls, table: Tensor, side: int) -> Tensor:
        """Encodings (side, side, d) by query and key along one axis."""
        raise NotImplementedError


class RelativePosition(PositionTables):
    """Split relative encodings R_h and R_w (Figure 4): one learned vector per row and per column offset.

    Entry ``offset + L - 1`` of a table belongs to ``offset = key - query``; L is the map side it describes.

    Args:
        feat_size: (H, W) of the map that the tables describe, in cells.
        dim: width d of one head.
    """

    table_names = ("height_rel", "width_rel")

    def __init__(self, feat_size: tuple[int, int], dim: int) -> None:
        super().__init__()
        height, width = feat_size
        self.height_rel = nn.Parameter(torch.empty(2 * height - 1, dim))
        self.width_rel = nn.Parameter(torch.empty(2 * width - 1, dim))
        self.reset_parameters()

    @staticmethod
    def _side(entries: int) -> int:
        return (entries + 1) // 2

    @staticmethod
    def _fits(entries: int) -> bool:
        return entries % 2 == 1

    @staticmethod
    def _resized(table: Tensor, side: int) -> Tensor:
        # Crop and interpolate in one tensor expression: an exported graph is then valid for any map size.
        last = len(table) // 2
        offsets = _arange(1 - side, side, table)
        return _interpolate(table, offsets * last / offsets[-1].clamp(min=max(last, 1)) + last)

    @classmethod
    def _encode(cls, table: Tensor, side: int) -> Tensor:
        cells = torch.arange(side, device=table.device)
        return cls._resized(table, side)[cells - cells[:, None] + side - 1]


class AbsolutePosition(PositionTables):
    """Split absolute encodings: one learned vector per row and one per column of the keys (Table 4).

    Args:
        feat_size: (H, W) of the map that the tables describe, in cells.
        dim: width d of one head.
    """

    table_names = ("height_abs", "width_abs")

    def __init__(self, feat_size: tuple[int, int], dim: int) -> None:
        super().__init__()
        height, width = feat_size
        self.height_abs = nn.Parameter(torch.empty(height, dim))
        self.width_abs = nn.Parameter(torch.empty(width, dim))
        self.reset_parameters()

    @staticmethod
    def _side(entries: int) -> int:
        return entries

    @staticmethod
    def _fits(entries: int) -> bool:
        return entries > 0

    @staticmethod
    def _resized(table: Tensor, side: int) -> Tensor:
        last = len(table) - 1
        cells = _arange(0, side, table)
        margin = (last - cells[-1]).clamp(min=0).div(2, rounding_mode="floor")
        return _interpolate(table, cells * last / cells[-1].clamp(min=max(last, 1)) + margin)

    @classmethod
    def _encode(cls, table: Tensor, side: int) -> Tensor:
        return cls._resized(table, side).expand(side, -1, -1)


def resize_position_tables(model: nn.Module, size: tuple[int, int]) -> dict[str, str]:
    """Resize the position tables of a layer, or of all layers of a network, in place.

    Args:
        model: a layer or a network. Its largest tables are resized to `size`; the others keep their ratio to
            the largest (the later blocks of a stage work at half the side of the first).
        size: (H, W) in cells.

    Returns:
        What was done, by module name: each axis is cropped to its centre, interpolated or kept. Also logged.

    Raises:
        ValueError: there are no position tables, they are pruned or parametrized, or `size` is not two
            positive sides.
    """
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size={size}: expected (H, W), two positive numbers of cells")
    tables = {name: module for name, module in model.named_modules() if isinstance(module, PositionTables)}
    if not tables:
        raise ValueError(f"{type(model).__name__} has no position tables to resize")
    largest = [max(module.feat_size[axis] for module in tables.values()) for axis in (0, 1)]
    done = {}
    for name, module in tables.items():
        strides = [round(full / side) for full, side in zip(largest, module.feat_size, strict=True)]
        height, width = (-(-side // stride) for side, stride in zip(size, strides, strict=True))
        done[name] = module.resize((height, width))
        _log.info("%s: %s", name or "position tables", done[name])
    return done


def _arange(start: int, stop: int, table: Tensor) -> Tensor:
    """Coordinates on a table's device, in its precision but at least single precision."""
    dtype = torch.promote_types(table.dtype, torch.float32)
    return torch.arange(start, stop, device=table.device, dtype=dtype)


def _interpolate(table: Tensor, coordinates: Tensor) -> Tensor:
    """Entries (n, d) of a table (L, d) at fractional coordinates (n,), linear between neighbours."""
    lower = coordinates.floor()
    weight = (coordinates - lower).unsqueeze(-1).to(table.dtype)
    return torch.lerp(table[lower.long()], table[coordinates.ceil().long()], weight)


def _describe(old: Any, new: Any) -> str:
    """What resizing does to each axis, in words."""
    verbs = ("interpolate" if b > a else "crop" if b < a else "keep" for a, b in zip(old, new, strict=True))
    sizes = f"{old[0]}x{old[1]} to {new[0]}x{new[1]}"
    return sizes + ", height: {}, width: {}".format(*verbs)
