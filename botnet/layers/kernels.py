"""Exact attention with factored position logits: one function, several implementations.

For each query, ``position[row] + position[H + column]`` is added to the logit of the key at (row, column).
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

Implementation = Literal["reference", "tiled", "sdpa", "flex", "triton"]
Size = Sequence[int]

# Queries of one head whose logits are in memory at the same time: enough for efficient matrix products. The
# forward pass, which stores less beside them, takes twice as many.
TILE = 512

# Tokens up to which computing all logits at once is faster than tiles (benchmarks/attention.py).
SMALL = 256

# With gradients: number of logits, over all images and heads, up to which storing them is faster than
# computing them again in the backward pass.
FEW, FEW_LOW_PRECISION = 2_000_000, 12_000_000

# By compute capability of an NVIDIA GPU: from how many cells on the Triton kernels are at least 1.15 times as
# fast as the next, with gradients and without, in low precision with heads 128 wide. Each entry is read off
# the table that `make proof-gpu` wrote on such a GPU: docs/gpu/.
TRITON_FROM: dict[tuple[int, int], tuple[float, float]] = {}
TRITON_WIDTH = 128
HAS_TRITON = find_spec("triton") is not None


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
        position: (B, heads, N, H + W), logits that a query adds to all keys of each row, then of each column;
            or None.
        size: (H, W) of the map.
        scale: factor on q k^T; the position logits are already scaled.
        pool: 1, or 2 for 2x2 windows; a window over the edge of an odd map averages the cells inside the map.
        implementation: force one of `IMPLEMENTATIONS`; default the fastest measured, see `choose`.

    Returns:
        (B, heads, M, d), M = ceil(H / pool) * ceil(W / pool).

    Raises:
        ValueError: neither keys nor position logits, tensors that do not fit the map, or another pool; for
            "triton", a head width that is no multiple of 16 or above 256, or float64.
        RuntimeError: "tiled" or "triton" in forward-mode differentiation, which they do not support; "triton"
            without Triton or a GPU.
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
    # PyTorch drops tangents at a custom operator without an error.
    if name in ("tiled", "triton") and _forward_mode():
        raise RuntimeError(
            f"{name} attention has no forward-mode derivative: force implementation='reference' for one"
        )
    return IMPLEMENTATIONS[name](q, k, v, position, size, scale, pool)


def attention_weights(
    q: Tensor, k: Tensor | None, position: Tensor | None, size: Size, scale: float
) -> Tensor:
    """softmax(scale q k^T + position), in full.

    Args:
        q: any number of queries (B, heads, M, d).
        k: keys (B, heads, N, d), or None.
        position: logits (B, heads, M, H + W) of these queries, or None.
        size: (H, W) of the map.
        scale: factor on q k^T.

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
    """The implementation that was fastest in benchmarks/attention.py, or on a GPU in `make proof-gpu`.

    Args:
        shape: (B, heads, N, d) of the values.
        dtype: of queries, keys and values.
        device: of queries, keys and values. GPUs use PyTorch's fused kernel but for what `TRITON_FROM` lists.
        gradients: whether a backward pass will follow.
    """
    # The other kernels have no forward-mode derivative.
    if _forward_mode():
        return "reference"
    # Exported graphs run on other machines and at other sizes: standard operators only.
    if torch.onnx.is_in_onnx_export():
        return "reference"
    if torch.compiler.is_exporting():
        return "sdpa"
    # The other transforms of torch.func, and torch.jit.trace, fail at operators of our own.
    own = not (torch._C._are_functorch_transforms_active() or torch.jit.is_tracing())
    if device.type != "cpu":
        return "triton" if own and _triton_pays(shape, dtype, device, gradients) else "sdpa"
    batch, heads, tokens, _ = shape
    full_precision = dtype in (torch.float32, torch.float64)
    few = FEW if full_precision else FEW_LOW_PRECISION
    if tokens <= SMALL or (gradients and batch * heads * tokens**2 <= few):
        return "reference"
    # PyTorch's kernel converts low precision block by block in the cache; ours would write it to memory.
    return "tiled" if own and full_precision else "sdpa"


def _triton_pays(shape: Size, dtype: torch.dtype, device: torch.device, gradients: bool) -> bool:
    """Whether the Triton kernels were measured to be faster than the others on such a GPU."""
    # AMD's GPUs are "cuda", too, and number their capabilities otherwise.
    if not HAS_TRITON or device.type != "cuda" or torch.version.hip is not None:
        return False
    limits = TRITON_FROM.get(torch.cuda.get_device_capability(device))
    if limits is None or dtype not in (torch.float16, torch.bfloat16) or shape[-1] != TRITON_WIDTH:
        return False
    return shape[2] >= limits[0 if gradients else 1]


def _forward_mode() -> bool:
    """Whether derivatives are computed in forward mode, as by `torch.func.jvp`."""
    # Checking the tensors for tangents is not enough: other transforms, such as vmap inside jvp, hide them.
    return forward_ad._current_level >= 0


def _windows(size: Size, pool: int, device: torch.device) -> Tensor:
    """Cells (pool^2, M) of each pooling window.

    A 2x2 window over the edge of an odd map lists its cells twice, which does not change their average.
    """
    y, x = (
        torch.arange(side + pool - 1, device=device).clamp(max=side - 1).unfold(0, pool, pool)
        for side in size
    )
    return (y[:, None, :, None] * size[1] + x[None, :, None, :]).flatten(0, 1).flatten(1).t()


def _average(out: Tensor, size: Size, pool: int) -> Tensor:
    """Average pool of (B, heads, N, d)."""
    if pool == 1:
        return out
    # An exported graph holds for even and odd sides.
    if torch.compiler.is_exporting() or size[0] % pool or size[1] % pool:
        return out[:, :, _windows(size, pool, out.device)].mean(2)
    return out.unflatten(2, (size[0] // pool, pool, size[1] // pool, pool)).mean((3, 5)).flatten(2, 3)


def _reference(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    """The formula as written; stores the N x N logits of every head."""
    return _average(attention_weights(q, k, position, size, scale) @ v, size, pool)


def _sdpa(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    """PyTorch's fused kernel at head width d + H + W, or the next that has a kernel.

    logits = [scale q, position] [k, onehot(row), onehot(column)]^T: the one-hot vectors of a key's row and
    column pick its two position logits.
    """
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
    # The kernels with linear memory require queries, keys and values of equal width.
    full = _kernel_width(max(sum(x.shape[-1] for x in keys), v.shape[-1]), v.dtype, v.device)
    query, key, value = (_joined(parts, full) for parts in (queries, keys, [v]))
    out = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return _average(out[..., : v.shape[-1]], size, pool)


def _kernel_width(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """The smallest head width, at least the given one, for which a GPU has a fused kernel in its best form.

    They need rows of whole 16 bytes: with others, PyTorch computes the formula as written. In low precision,
    the one for up to 256 is taken from 193 on; at 256 itself more GPUs have it, cuDNN's too.
    """
    # An exported graph holds for every width; the kernel for CPUs takes any.
    if device.type == "cpu" or torch.compiler.is_exporting():
        return width
    if dtype in (torch.float16, torch.bfloat16) and 192 < width <= 256:
        return 256
    return (width + 7) // 8 * 8


def _joined(parts: list[Tensor], width: int) -> Tensor:
    """Tensors (B, heads, N, ...) beside each other, zeros up to a width; one that fills it is not copied."""
    rest = width - sum(x.shape[-1] for x in parts)
    if rest:
        parts = [*parts, parts[0].new_zeros(*parts[0].shape[:-1], rest)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _flex(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    """FlexAttention, position logits added in its score_mod: one kernel under torch.compile on a GPU."""
    from torch.nn.attention.flex_attention import flex_attention  # slow to import

    score_mod = None
    if position is not None:
        width = size[1]
        # Two tensors: a compiled backward pass refuses two look-ups in one.
        by_row, by_column = position.split(size, -1)

        def score_mod(score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (
                score + by_row[image, head, query, key // width] + by_column[image, head, query, key % width]
            )

    keys = torch.zeros_like(v) if k is None else k
    out = flex_attention(q, keys, v, score_mod=score_mod, scale=scale)
    assert isinstance(out, Tensor)
    return _average(out, size, pool)


def _triton(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    """Fused Triton kernels, for GPUs: they store no logits and add the position logits in registers."""
    try:
        from botnet.layers.triton_kernel import attend
    except ImportError as error:
        raise RuntimeError(
            "implementation='triton' needs the package triton, which PyTorch's builds for CUDA bring: "
            "install such a build, or leave the choice to the layer"
        ) from error
    return attend(q, k, v, position, size, scale, pool)


@torch.library.custom_op("botnet::relative_attention", mutates_args=())
def _tiled_forward(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    out = empty_output(q, size, pool)
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
                pooled = _pool(parts, out=parts[0])  # the weights are not needed afterwards
                out[head][start : start + step] = pooled @ values
    return out


class Gradients(NamedTuple):
    """Gradients of the inputs; None where there is none. Without keys, queries have none either."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor
    position: Tensor | None

    def present(self) -> list[Tensor]:
        """Those that are not None, in this order: the form that custom operators can return."""
        return [x for x in self if x is not None]

    @classmethod
    def among(cls, present: list[Tensor], k: Tensor | None, position: Tensor | None) -> "Gradients":
        """The reverse of `present`, for these inputs."""
        rest = iter(present)
        return cls(
            q=None if k is None else next(rest),
            k=None if k is None else next(rest),
            v=next(rest),
            position=None if position is None else next(rest),
        )


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
    """The gradients that `Gradients` has for these inputs."""
    grads = _empty_gradients(q, k, v, position)
    windows = _windows(size, pool, q.device)
    group, step = len(windows), max(1, TILE // len(windows))
    buffer = q.new_empty(windows[:, :step].numel(), v.shape[2])
    grad_buffer, pool_buffer = q.new_empty(2, windows[0, :step].numel(), v.shape[2])
    with torch.autocast(q.device.type, enabled=False):
        for head in product(range(q.shape[0]), range(q.shape[1])):
            keys = None if k is None else k[head].contiguous()
            values, upstream = v[head].contiguous(), grad[head] / group
            sums = _zero_sums(grads)
            for start in range(0, windows.shape[1], step):
                tile = windows[:, start : start + step].flatten()
                rows = upstream[start : start + step]
                queries = q[head].index_select(0, tile)
                bias = None if position is None else position[head].index_select(0, tile)
                weights = _weights(queries, keys, bias, size, scale, buffer)
                parts = weights.chunk(group)
                _add_product(sums.v.t(), rows.t(), _pool(parts, out=pool_buffer[: len(rows)]))
                # The queries of a window share their output, hence the gradient of their weights.
                grad_weights = torch.mm(rows, values.t(), out=grad_buffer[: len(rows)])
                for part in parts:
                    _softmax_backward(grad_weights, part)
                grad_logits = weights  # overwritten in place
                _add_logit_gradients(sums, grad_logits, tile, queries, keys, size, scale)
            for destination, total in zip(grads.present(), sums.present(), strict=True):
                destination[head] = total
    return grads.present()


def _zero_sums(grads: Gradients) -> Gradients:
    """Zeros for one head's gradients, to be summed over its tiles."""

    def zeros(x: Tensor, transposed: bool = False) -> Tensor:
        # In a lower precision, a sum over many tiles would lose what each of them adds.
        dtype = torch.promote_types(x.dtype, torch.float32)
        tokens, width = x.shape[2:]
        if transposed:
            return torch.zeros(width, tokens, dtype=dtype, device=x.device).t()
        return torch.zeros(tokens, width, dtype=dtype, device=x.device)

    # The products that sum over queries, those of keys and values, are faster transposed.
    return Gradients(
        q=None if grads.q is None else zeros(grads.q),
        k=None if grads.k is None else zeros(grads.k, transposed=True),
        v=zeros(grads.v, transposed=True),
        position=None if grads.position is None else zeros(grads.position),
    )


def _softmax_backward(grad_weights: Tensor, weights: Tensor) -> None:
    """Overwrite attention weights by the gradients of their logits."""
    torch.ops.aten._softmax_backward_data.out(grad_weights, weights, -1, weights.dtype, grad_input=weights)


def _add_logit_gradients(
    sums: Gradients,
    grad_logits: Tensor,
    tile: Tensor,
    queries: Tensor,
    keys: Tensor | None,
    size: Size,
    scale: float,
) -> None:
    """Add what the logits (n, N) of a tile of n queries contribute to the gradients of q, k and position."""
    if sums.q is not None and sums.k is not None and keys is not None:
        sums.q.index_add_(0, tile, (grad_logits @ keys).to(sums.q.dtype), alpha=scale)
        _add_product(sums.k.t(), queries.t(), grad_logits, scale)
    if sums.position is not None:
        grid = grad_logits.unflatten(-1, size)
        by_row, by_column = grid.sum(-1), grid.sum(-2)
        sums.position.index_add_(0, tile, torch.cat([by_row, by_column], -1).to(sums.position.dtype))


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
    """Sum over the queries of each window: the pool is linear, so weights can be pooled before the values."""
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


def empty_output(q: Tensor, size: Size, pool: int) -> Tensor:
    """(B, heads, M, d), in a memory layout that makes the output map channels-last."""
    batch, heads, _, d = q.shape
    rows, columns = ((side + pool - 1) // pool for side in size)
    return q.new_empty(batch, rows * columns, heads, d).transpose(1, 2)


def _empty_gradients(q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None) -> Gradients:
    return Gradients(
        q=None if k is None else torch.empty_like(q),
        k=None if k is None else torch.empty_like(k),
        v=torch.empty_like(v),
        position=None if position is None else torch.empty_like(position),
    )


@_tiled_forward.register_fake
def _(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    return empty_output(q, size, pool)


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
    return _empty_gradients(q, k, v, position).present()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.size, ctx.scale, ctx.pool = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, position = ctx.saved_tensors
    present = _tiled_backward(grad, q, k, v, position, ctx.size, ctx.scale, ctx.pool)
    return *Gradients.among(present, k, position), None, None, None


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError("tiled attention has no second derivative: force implementation='reference' for one")


_tiled_forward.register_autograd(_differentiate, setup_context=_save)
_tiled_backward.register_autograd(_refuse)

IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": _reference,
    "tiled": _tiled_forward,
    "sdpa": _sdpa,
    "flex": _flex,
    "triton": _triton,
}
