"""What the attention explorer must show, from the layer itself."""

import torch
from torch import Tensor

from botnet.layers import MHSA2d


@torch.no_grad()
def attention_by_terms(layer: MHSA2d, x: Tensor, mode: str) -> Tensor:
    """Weights (heads, N, N) of a map (1, C, H, W), by the layer or by one of Table 4 with a single term."""
    if mode != "both":
        parts = {"position": None} if mode == "content" else {"position": layer.position, "content": False}
        single = MHSA2d(layer.dim, layer.heads, layer.stride, feat_size=layer.feat_size, **parts).to(x)
        single.load_state_dict(layer.state_dict(), strict=mode != "content")
        layer = single
    return layer.attention_weights(x, torch.arange(x[0, 0].numel()))[0]
