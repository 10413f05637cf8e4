"""The attention picture: what one place of an image attends to in the first BoT block, head by head."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from botnet.errors import DataError
from botnet.layers import MHSA2d

PANEL = 320  # least side of a panel in pixels
COLOURS = matplotlib.colormaps["inferno"]


class AttentionProbe:
    """The first attention layer of a network, and the map that it was last given."""

    def __init__(self, layer: MHSA2d) -> None:
        self.layer = layer
        self.map: Tensor | None = None  # (B, C, H, W)

    @torch.inference_mode()
    def weights(self, y: float, x: float) -> tuple[Tensor, tuple[int, int]]:
        """What the cell at a place attends to.

        Args:
            y, x: of the place, as parts of the height and width of what the network was given, in [0, 1).

        Returns:
            The softmax of each head (heads, H, W), and the cell's row and column.
        """
        assert self.map is not None, "the network has not run yet"
        height, width = self.map.shape[-2:]
        row, column = int(y * height), int(x * width)
        cells = torch.tensor([row * width + column], device=self.map.device)
        weights = self.layer.attention_weights(self.map[:1], cells)
        return weights[0, :, 0].unflatten(-1, (height, width)), (row, column)


@contextmanager
def probe_attention(model: nn.Module) -> Iterator[AttentionProbe]:
    """Keep what the first attention layer of a network is given while it runs.

    Raises:
        DataError: the network has no such layer.
    """
    layer = next((module for module in model.modules() if isinstance(module, MHSA2d)), None)
    if layer is None:
        raise DataError(
            f"{type(model).__name__} has no BoT block, so there is no attention to draw; --attention is for "
            "the BoTNets"
        )
    watched = AttentionProbe(layer)

    def keep(_layer: nn.Module, inputs: tuple[Tensor]) -> None:
        watched.map = inputs[0].detach()

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield watched
    finally:
        handle.remove()


def attention_picture(image: Tensor, weights: Tensor, cell: tuple[int, int]) -> Image.Image:
    """An image with the chosen cell marked, and beside it each head's attention laid over it.

    The colours of a head go from nothing to its own strongest weight, which its title names in relation to
    attention spread evenly.

    Args:
        image: what the network was given, (3, h, w) uint8.
        weights: of the heads, (heads, H, W), each summing to 1.
        cell: row and column of the chosen cell.
    """
    heads, height, width = weights.shape
    zoom = max(1.0, PANEL / max(image.shape[1:]))
    size = (round(image.shape[1] * zoom), round(image.shape[2] * zoom))
    enlarged = nn.functional.interpolate(image[None].float(), size, mode="bilinear")[0]
    grey = (enlarged.mean(0) / 255).cpu().numpy()
    laid = nn.functional.interpolate(weights[:, None].float(), size, mode="bilinear")[:, 0].cpu().numpy()
    panels = [(enlarged.permute(1, 2, 0).byte().cpu().numpy(), "chosen cell")]
    for head in range(heads):
        strongest = float(weights[head].max())
        share = laid[head] / strongest
        cover = 0.8 * share[..., None]
        mixed = cover * COLOURS(share)[..., :3] + (1 - cover) * 0.6 * grey[..., None]
        panels.append(
            (
                (255 * mixed).astype(np.uint8),
                f"head {head + 1}: up to {strongest * height * width:.1f} x even",
            )
        )
    row, column = cell
    sides = (column * size[1] / width, row * size[0] / height)
    box = (*sides, sides[0] + size[1] / width, sides[1] + size[0] / height)
    return _grid(panels, box)


def _grid(panels: list[tuple[np.ndarray, str]], box: tuple[float, float, float, float]) -> Image.Image:
    """Panels in one row under their titles, each with the box drawn."""
    bar, gap = 26, 6
    height, width = panels[0][0].shape[:2]
    sheet = Image.new("RGB", ((width + gap) * len(panels) - gap, height + bar), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for number, (pixels, title) in enumerate(panels):
        left = number * (width + gap)
        sheet.paste(Image.fromarray(pixels), (left, bar))
        pen.text((left + 4, 4), title, font=font, fill="black")
        x1, y1, x2, y2 = (left + box[0], bar + box[1], left + box[2], bar + box[3])
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black", width=1)
        pen.rectangle((x1, y1, x2, y2), outline="white", width=2)
    return sheet
