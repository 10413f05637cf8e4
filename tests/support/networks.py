"""Helpers for tests of networks."""

import torch
from torch import nn


def randomize_norms(model: nn.Module) -> nn.Module:
    """Give every batch norm the weights and statistics that a trained network could have."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.1)
    return model
