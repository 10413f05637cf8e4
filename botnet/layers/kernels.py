"""Exact attention with factored position logits, computed in several ways behind one function.

A query adds ``position[row] + position[H + column]`` to the logit of the key at (row, column).
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

Implementation = Literal["reference", "tiled", "sdpa", "flex"]
Size = Sequence[int]

# Queries of one head whose logits exist at one time: enough to keep the matrix products efficient. Forward,
# with less beside them in memory, twice as many.
TILE = 512

# Tokens up to which the whole logits are cheaper than tiles (benchmarks/attention.py).
SMALL = 256

# With gradients also: logits of all images and heads that are cheaper to keep than to compute twice.
FEW, FEW_LOW_PRECISION = 2_000_000, 12_000_000


def relative_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    position: Tensor | None,
    size: tuple[int, int],
    scale: float,
    pool: int = 1,
    implementation: Implementation | None = None,
) -> Tensor:
    """softmax(scale q k^T + position) v over a map, then an average pool (Figure 4, Section 3).

    Args:
        q: queries (B, heads, N, d), N = H * W in row-major order.
        k: keys (B, heads, N, d), or None for logits of the position alone.
        v: values (B, heads, N, d).
        position: (B, heads, N, H + W), what a query adds to every key of a row, then of a column; or None.
        size: (H, W) of the map.
        scale: factor on q k^T; the position logits come already scaled.
        pool: 1, or 2 for 2x2 windows; one over the edge of an odd map averages the cells it has.
        implementation: force one of `IMPLEMENTATIONS`; default the one that measures best here.

    Returns:
        (B, heads, M, d), M = ceil(H / pool) * ceil(W / pool).

    Raises:
        ValueError: without keys and position both, when the tensors do not fit the map, on another pool.
        RuntimeError: ``implementation="tiled"`` in forward mode, which it has no derivative for.
    """
    height, width = size
    if pool not in (1, 2):
        raise ValueError(f"pool={pool}: expected 1 or 2")
    if k is None and position is None:
        raise ValueError("no logits: give keys, position logits or both")
    if v.shape[2] != height * width:
        raise ValueError(f"{v.shape[2]} values do not fit a map of {height} x {width}")
    if position is not None and position.shape[-1] != height + width:
        raise ValueError(f"position logits are {position.shape[-1]} wide, expected {height} + {width}")
    gradients = torch.is_grad_enabled() and v.requires_grad
    name = implementation or choose(v.shape, v.dtype, v.device, gradients)
    # PyTorch drops the tangents at a custom operator without an error.
    if name == "tiled" and _forward_mode():
        raise RuntimeError(
            "tiled attention has no forward-mode derivative: force implementation='reference' for one"
        )
    return IMPLEMENTATIONS[name](q, k, v, position, size, scale, pool)


def attention_weights(
    q: Tensor, k: Tensor | None, position: Tensor | None, size: Size, scale: float
) -> Tensor:
    """softmax(scale q k^T + position) of any queries (B, heads, M, d), with arguments as above.

    Returns:
        (B, heads, M, N); rows sum to 1.
    """
    logits: Tensor | float = 0.0
    if position is not None:
        by_row, by_column = position.split(size, -1)
        logits = (by_row.unsqueeze(-1) + by_column.unsqueeze(-2)).flatten(-2)
    if k is not None:
        logits = (q * scale) @ k.transpose(-1, -2) + logits
    assert isinstance(logits, Tensor)
    return logits.softmax(-1)


def choose(shape: Size, dtype: torch.dtype, device: torch.device, gradients: bool) -> Implementation:
    """The implementation that measures best (benchmarks/attention.py).

    Args:
        shape: (B, heads, N, d) of the values.
        dtype: of queries, keys and values.
        device: theirs. On a GPU nothing was measured: the stock kernel is the safe choice there.
        gradients: whether a backward pass is to come.
    """
    # Neither tiles nor the fused kernels have a forward-mode derivative.
    if _forward_mode():
        return "reference"
    # Exported graphs are run elsewhere and at other sizes: stock operators, whatever this machine measures.
    if torch.onnx.is_in_onnx_export():
        return "reference"
    if torch.compiler.is_exporting() or device.type != "cpu":
        return "sdpa"
    batch, heads, tokens, _ = shape
    full_precision = dtype in (torch.float32, torch.float64)
    few = FEW if full_precision else FEW_LOW_PRECISION
    if tokens <= SMALL or (gradients and batch * heads * tokens**2 <= few):
        return "reference"
    # The stock kernel converts tiles in its caches; ours would write each conversion out.
    return "tiled" if full_precision else "sdpa"


def _forward_mode() -> bool:
    """Whether derivatives are computed in forward mode, as by `torch.func.jvp`."""
    # Not by the tensors' tangents: other transforms, such as vmap inside jvp, hide them.
    return forward_ad._current_level >= 0


def _windows(size: Size, pool: int, device: torch.device) -> Tensor:
    """Cells (pool^2, M) of each pooling window.

    A 2x2 window over the edge of an odd map has its cells twice instead, which leaves their average as it is.
    """
    y, x = (
        torch.arange(side + pool - 1, device=device).clamp(max=side - 1).unfold(0, pool, pool)
        for side in size
    )
    return (y[:, None, :, None] * size[1] + x[None, :, None, :]).flatten(0, 1).flatten(1).t()


def _average(out: Tensor, size: Size, pool: int) -> Tensor:
    """Average pool of (B, heads, N, d)."""
    return out if pool == 1 else out[:, :, _windows(size, pool, out.device)].mean(2)


def _reference(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    """The plain formula; stores the logits of all heads, N x N each."""
    return _average(attention_weights(q, k, position, size, scale) @ v, size, pool)


def _sdpa(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    """A stock kernel at head width d + H + W: logits = [q, position] [k, onehot(row), onehot(column)]^T."""
    queries, keys = [], []
    if k is not None:
        queries.append(q * scale)
        keys.append(k)
    if position is not None:
        height, width = size
        rows = torch.eye(height, dtype=q.dtype, device=q.device).repeat_interleave(width, 0)
        columns = torch.eye(width, dtype=q.dtype, device=q.device).repeat(height, 1)
        queries.append(position)
        keys.append(torch.cat([rows, columns], -1).expand(*v.shape[:2], -1, -1))
    query, key = torch.cat(queries, -1), torch.cat(keys, -1)
    # Linear-memory kernels ask for one width of queries, keys and values.
    full = max(key.shape[-1], v.shape[-1])
    query, key, value = (
        torch.cat([x, x.new_zeros(*x.shape[:-1], full - x.shape[-1])], -1) for x in (query, key, v)
    )
    out = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return _average(out[..., : v.shape[-1]], size, pool)


def _flex(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    """FlexAttention with the position logits in its score_mod: under torch.compile on a GPU, one kernel."""
    from torch.nn.attention.flex_attention import flex_attention  # takes a second

    height, width = size

    def score_mod(score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert position is not None
        by_row = position[image, head, query, key // width]
        return score + by_row + position[image, head, query, height + key % width]

    keys = torch.zeros_like(v) if k is None else k
    out = flex_attention(q, keys, v, score_mod=None if position is None else score_mod, scale=scale)
    assert isinstance(out, Tensor)
    return _average(out, size, pool)


@torch.library.custom_op("botnet::relative_attention", mutates_args=())
def _tiled_forward(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    out = _empty_output(q, size, pool)
    windows = _windows(size, pool, q.device)
    group, step = len(windows), max(1, 2 * TILE // len(windows))
    buffer = q.new_empty(windows[:, :step].numel(), v.shape[2])
    with torch.autocast(q.device.type, enabled=False):
        for head in product(range(q.shape[0]), range(q.shape[1])):
            keys = None if k is None else k[head].contiguous()
            values = v[head] / group
            for start in range(0, windows.shape[1], step):
                tile = windows[:, start : start + step].flatten()
                bias = None if position is None else position[head].index_select(0, tile)
                weights = _weights(q[head].index_select(0, tile), keys, bias, size, scale, buffer)
                parts = weights.chunk(group)
                pooled = _pool(parts, out=parts[0])  # nobody needs the weights any more
                out[head][start : start + step] = pooled @ values
    return out


@torch.library.custom_op("botnet::relative_attention_backward", mutates_args=())
def _tiled_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    position: Tensor | None,
    size: Size,
    scale: float,
    pool: int,
) -> list[Tensor]:
    """Gradients of v, then of q and k where there are keys, then of the position where there is one."""
    grads = _empty_gradients(q, k, v, position)
    windows = _windows(size, pool, q.device)
    group, step = len(windows), max(1, TILE // len(windows))
    buffer = q.new_empty(windows[:, :step].numel(), v.shape[2])
    grad_buffer, pool_buffer = q.new_empty(2, windows[0, :step].numel(), v.shape[2])
    with torch.autocast(q.device.type, enabled=False):
        for head in product(range(q.shape[0]), range(q.shape[1])):
            keys = None if k is None else k[head].contiguous()
            values, upstream = v[head].contiguous(), grad[head] / group
            # Sums over the tiles in a low precision would lose what each product keeps.
            exact = torch.promote_types(q.dtype, torch.float32)
            sums = [torch.zeros(x.shape[2:], dtype=exact, device=x.device) for x in grads]
            # The products that sum over queries, those of values and keys, are faster transposed.
            sums[::2] = [x.view(x.shape[::-1]).t() for x in sums[::2]]
            for start in range(0, windows.shape[1], step):
                tile = windows[:, start : start + step].flatten()
                queries = q[head].index_select(0, tile)
                bias = None if position is None else position[head].index_select(0, tile)
                weights = _weights(queries, keys, bias, size, scale, buffer)
                rows = upstream[start : start + step]
                parts = weights.chunk(group)
                _add_product(sums[0].t(), rows.t(), _pool(parts, out=pool_buffer[: len(rows)]))
                # The queries of a window share their output, hence the gradient of their weights.
                grad_weights = torch.mm(rows, values.t(), out=grad_buffer[: len(rows)])
                for member in parts:
                    torch.ops.aten._softmax_backward_data.out(
                        grad_weights, member, -1, member.dtype, grad_input=member
                    )
                if keys is not None:
                    sums[1].index_add_(0, tile, (weights @ keys).to(exact), alpha=scale)
                    _add_product(sums[2].t(), queries.t(), weights, scale)
                if bias is not None:
                    grid = weights.unflatten(-1, size)
                    sums[-1].index_add_(0, tile, torch.cat([grid.sum(-1), grid.sum(-2)], -1).to(exact))
            for whole, part in zip(grads, sums, strict=True):
                whole[head] = part
    return grads


def _weights(
    queries: Tensor, keys: Tensor | None, bias: Tensor | None, size: Size, scale: float, buffer: Tensor
) -> Tensor:
    """Attention weights (n, N) of queries (n, d) of one head, written into the buffer."""
    logits = buffer[: len(queries)]
    if bias is not None:
        by_row, by_column = bias.split(size, -1)
        torch.add(by_row.unsqueeze(-1), by_column.unsqueeze(-2), out=logits.unflatten(-1, size))
    if keys is not None:
        logits.addmm_(queries, keys.t(), beta=0 if bias is None else 1, alpha=scale)
    # In place: the kernel reads a row before it writes it.
    return torch.softmax(logits, -1, out=logits)


def _pool(parts: Sequence[Tensor], out: Tensor) -> Tensor:
    """Sum over the queries of each window: the pool is linear, so it may act before the values do."""
    if len(parts) == 1:
        return parts[0]
    torch.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        out += part
    return out


def _add_product(total: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0) -> None:
    """total += alpha * a @ b, in the precision of the total."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, alpha=alpha)
    else:
        total.add_(a @ b, alpha=alpha)


def _empty_output(q: Tensor, size: Size, pool: int) -> Tensor:
    """(B, heads, M, d), laid out so that the map it becomes is channels-last."""
    batch, heads, _, d = q.shape
    rows, columns = ((side + pool - 1) // pool for side in size)
    return q.new_empty(batch, rows * columns, heads, d).transpose(1, 2)


def _empty_gradients(q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None) -> list[Tensor]:
    inputs = [v] + ([] if k is None else [q, k]) + ([] if position is None else [position])
    return [torch.empty_like(x) for x in inputs]


@_tiled_forward.register_fake
def _(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    return _empty_output(q, size, pool)


@_tiled_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    position: Tensor | None,
    size: Size,
    scale: float,
    pool: int,
) -> list[Tensor]:
    return _empty_gradients(q, k, v, position)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.size, ctx.scale, ctx.pool = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, position = ctx.saved_tensors
    grads = iter(_tiled_backward(grad, q, k, v, position, ctx.size, ctx.scale, ctx.pool))
    grad_v = next(grads)
    grad_q, grad_k = (None, None) if k is None else (next(grads), next(grads))
    return grad_q, grad_k, grad_v, None if position is None else next(grads), None, None, None


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError("tiled attention has no second derivative: force implementation='reference' for one")


_tiled_forward.register_autograd(_differentiate, setup_context=_save)
_tiled_backward.register_autograd(_refuse)

IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": _reference,
    "tiled": _tiled_forward,
    "sdpa": _sdpa,
    "flex": _flex,
}
