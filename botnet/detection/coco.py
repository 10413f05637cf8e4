"""COCO instances files: read, check, serve as training and evaluation samples."""

import numpy as np
from faster_coco_eval.core import mask as rle_api


class DataError(ValueError):
    """A data set cannot be used as it is; the message names the file, the record and the remedy."""


def encode_mask(mask: np.ndarray) -> dict:
    """COCO's compressed run-length encoding of a mask.

    Args:
        mask: (H, W), zero outside the object.

    Returns:
        ``{"size": [H, W], "counts": str}``, ready for JSON.
    """
    rle = rle_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }
