"""Networks: surgery on ResNets, the networks of the paper, their weights and their multiply-adds."""

from botnet.models.adopt import adopt_attention
from botnet.models.hub import from_pretrained, push_to_hub, save_pretrained
from botnet.models.surgery import bottleneck_transformer, insert_bot, insert_non_local
from botnet.models.weights import fresh_parameters, load_resnet, load_weights, read_weights, save_weights
from botnet.models.zoo import NETWORKS, BoTNet

__all__ = [
    "NETWORKS",
    "BoTNet",
    "adopt_attention",
    "bottleneck_transformer",
    "fresh_parameters",
    "from_pretrained",
    "insert_bot",
    "insert_non_local",
    "load_resnet",
    "load_weights",
    "push_to_hub",
    "read_weights",
    "save_pretrained",
    "save_weights",
]
