"""The layer of Figure 4 as loops over cells, in float64 NumPy, written from the formula only."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def relative_row(table: Array, offset: int, side: int) -> Array:
    """Encoding of one offset on a map of `side` cells, from a table of 2L-1 entries."""
    length = (len(table) + 1) // 2
    if side <= length:
        return table[offset + length - 1]
    where = offset * (length - 1) / (side - 1)
    return np.array([np.interp(where, np.arange(1 - length, length), channel) for channel in table.T])


def absolute_row(table: Array, cell: int, side: int) -> Array:
    """Encoding of one cell on a map of `side` cells, from a table of L entries."""
    length = len(table)
    if side <= length:
        return table[cell + (length - side) // 2]
    where = cell * (length - 1) / (side - 1)
    return np.array([np.interp(where, np.arange(length), channel) for channel in table.T])


def mhsa(
    x: Array,
    weight: Array,
    heads: int,
    stride: int,
    content: bool,
    relative: tuple[Array, Array] | None = None,
    absolute: tuple[Array, Array] | None = None,
) -> Array:
    """Output (B, C, ceil(H/stride), ceil(W/stride)) for a map x (B, C, H, W) and q, k, v weights (3C, C)."""
    batch, dim, height, width = x.shape
    d = dim // heads
    cells = [(row, column) for row in range(height) for column in range(width)]
    out = np.zeros_like(x)
    for b in range(batch):
        for head in range(heads):
            w_q, w_k, w_v = (weight[part * dim + head * d : part * dim + head * d + d] for part in range(3))
            for y, z in cells:
                query = w_q @ x[b, :, y, z] / np.sqrt(d)
                logits = []
                for row, column in cells:
                    logit = 0.0
                    if content:
                        logit += query @ (w_k @ x[b, :, row, column])
                    if relative:
                        logit += query @ relative_row(relative[0], row - y, height)
                        logit += query @ relative_row(relative[1], column - z, width)
                    if absolute:
                        logit += query @ absolute_row(absolute[0], row, height)
                        logit += query @ absolute_row(absolute[1], column, width)
                    logits.append(logit)
                weights = np.exp(logits) / np.sum(np.exp(logits))
                for share, (row, column) in zip(weights, cells, strict=True):
                    out[b, head * d : head * d + d, y, z] += share * (w_v @ x[b, :, row, column])
    rows, columns = range(0, height, stride), range(0, width, stride)
    pooled = [[out[:, :, y : y + stride, z : z + stride].mean((2, 3)) for z in columns] for y in rows]
    return np.array(pooled).transpose(2, 3, 0, 1)
