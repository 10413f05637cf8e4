"""What autograd keeps of a forward pass."""

import torch
from torch import Tensor, nn


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Bytes that the graph of a network's output holds, besides the images, the weights and the buffers."""
    kept: dict[int, Tensor] = {}
    known = {
        tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers(), images)
    }

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(images)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
