"""Networks: surgery on any ResNet, the zoo of the paper, its weights and its counts."""

from botnet.models.surgery import bottleneck_transformer, insert_bot, insert_non_local
from botnet.models.zoo import NETWORKS, BoTNet

__all__ = ["NETWORKS", "BoTNet", "bottleneck_transformer", "insert_bot", "insert_non_local"]
