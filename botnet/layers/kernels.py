"""Exact attention with factored position logits, computed in several ways behind one function."""

from torch import Tensor


def relative_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    height_logits: Tensor | None,
    width_logits: Tensor | None,
    scale: float,
) -> Tensor:
    """Mean over the group axis of softmax(scale q k^T + position) v (Figure 4).

    Args:
        q: queries (B, heads, G, M, d); G queries share one output.
        k: keys (B, heads, N, d) with N = H * W, or None for logits of the position alone.
        v: values (B, heads, N, d).
        height_logits: (B, heads, G, M, H), added to every key of a row; None with `width_logits`.
        width_logits: (B, heads, G, M, W), added to every key of a column.
        scale: factor on q k^T.

    Returns:
        (B, heads, M, d).
    """
    position = None
    if height_logits is not None and width_logits is not None:
        position = (height_logits.unsqueeze(-1) + width_logits.unsqueeze(-2)).flatten(-2)
    if k is None:
        assert position is not None
        logits = position
    else:
        logits = scale * q @ k.unsqueeze(2).transpose(-1, -2)
        if position is not None:
            logits = logits + position
    return logits.softmax(-1).mean(2) @ v
