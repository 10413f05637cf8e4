"""Map sizes inside a network, from a forward pass on the meta device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def map_sizes(
    model: nn.Module, layers: Sequence[nn.Module], img_size: int | tuple[int, int] | None
) -> list[tuple[int, int]]:
    """Height and width of the input map of each layer, from one forward pass on the meta device.

    Args:
        model: a network of timm or torchvision.
        layers: layers of it.
        img_size: side, or height and width, of the image in pixels; default what timm's configuration of the
            model says, else 224.
    """
    if img_size is None:
        img_size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        sizes[layer] = (inputs[0].shape[-2], inputs[0].shape[-1])

    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        shape_pass(model, (height, width))
    finally:
        for handle in handles:
            handle.remove()
    return [sizes[layer] for layer in layers]


def shape_pass(model: nn.Module, size: tuple[int, int]) -> None:
    """Run a network on the meta device, on one image without data, so that its hooks see shapes.

    Nothing is computed; the network's own parameters, statistics and modes do not change.

    Args:
        model: a network of timm or torchvision, on any device.
        size: height and width of the image in pixels.
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
