"""The terms of a block's logits for one image, rounded to 16 bits: all that the page computes from."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from botnet.errors import DataError
from botnet.visualize.attention import AttentionProbe

LEVELS = 2**15 - 1  # 8 bits would be too few: a logit off by 0.1 changes its weight by a tenth


@dataclass(frozen=True)
class Rounded:
    """Numbers of each head as integers times the head's scale.

    Args:
        integers: (heads, N, width) int16.
        scales: (heads,).
    """

    integers: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Rounded":
        """Round finite numbers (heads, N, width); those of the largest magnitude in a head are kept."""
        scales = np.abs(values).max((1, 2)) / LEVELS
        scales[scales == 0] = 1
        return cls(np.rint(values / scales[:, None, None]).astype("<i2"), scales)

    @property
    def values(self) -> np.ndarray:
        """The rounded numbers."""
        return self.integers * self.scales[:, None, None]

    def packed(self) -> dict[str, Any]:
        """In the form of the page."""
        return {
            "scales": self.scales.tolist(),
            "integers": base64.b64encode(self.integers.tobytes()).decode(),
        }


@torch.inference_mode()
def block_terms(probe: AttentionProbe) -> dict[str, Any]:
    """What the page holds of a block.

    Args:
        probe: of the block, after its network ran with one image.

    Returns:
        ``queries``, ``keys`` and ``position`` as :meth:`botnet.layers.MHSA2d.logit_terms` has them, None for
        a term that the layer does not have; ``rounding``, see :func:`most_moved`; and the map's sizes.

    Raises:
        DataError: the terms are not finite.
    """
    assert probe.map is not None, "the network has not run yet"
    terms = [
        None if term is None else term[0].double().cpu().numpy()
        for term in probe.layer.logit_terms(probe.map)
    ]
    if not all(term is None or np.isfinite(term).all() for term in terms):
        raise DataError(
            f"{probe.name}: the attention to this image is not finite; the weights have diverged, so give an "
            "earlier checkpoint"
        )
    queries, keys, position = (None if term is None else Rounded.of(term) for term in terms)
    assert queries is not None
    height, width = probe.map.shape[-2:]
    return {
        "name": probe.name,
        "stage": probe.stage,
        "height": height,
        "width": width,
        "heads": probe.layer.heads,
        "stride": probe.layer.stride,
        "queries": None if keys is None else queries.packed(),
        "keys": None if keys is None else keys.packed(),
        "position": None if position is None else position.packed(),
        "rounding": most_moved(queries, keys, position, terms[1]),
    }


def most_moved(
    queries: Rounded, keys: Rounded | None, position: Rounded | None, unrounded: np.ndarray | None
) -> float:
    """An upper bound e on what rounding adds to or takes from any logit.

    A weight then is that of the layer times a factor from exp(-2 e) to exp(2 e).

    Args:
        queries, keys, position: the rounded terms.
        unrounded: the keys as they were, (heads, N, d).
    """
    # No number is off by more than half of its scale, and q k - q' k' = (q - q') k + q' (k - k').
    error = np.zeros(len(queries.scales))
    if keys is not None and unrounded is not None:
        error += queries.scales / 2 * np.abs(unrounded).sum(-1).max(-1)
        error += keys.scales / 2 * np.abs(queries.values).sum(-1).max(-1)
    if position is not None:
        error += position.scales  # half for the row, half for the column
    return float(error.max())
