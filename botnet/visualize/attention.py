"""The attention picture: what one place of an image attends to in a BoT block, head by head."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from botnet.errors import ConfigError
from botnet.layers import MHSA2d
from botnet.visualize.panels import titled_column, titled_row

PANEL = 320  # least longer side of a panel in pixels
COLOURS = matplotlib.colormaps["inferno"]


class AttentionProbe:
    """Records the input of an attention layer while its network runs.

    Args:
        layer: the layer.
        name: of its block in the network.
    """

    def __init__(self, layer: MHSA2d, name: str) -> None:
        self.layer, self.name = layer, name
        self.map: Tensor | None = None  # the latest input, (B, C, H, W)

    def record(self, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
        """Keep the input; a forward pre-hook."""
        self.map = inputs[0].detach()

    @property
    def title(self) -> str:
        """The block, its stage and the size of its map."""
        assert self.map is not None, "the network has not run yet"
        height, width = self.map.shape[-2:]
        return f"{self.name}{f', stage {self.stage}' if self.stage else ''}, map of {height} x {width} cells"

    @property
    def stage(self) -> str | None:
        """Its stage, such as "c5", if the name tells."""
        stage = re.search(r"layer(\d)", self.name)  # timm's ResNets count from 1, c2 is the first
        return f"c{int(stage[1]) + 1}" if stage else None

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


def attention_layers(model: nn.Module) -> dict[str, MHSA2d]:
    """The attention layers of a network by the names of their blocks, in the order of its parts."""
    return {
        name.rpartition(".")[0] or name: module
        for name, module in model.named_modules()
        if isinstance(module, MHSA2d)
    }


@contextmanager
def probe_attention(model: nn.Module, block: str | None = None) -> Iterator[list[AttentionProbe]]:
    """Record the inputs of a network's attention layers while it runs in this context.

    Args:
        model: the network.
        block: name of a BoT block, or "all"; the first one by default.

    Raises:
        ConfigError: the network has no BoT block, or none of that name.
    """
    layers = attention_layers(model)
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no BoT block, so there is no attention to draw; give a BoTNet"
        )
    if block is not None and block not in (*layers, "all"):
        raise ConfigError(f"--block {block}: the BoT blocks are {', '.join(layers)}; or give all")
    names = list(layers) if block == "all" else [block or next(iter(layers))]
    probes = [AttentionProbe(layers[name], name) for name in names]
    handles = [probe.layer.register_forward_pre_hook(probe.record) for probe in probes]
    try:
        yield probes
    finally:
        for handle in handles:
            handle.remove()


def attention_sheet(image: Tensor, probes: Sequence[AttentionProbe], y: float, x: float) -> Image.Image:
    """The attention pictures of blocks one above the other, each below the block's name and map size.

    Args:
        image: what the network was given, (3, h, w) uint8.
        probes: of the blocks.
        y, x: place of the query as fractions of the image's height and width, in [0, 1).
    """
    return titled_column([(attention_picture(image, *probe.weights(y, x)), probe.title) for probe in probes])


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
