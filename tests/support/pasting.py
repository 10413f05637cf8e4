"""Pasting a mask with torch's own sampling, the reference for botnet.pasting; masks to paste."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def paste_mask(probabilities: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """One box's mask grid pasted onto the image: sampled bilinearly at the centres of the pixels in the box.

    Args:
        probabilities: ``(M, M)``, the box cut into M x M cells.
        box: ``(4,)`` xyxy in pixels.
        height, width: of the image.

    Returns:
        ``(height, width)`` bool: probability of at least one half.
    """
    pasted = torch.zeros(height, width, dtype=torch.bool)
    x1, y1, x2, y2 = box.tolist()
    # Pixel i is inside where its centre i + 0.5 is.
    left, right = max(round(x1), 0), min(round(x2), width)
    top, bottom = max(round(y1), 0), min(round(y2), height)
    if right <= left or bottom <= top:
        return pasted
    x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    inside = F.grid_sample(
        probabilities[None, None].float().cpu(), grid[None], align_corners=False, padding_mode="border"
    )
    pasted[top:bottom, left:right] = inside[0, 0] >= 0.5
    return pasted


def coco_like(count: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Round, noisy masks of 28 x 28 cells, and boxes from 2 % of the image's sides to the whole image."""
    random = np.random.default_rng(seed)
    image = np.array([width, height])
    half = np.exp(random.uniform(np.log(0.02), 0, (count, 2))) * image / 2
    centre = random.random((count, 2)) * image
    boxes = np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, np.tile(image, 2))
    y, x = np.mgrid[:28, :28] / 28 - 0.5
    radius = random.uniform(0.3, 0.5, (count, 1, 1))
    logits = 30 * (radius - np.hypot(x, y)) + random.normal(0, 0.3, (count, 28, 28))
    return (1 / (1 + np.exp(-logits))).astype(np.float32), boxes.astype(np.float32)
