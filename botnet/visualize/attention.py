"""The attention picture: what one place of an image attends to in the first BoT block, head by head."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from botnet.errors import ConfigError
from botnet.layers import MHSA2d
from botnet.visualize.panels import titled_row

PANEL = 320  # least longer side of a panel in pixels
COLOURS = matplotlib.colormaps["inferno"]


class AttentionProbe:
    """Records the input of an attention layer while its network runs.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: MHSA2d) -> None:
        self.layer = layer
        self.map: Tensor | None = None  # the latest input, (B, C, H, W)

    @torch.inference_mode()
    def weights(self, y: float, x: float) -> tuple[Tensor, tuple[int, int]]:
        """The attention of one query, in the first image of the latest batch.

        Args:
            y, x: place of the query as fractions of the height and width of the network's input, in [0, 1).

        Returns:
            The softmax of each head (heads, H, W), and the row and column of the query's cell.
        """
        assert self.map is not None, "the network has not run yet"
        height, width = self.map.shape[-2:]
        row, column = int(y * height), int(x * width)
        cells = torch.tensor([row * width + column], device=self.map.device)
        weights = self.layer.attention_weights(self.map[:1], cells)
        return weights[0, :, 0].unflatten(-1, (height, width)), (row, column)


@contextmanager
def probe_attention(model: nn.Module) -> Iterator[AttentionProbe]:
    """Record the input of a network's first attention layer while it runs in this context.

    Raises:
        ConfigError: the network has no such layer.
    """
    layer = next((module for module in model.modules() if isinstance(module, MHSA2d)), None)
    if layer is None:
        raise ConfigError(
            f"{type(model).__name__} has no BoT block, so there is no attention to draw; --attention is for "
            "the BoTNets"
        )
    probe = AttentionProbe(layer)

    def record(_layer: nn.Module, inputs: tuple[Tensor]) -> None:
        probe.map = inputs[0].detach()

    handle = layer.register_forward_pre_hook(record)
    try:
        yield probe
    finally:
        handle.remove()


def attention_picture(image: Tensor, weights: Tensor, cell: tuple[int, int]) -> Image.Image:
    """An image with the query's cell outlined, and beside it the image overlaid with each head's attention.

    The colours of a head range from zero to its own largest weight, which its title gives relative to
    uniform attention.

    Args:
        image: what the network was given, (3, h, w) uint8.
        weights: of the heads, (heads, H, W), each summing to 1.
        cell: row and column of the query.
    """
    heads, height, width = weights.shape
    zoom = max(1.0, PANEL / max(image.shape[1:]))
    size = (round(image.shape[1] * zoom), round(image.shape[2] * zoom))
    enlarged = nn.functional.interpolate(image[None].float(), size, mode="bilinear")[0]
    panels = [(Image.fromarray(enlarged.permute(1, 2, 0).byte().cpu().numpy()), "chosen cell")]
    grey = (enlarged.mean(0) / 255).cpu().numpy()
    smooth = nn.functional.interpolate(weights[:, None].float(), size, mode="bilinear")[:, 0].cpu().numpy()
    for head in range(heads):
        largest = float(weights[head].max())
        title = f"head {head + 1}: up to {largest * height * width:.1f} x even"
        panels.append((_overlay(grey, smooth[head] / largest), title))
    row, column = cell
    left, top = column * size[1] / width, row * size[0] / height
    return titled_row(panels, (left, top, left + size[1] / width, top + size[0] / height))


def _overlay(grey: np.ndarray, strength: np.ndarray) -> Image.Image:
    """Coloured attention over a darkened grey image, both (h, w) in [0, 1]."""
    opacity = 0.8 * strength[..., None]
    mixed = opacity * COLOURS(strength)[..., :3] + (1 - opacity) * 0.6 * grey[..., None]
    return Image.fromarray((255 * mixed).astype(np.uint8))
