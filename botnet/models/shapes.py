"""Map sizes inside a network, from a forward pass of shapes alone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def map_sizes(
    model: nn.Module, layers: Sequence[nn.Module], img_size: int | tuple[int, int] | None
) -> list[tuple[int, int]]:
    """Height and width of the map that each layer sees, by one forward pass of shapes alone."""
    if img_size is None:
        img_size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    seen: dict[nn.Module, tuple[int, int]] = {}

    def remember(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        seen[layer] = (inputs[0].shape[-2], inputs[0].shape[-1])

    handles = [layer.register_forward_pre_hook(remember) for layer in layers]
    try:
        shape_pass(model, (height, width))
    finally:
        for handle in handles:
            handle.remove()
    return [seen[layer] for layer in layers]


def shape_pass(model: nn.Module, size: tuple[int, int]) -> None:
    """Send one image of height and width `size` through a network without data, for its hooks to see shapes.

    Nothing is computed, and neither parameters nor statistics change (the meta device stands in for both).
    """
    training = {module: module.training for module in model.modules()}
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        with torch.no_grad():
            shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
            dtype = next(model.parameters()).dtype
            image = torch.empty(1, channels, *size, device="meta", dtype=dtype)
            torch.func.functional_call(model.eval(), shapes, (image,))
    finally:
        for module, mode in training.items():
            module.training = mode
