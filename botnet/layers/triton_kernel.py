"""Attention with row and column logits as fused Triton kernels: exact, without N x N memory or atomics.

A tile of keys is a patch of ROWS x COLUMNS cells of the map, so that its position logits are ROWS + COLUMNS
numbers per query. The softmax is computed online, in powers of two. The backward pass computes the logits
again, once per tile of queries (gradients of queries and position) and once per tile of keys (gradients of
keys and values).

Tensors (B, heads, N, d) are laid out in memory as (B, N, heads, d), as the layer has them.
"""

# Triton's language looks like Python but has other types.
# mypy: disable-error-code="no-untyped-def,attr-defined,assignment"
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from botnet.layers.kernels import Gradients, Size, empty_output

LOG2_E = tl.constexpr(1.4426950408889634)
# The logit of a cell outside of the map: finite, so that differences are numbers.
MASKED = tl.constexpr(-1e30)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 256  # of one head
INTERPRETED = triton.knobs.runtime.interpret  # on a CPU; Triton decides it on import


@triton.jit
def _heads(H, W, heads, image_stride, head_stride, D: tl.constexpr, GROUP: tl.constexpr):
    """This program's head, its start in inputs, in dense tensors and in outputs; the number of outputs."""
    head = tl.program_id(1).to(tl.int64)
    image = head // heads
    within = head % heads
    outputs = H * W
    if GROUP == 4:
        outputs = ((H + 1) // 2) * ((W + 1) // 2)
    start = image * image_stride + within * head_stride
    return head, start, (image * H * W * heads + within) * D, (image * outputs * heads + within) * D, outputs


@triton.jit
def _load(X, start, rows, stride, valid, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows (n, D) of X, zeros where they are not valid and from D to WIDTH; a placeholder where X is None."""
    if X is None:
        out = 0.0
    else:
        columns = tl.arange(0, WIDTH)
        keep = valid[:, None]
        if D != WIDTH:
            keep = keep & (columns < D)[None, :]
        out = tl.load(X + start + rows[:, None] * stride + columns[None, :], mask=keep, other=0.0)
    return out


@triton.jit
def _store(X, start, rows, stride, valid, values, D: tl.constexpr, WIDTH: tl.constexpr):
    """The reverse of `_load`, in the precision of X."""
    if X is not None:
        columns = tl.arange(0, WIDTH)
        keep = valid[:, None]
        if D != WIDTH:
            keep = keep & (columns < D)[None, :]
        places = X + start + rows[:, None] * stride + columns[None, :]
        tl.store(places, values.to(X.dtype.element_ty), mask=keep)


@triton.jit
def _queries(tile, H, W, QUERIES: tl.constexpr, GROUP: tl.constexpr):
    """Cells of a tile of queries and which are inside the map; the GROUP of a window are neighbours."""
    index = tile * QUERIES + tl.arange(0, QUERIES)
    if GROUP == 1:
        cells = index
        valid = index < H * W
    else:
        windows = index // 4
        across = (W + 1) // 2
        y = 2 * (windows // across) + index % 4 // 2
        x = 2 * (windows % across) + index % 2
        cells = y * W + x
        valid = (y < H) & (x < W)
    return cells, valid


@triton.jit
def _keys(top, left, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Cells of the patch of keys at (top, left) and which are inside the map."""
    index = tl.arange(0, ROWS * COLUMNS)
    y = top + index // COLUMNS
    x = left + index % COLUMNS
    return y * W + x, (y < H) & (x < W)


@triton.jit
def _scores(
    q, k, POSITION, cells, valid, top, left, H, W, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr, CONTENT: tl.constexpr,
):  # fmt: skip
    """Logits (queries, keys) in powers of two, MASKED for keys outside of the map."""
    QUERIES: tl.constexpr = cells.shape[0]
    scores = tl.zeros((QUERIES, ROWS * COLUMNS), tl.float32)
    if CONTENT:
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
    if POSITION is not None:
        row = top + tl.arange(0, ROWS)
        column = left + tl.arange(0, COLUMNS)
        start = POSITION + cells[:, None] * (H + W)
        by_row = tl.load(start + row[None, :], mask=valid[:, None] & (row < H)[None, :], other=0.0)
        by_column = tl.load(
            start + H + column[None, :], mask=valid[:, None] & (column < W)[None, :], other=0.0
        )
        by_row = by_row.to(tl.float32) * LOG2_E
        by_column = by_column.to(tl.float32) * LOG2_E
        grid = by_row[:, :, None] + by_column[:, None, :]
        scores += tl.reshape(grid, (QUERIES, ROWS * COLUMNS))
    _, inside = _keys(top, left, H, W, ROWS, COLUMNS)
    return tl.where(inside[None, :], scores, MASKED)


@triton.jit
def _outputs(tile, QUERIES: tl.constexpr, GROUP: tl.constexpr, SHARED: tl.constexpr):
    """The output that each query of a tile adds to, or each SHARED queries of one window."""
    return (tile * QUERIES + tl.arange(0, QUERIES // SHARED) * SHARED) // GROUP


@triton.jit
def _spread(x, GROUP: tl.constexpr):
    """Rows (windows, n) repeated for each query of a window: (GROUP * windows, n)."""
    if GROUP != 1:
        wide = tl.broadcast_to(x[:, None, :], (x.shape[0], GROUP, x.shape[1]))
        x = tl.reshape(wide, (x.shape[0] * GROUP, x.shape[1]))
    return x


@triton.jit
def _gather(x, GROUP: tl.constexpr):
    """The sum over the queries of each window."""
    if GROUP != 1:
        x = tl.sum(tl.reshape(x, (x.shape[0] // GROUP, GROUP, x.shape[1])), 1)
    return x


@triton.jit(do_not_specialize=["H", "W", "heads"])
def _forward_kernel(
    Q, K, V, POSITION, OUT, FULL, NORM, image_stride, head_stride, cell_stride, H, W, heads, scale,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head. NORM is the base-2 logarithm of the softmax's denominator."""
    head, start, dense, first, outputs = _heads(H, W, heads, image_stride, head_stride, D, GROUP)
    cells, valid = _queries(tl.program_id(0), H, W, QUERIES, GROUP)
    q = _load(Q, start, cells, cell_stride, valid, D, WIDTH)
    if POSITION is not None:
        POSITION += head * H * W * (H + W)
    maximum = tl.full((QUERIES,), MASKED, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    out = tl.zeros((QUERIES, WIDTH), tl.float32)
    down = tl.cdiv(H, ROWS)
    for patch in range(down * tl.cdiv(W, COLUMNS)):
        top = patch % down * ROWS
        left = patch // down * COLUMNS
        keys, inside = _keys(top, left, H, W, ROWS, COLUMNS)
        k = _load(K, start, keys, cell_stride, inside, D, WIDTH)
        scores = _scores(
            q, k, POSITION, cells, valid, top, left, H, W, scale, ROWS, COLUMNS, PRECISION, K is not None
        )
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp2(scores - new_maximum[:, None])
        shrink = tl.exp2(maximum - new_maximum)
        total = total * shrink + tl.sum(weights, 1)
        v = _load(V, start, keys, cell_stride, inside, D, WIDTH)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        maximum = new_maximum
    out = out / total[:, None]
    tl.store(NORM + head * H * W + cells, maximum + tl.log2(total), mask=valid)
    if GROUP == 1:
        _store(OUT, dense, cells, heads * D, valid, out, D, WIDTH)
    else:
        _store(FULL, dense, cells, heads * D, valid, out, D, WIDTH)
        count = tl.sum(tl.reshape(valid.to(tl.float32), (QUERIES // GROUP, GROUP)), 1)
        windows = _outputs(tl.program_id(0), QUERIES, GROUP, GROUP)
        mean = _gather(tl.where(valid[:, None], out, 0.0), GROUP) / tl.maximum(count, 1.0)[:, None]
        _store(OUT, first, windows, heads * D, windows < outputs, mean, D, WIDTH)


@triton.jit(do_not_specialize=["H", "W", "heads"])
def _query_kernel(
    Q, K, V, POSITION, FULL, NORM, UPSTREAM, DELTA, GRAD_Q, GRAD_POSITION,
    image_stride, head_stride, cell_stride, H, W, heads, scale,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    GROUP: tl.constexpr, SHARED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of queries and of their position logits; DELTA is upstream . output."""
    head, start, dense, first, outputs = _heads(H, W, heads, image_stride, head_stride, D, GROUP)
    cells, valid = _queries(tl.program_id(0), H, W, QUERIES, GROUP)
    q = _load(Q, start, cells, cell_stride, valid, D, WIDTH)
    windows = _outputs(tl.program_id(0), QUERIES, GROUP, SHARED)
    upstream = _load(UPSTREAM, first, windows, heads * D, windows < outputs, D, WIDTH)
    out = _load(FULL, dense, cells, heads * D, valid, D, WIDTH)
    delta = tl.sum(_spread(upstream, SHARED).to(tl.float32) * out.to(tl.float32), 1)
    tl.store(DELTA + head * H * W + cells, delta, mask=valid)
    norm = tl.load(NORM + head * H * W + cells, mask=valid, other=0.0)
    if POSITION is not None:
        POSITION += head * H * W * (H + W)
        GRAD_POSITION += head * H * W * (H + W)
    grad_q = tl.zeros((QUERIES, WIDTH), tl.float32)
    for left in range(0, W, COLUMNS):
        grad_columns = tl.zeros((QUERIES, COLUMNS), tl.float32)
        for top in range(0, H, ROWS):
            keys, inside = _keys(top, left, H, W, ROWS, COLUMNS)
            k = _load(K, start, keys, cell_stride, inside, D, WIDTH)
            scores = _scores(
                q, k, POSITION, cells, valid, top, left, H, W, scale, ROWS, COLUMNS, PRECISION, K is not None
            )
            weights = tl.exp2(scores - norm[:, None])
            v = _load(V, start, keys, cell_stride, inside, D, WIDTH)
            grad_weights = _spread(tl.dot(upstream, tl.trans(v), input_precision=PRECISION), SHARED)
            grad_scores = weights * (grad_weights - delta[:, None])
            if POSITION is not None:
                grid = tl.reshape(grad_scores, (QUERIES, ROWS, COLUMNS))
                grad_columns += tl.sum(grid, 1)
                row = top + tl.arange(0, ROWS)
                places = GRAD_POSITION + cells[:, None] * (H + W) + row[None, :]
                keep = valid[:, None] & (row < H)[None, :]
                # Added to by this program alone, one strip after the other: no atomics.
                before = tl.load(places, mask=keep & (left > 0), other=0.0)
                tl.store(places, before + tl.sum(grid, 2), mask=keep)
            if K is not None:
                grad_q = tl.dot(grad_scores.to(k.dtype), k, grad_q, input_precision=PRECISION)
        if POSITION is not None:
            column = left + tl.arange(0, COLUMNS)
            places = GRAD_POSITION + cells[:, None] * (H + W) + H + column[None, :]
            tl.store(places, grad_columns, mask=valid[:, None] & (column < W)[None, :])
            tl.debug_barrier()  # before the next strip reads the sums by row
    _store(GRAD_Q, dense, cells, heads * D, valid, grad_q * scale, D, WIDTH)


@triton.jit(do_not_specialize=["H", "W", "heads"])
def _key_kernel(
    Q, K, V, POSITION, NORM, UPSTREAM, DELTA, GRAD_K, GRAD_V,
    image_stride, head_stride, cell_stride, H, W, heads, scale,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    GROUP: tl.constexpr, SHARED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one patch of keys and of its values."""
    head, start, dense, first, outputs = _heads(H, W, heads, image_stride, head_stride, D, GROUP)
    down = tl.cdiv(H, ROWS)
    top = tl.program_id(0) % down * ROWS
    left = tl.program_id(0) // down * COLUMNS
    keys, inside = _keys(top, left, H, W, ROWS, COLUMNS)
    k = _load(K, start, keys, cell_stride, inside, D, WIDTH)
    v = _load(V, start, keys, cell_stride, inside, D, WIDTH)
    if POSITION is not None:
        POSITION += head * H * W * (H + W)
    grad_k = tl.zeros((ROWS * COLUMNS, WIDTH), tl.float32)
    grad_v = tl.zeros((ROWS * COLUMNS, WIDTH), tl.float32)
    for tile in range(tl.cdiv(outputs * GROUP, QUERIES)):
        cells, valid = _queries(tile, H, W, QUERIES, GROUP)
        q = _load(Q, start, cells, cell_stride, valid, D, WIDTH)
        norm = tl.load(NORM + head * H * W + cells, mask=valid, other=0.0)
        delta = tl.load(DELTA + head * H * W + cells, mask=valid, other=0.0)
        scores = _scores(
            q, k, POSITION, cells, valid, top, left, H, W, scale, ROWS, COLUMNS, PRECISION, K is not None
        )
        weights = tl.where(valid[:, None], tl.exp2(scores - norm[:, None]), 0.0)
        windows = _outputs(tile, QUERIES, GROUP, SHARED)
        upstream = _load(UPSTREAM, first, windows, heads * D, windows < outputs, D, WIDTH)
        together = tl.trans(_gather(weights, SHARED).to(upstream.dtype))
        grad_v = tl.dot(together, upstream, grad_v, input_precision=PRECISION)
        if K is not None:
            grad_weights = _spread(tl.dot(upstream, tl.trans(v), input_precision=PRECISION), SHARED)
            grad_scores = tl.trans((weights * (grad_weights - delta[:, None])).to(q.dtype))
            grad_k = tl.dot(grad_scores, q, grad_k, input_precision=PRECISION)
    _store(GRAD_V, dense, keys, heads * D, inside, grad_v, D, WIDTH)
    _store(GRAD_K, dense, keys, heads * D, inside, grad_k * scale, D, WIDTH)


class Tiles(NamedTuple):
    """How a kernel is cut: queries and keys of a tile, and how a GPU runs it."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def choose_tiles(kernel: Any, width: int, dtype: torch.dtype, capability: int) -> Tiles:
    """Tiles that fit the shared memory: on Hopper the fastest measured, on other GPUs smaller ones.

    Measured on an H200 at 64 x 64 cells and heads of width 128: twice as many warps take about twice as long.
    The others fit 99 KiB and were chosen by compiling, without notable spills of registers.

    Args:
        kernel: one of the three.
        width: d, rounded up to a power of two.
        dtype: of queries, keys and values.
        capability: major compute capability of the GPU, 9 for Hopper.
    """
    wide = width > 128
    hopper = capability == 9 and not wide
    if dtype == torch.float32:
        # Never 64 queries and 16 keys with 8 warps: Triton 3.6 compiles them to an illegal memory access.
        if hopper:
            return Tiles(32, 32, 4, 1 if kernel is _key_kernel else 2)
        return Tiles(16 if wide else 32, 16, 4, 1)
    if wide:
        return Tiles(64, 32, 8, 2) if kernel is _forward_kernel else Tiles(32, 32, 8, 1)
    stages = 3 if kernel is _forward_kernel or (kernel is _query_kernel and not hopper) else 2
    return Tiles(64, 64 if hopper else 32, 4, stages)


def patch(size: Size, keys: int) -> tuple[int, int]:
    """Rows and columns, powers of two, of the patches of so many keys that cover a map with least waste."""
    height, width = size
    shapes = [(keys >> bit, 1 << bit) for bit in range(keys.bit_length())]

    def cost(shape: tuple[int, int]) -> tuple[int, int, int]:
        rows, columns = shape
        return -(-height // rows) * -(-width // columns), rows + columns, rows

    return min(shapes, key=cost)


def attend(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> Tensor:
    """See `botnet.layers.kernels.relative_attention`.

    Raises:
        RuntimeError: tensors that are not on a GPU.
        ValueError: a head width that is no multiple of 16 or above 256, or another precision.
    """
    if v.device.type != "cuda" and not INTERPRETED:
        raise RuntimeError(f"implementation='triton' runs on GPUs only, the tensors are on {v.device.type}")
    if v.shape[-1] % 16 or v.shape[-1] > WIDEST:
        raise ValueError(
            f"heads of width {v.shape[-1]}: the Triton kernel takes multiples of 16 up to {WIDEST}"
        )
    dtypes = {x.dtype for x in (q, k, v) if x is not None}
    if len(dtypes) > 1 or v.dtype not in DTYPES:
        found = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ValueError(f"tensors of {found}: the Triton kernel takes one of float16, bfloat16 and float32")
    out: Tensor = _forward(q, k, v, position, size, scale, pool)[0]
    return out


@torch.library.custom_op("botnet::fused_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the output before the pool (empty without one) and the softmax's denominators."""
    out, full, norm = _empty_results(v, size, pool)
    _launch(_forward_kernel, (q, k, v, position), (out, full, norm), size, scale, pool)
    return out, full, norm


@torch.library.custom_op("botnet::fused_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    position: Tensor | None,
    full: Tensor,
    norm: Tensor,
    size: Size,
    scale: float,
    pool: int,
) -> list[Tensor]:
    """The gradients that `Gradients` has for these inputs."""
    grads = _empty_gradients(q, k, v, position, size)
    upstream = _per_query(grad, size, pool).transpose(1, 2).contiguous()
    delta = torch.empty_like(norm)
    # The sums over rows and columns are not rounded before they are complete.
    grad_position = None if position is None else torch.empty_like(position, dtype=torch.float32)
    inputs = (q, k, v, position)
    results = (full, norm, upstream, delta, grads.q, grad_position)
    _launch(_query_kernel, inputs, results, size, scale, pool)
    _launch(_key_kernel, inputs, (norm, upstream, delta, grads.k, grads.v), size, scale, pool)
    if grads.position is not None and grad_position is not None:
        grads.position.copy_(grad_position)
    return grads.present()


def _per_query(grad: Tensor, size: Size, pool: int) -> Tensor:
    """The share of each query of a window in the gradient (B, heads, M, d) of the window's average."""
    if pool == 1:
        return grad
    counts = [torch.full(((side + 1) // 2,), 2.0, device=grad.device) for side in size]
    for count, side in zip(counts, size, strict=True):
        count[-1] -= side % 2
    return (grad / (counts[0][:, None] * counts[1]).flatten()[:, None]).to(grad.dtype)


def _launch(
    kernel: Any,
    inputs: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    results: tuple[Tensor | None, ...],
    size: Size,
    scale: float,
    pool: int,
) -> None:
    """Run one kernel over all tiles and heads."""
    q, k, v, position = inputs
    height, width = size
    batch, heads, _, d = v.shape
    padded = triton.next_power_of_2(d)
    capability = torch.cuda.get_device_capability(v.device)[0] if v.is_cuda else 0
    tiles = choose_tiles(kernel, padded, v.dtype, capability)
    rows, columns = patch(size, tiles.keys)
    if kernel is _key_kernel:
        blocks = triton.cdiv(height, rows) * triton.cdiv(width, columns)
    else:
        blocks = triton.cdiv(triton.cdiv(height, pool) * triton.cdiv(width, pool) * pool**2, tiles.queries)
    constants = {"GROUP": pool**2, "PRECISION": _precision()}
    if kernel is not _forward_kernel:
        # Products with the gradients of windows need 16 rows.
        constants["SHARED"] = pool**2 if tiles.queries >= 16 * pool**2 else 1
    queries, keys, values = _alike(q, k, v)
    with torch.cuda.device_of(v):
        kernel[(blocks, batch * heads)](
            queries,
            keys,
            values,
            None if position is None else position.contiguous(),
            *results,
            *values.stride()[:3],
            height,
            width,
            heads,
            scale,
            QUERIES=tiles.queries,
            ROWS=rows,
            COLUMNS=columns,
            D=d,
            WIDTH=padded,
            **constants,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )


def _alike(q: Tensor, k: Tensor | None, v: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Queries, keys and values of equal strides, the last one 1; queries only where there are keys."""
    if k is None:
        return None, None, v if v.stride(-1) == 1 else v.contiguous()
    if q.stride() == k.stride() == v.stride() and v.stride(-1) == 1:
        return q, k, v
    return q.contiguous(), k.contiguous(), v.contiguous()


def _precision() -> str:
    """Of float32 products on tensor cores: three of TF32 unless the user allows one."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _empty_results(v: Tensor, size: Size, pool: int) -> tuple[Tensor, Tensor, Tensor]:
    full = v.new_empty(0) if pool == 1 else empty_output(v, size, 1)
    return empty_output(v, size, pool), full, v.new_empty(v.shape[:3], dtype=torch.float32)


def _empty_gradients(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size
) -> Gradients:
    return Gradients(
        q=None if k is None else empty_output(q, size, 1),
        k=None if k is None else empty_output(k, size, 1),
        v=empty_output(v, size, 1),
        position=None if position is None else torch.empty_like(position),
    )


@_forward.register_fake
def _(
    q: Tensor, k: Tensor | None, v: Tensor, position: Tensor | None, size: Size, scale: float, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(v, size, pool)


@_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    position: Tensor | None,
    full: Tensor,
    norm: Tensor,
    size: Size,
    scale: float,
    pool: int,
) -> list[Tensor]:
    return _empty_gradients(q, k, v, position, size).present()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.size, ctx.scale, ctx.pool = inputs
    out, full, norm = output
    ctx.save_for_backward(*tensors, out if ctx.pool == 1 else full, norm)


def _differentiate(ctx: Any, grad: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    _, k, _, position, *_ = ctx.saved_tensors
    present = _backward(grad, *ctx.saved_tensors, ctx.size, ctx.scale, ctx.pool)
    return *Gradients.among(present, k, position), None, None, None


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError("triton attention has no second derivative: force implementation='reference' for one")


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_refuse)
