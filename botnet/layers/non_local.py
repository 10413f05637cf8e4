"""The Non-Local block, the baseline of Section 4.6."""

import torch.nn.functional as F
from torch import Tensor, nn


class NonLocal2d(nn.Module):
    """Residual all-to-all attention with one head and no positions (Wang et al. 2018; Table 7).

    The embedded Gaussian form: logits are products of two projections, unscaled. The weight of the last
    normalisation starts at zero, so that a newly inserted block is the identity.

    Args:
        dim: channels C of the map.
        reduction: ratio of C to the width of the embeddings. Default 2, as in Section 2.
        project_values: whether the values are a projection of the map (Wang et al.) or the map itself, as
            Figure 4 draws it after Xie et al. 2019. Default True.

    Raises:
        ValueError: `reduction` does not divide `dim`.
    """

    def __init__(self, dim: int, reduction: int = 2, project_values: bool = True) -> None:
        super().__init__()
        if reduction < 1 or dim % reduction:
            raise ValueError(f"a reduction of {reduction} does not divide the {dim} channels")
        width = dim // reduction
        self.query = nn.Conv2d(dim, width, 1)
        self.key = nn.Conv2d(dim, width, 1)
        self.value = nn.Conv2d(dim, width, 1) if project_values else nn.Identity()
        self.proj = nn.Conv2d(width if project_values else dim, dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections from N(0, 0.01); the weight of the normalisation is zero."""
        for layer in (self.query, self.key, self.value, self.proj):
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over a map (B, C, H, W); returns a map of the same shape."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        # B C H W -> B N C: one head over N = H*W tokens
        y = F.scaled_dot_product_attention(
            q.flatten(2).transpose(1, 2),
            k.flatten(2).transpose(1, 2),
            v.flatten(2).transpose(1, 2),
            scale=1.0,
        )
        return x + self.norm(self.proj(y.transpose(1, 2).reshape(v.shape)))
