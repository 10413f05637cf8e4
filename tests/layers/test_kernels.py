import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.nn.attention import flex_attention
from torch.profiler import profile

from botnet.layers import kernels
from botnet.layers.kernels import IMPLEMENTATIONS, choose, relative_attention

ROOT = Path(__file__).parents[2]
SIZE = (3, 5)
TERMS = [(True, True), (True, False), (False, True)]
# Those that compute on a CPU; for the Triton kernels see test_triton_kernel.py.
HERE = [name for name in IMPLEMENTATIONS if name != "triton"]


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, the last one short, on maps small enough for a test."""
    monkeypatch.setattr(kernels, "TILE", 8)


@pytest.fixture
def flex_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention refuses gradients on a CPU, although its eager form supports them."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)


def draw(
    size: tuple[int, int],
    dtype: torch.dtype = torch.float64,
    d: int = 4,
    content: bool = True,
    position: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Queries, keys, values and position logits of 2 images, 3 heads."""
    torch.manual_seed(0)
    tokens = size[0] * size[1]
    q, k, v, p = (torch.randn(2, 3, tokens, n, dtype=dtype, requires_grad=True) for n in (d, d, d, sum(size)))
    return q, k if content else None, v, p if position else None


def plain(
    q: Tensor, k: Tensor | None, v: Tensor, p: Tensor | None, size: tuple[int, int], pool: int
) -> Tensor:
    """What `relative_attention` computes, query by query and key by key."""
    height, width = size
    out = torch.zeros_like(v)
    for cell in range(height * width):
        logits = torch.zeros(v.shape[:3], dtype=v.dtype)
        for key in range(height * width):
            if k is not None:
                logits[:, :, key] += 0.3 * (q[:, :, cell] * k[:, :, key]).sum(-1)
            if p is not None:
                logits[:, :, key] += p[:, :, cell, key // width] + p[:, :, cell, height + key % width]
        out[:, :, cell] = (logits.softmax(-1).unsqueeze(-1) * v).sum(2)
    grid = out.unflatten(2, size)
    windows = [
        grid[:, :, y : y + pool, x : x + pool].mean((2, 3))
        for y in range(0, height, pool)
        for x in range(0, width, pool)
    ]
    return torch.stack(windows, 2)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize(("content", "position"), TERMS)
@pytest.mark.parametrize("name", HERE)
@pytest.mark.usefixtures("tiny_tiles", "flex_gradients")
def test_equals_the_formula(name: str, content: bool, position: bool, pool: int) -> None:
    tensors = draw(SIZE, content=content, position=position)
    out = relative_attention(*tensors, SIZE, 0.3, pool, name)
    torch.testing.assert_close(out, plain(*tensors, SIZE, pool))


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The widths of queries, keys and values of every call of PyTorch's attention."""
    seen = []
    attention = kernels.F.scaled_dot_product_attention

    def record(*tensors: Tensor, scale: float) -> Tensor:
        seen.append({x.shape[-1] for x in tensors})
        return attention(*tensors, scale=scale)

    monkeypatch.setattr(kernels.F, "scaled_dot_product_attention", record)
    return seen


@pytest.mark.parametrize(
    ("size", "dtype", "width"),
    [
        ((14, 14), torch.bfloat16, 160),
        ((24, 24), torch.float16, 176),
        ((32, 32), torch.bfloat16, 192),
        ((25, 40), torch.float16, 256),
        ((40, 40), torch.bfloat16, 256),
        ((40, 40), torch.float32, 208),
        ((63, 63), torch.float32, 256),
        ((64, 64), torch.bfloat16, 256),
        ((69, 69), torch.bfloat16, 272),
        ((69, 70), torch.float32, 272),
    ],
)
def test_head_width_on_a_gpu(widths, size: tuple[int, int], dtype: torch.dtype, width: int) -> None:
    with torch.device("meta"):
        relative_attention(*draw(size, dtype, d=128), size, 0.1, implementation="sdpa")
    assert widths == [{width}]


def test_head_width_on_a_cpu_is_not_rounded(widths: list[set[int]]) -> None:
    relative_attention(*draw(SIZE, d=5), SIZE, 0.1, implementation="sdpa")
    assert widths == [{13}]


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize(("content", "position"), TERMS)
@pytest.mark.parametrize("rounded", [16, 256])
def test_wider_heads_do_not_change_the_result(monkeypatch, rounded, content, position, pool) -> None:
    monkeypatch.setattr(kernels, "_kernel_width", lambda *shape: rounded)
    tensors = draw(SIZE, content=content, position=position)
    expected = plain(*tensors, SIZE, pool)
    out = relative_attention(*tensors, SIZE, 0.3, pool, "sdpa")
    torch.testing.assert_close(out, expected)
    inputs = [x for x in (tensors if content else tensors[2:]) if x is not None]
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    )


@pytest.mark.parametrize(("position", "expected"), [(True, 4), (False, 0)])
def test_joins_no_more_than_it_must(monkeypatch, position: bool, expected: int) -> None:
    """One-hot vectors, queries, keys and values are copied once; nothing where all have one width already."""
    copies = []
    join = torch.cat
    monkeypatch.setattr(torch, "cat", lambda *given: (copies.append(given), join(*given))[1])
    relative_attention(*draw((4, 4), position=position), (4, 4), 0.3, implementation="sdpa")
    assert len(copies) == expected


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 1)])
def test_even_maps_are_pooled_without_a_gather(size: tuple[int, int]) -> None:
    """The gradient of a gather is slow on a GPU: it sorts the indices."""
    q, k, v, p = draw(size)
    out = relative_attention(q, k, v, p, size, 0.3, 2, "reference")
    torch.testing.assert_close(out, plain(q, k, v, p, size, 2))
    with profile() as record:
        torch.autograd.grad(out.sum(), v)
    gathers = [event for event in record.events() if "index_put" in event.name]
    assert bool(gathers) == (size[0] % 2 == 1 or size[1] % 2 == 1)


@pytest.mark.usefixtures("flex_gradients")
def test_flex_has_a_backward_pass_that_inductor_accepts() -> None:
    """Its check, which needs no GPU, refuses two look-ups in one tensor that has a gradient."""
    lowering = pytest.importorskip("torch._inductor.kernel.flex.flex_attention")
    backward: list[fx.GraphModule] = []

    def collect(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
        backward.append(graph)
        return graph

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=collect)
    tensors = [x.float() for x in draw(SIZE, d=16)]
    attend = torch.compile(lambda *t: relative_attention(*t, SIZE, 0.3, 2, "flex"), backend=backend)
    attend(*tensors).sum().backward()
    (joint,) = (m for name, m in backward[0].named_modules() if "joint_graph" in name)
    assert isinstance(joint, fx.GraphModule)
    lowering.validate_joint_graph(joint.graph)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize(("content", "position"), TERMS)
@pytest.mark.parametrize("name", HERE)
@pytest.mark.usefixtures("tiny_tiles", "flex_gradients")
def test_gradients(name: str, content: bool, position: bool, pool: int) -> None:
    size = (2, 3)
    tensors = draw(size, d=2, content=content, position=position)
    if name == "flex":
        # gradcheck would compile it hundreds of times: compare with autograd through the plain loops.
        inputs = [x for x in (tensors if content else tensors[2:]) if x is not None]
        out, expected = relative_attention(*tensors, size, 0.3, pool, name), plain(*tensors, size, pool)
        upstream = torch.randn_like(out)
        for ours, theirs in zip(
            torch.autograd.grad(out, inputs, upstream),
            torch.autograd.grad(expected, inputs, upstream),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)
    else:
        assert torch.autograd.gradcheck(
            lambda *t: relative_attention(*t, size, 0.3, pool, name), tensors, fast_mode=True
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.usefixtures("flex_gradients")
def test_implementations_agree(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, pool: int
) -> None:
    monkeypatch.setattr(kernels, "TILE", 64)
    size = (9, 14)
    exact = draw(size, d=16)
    truth = relative_attention(*exact, size, 0.25, pool, "reference")
    upstream = torch.randn_like(truth)
    truths = [truth, *torch.autograd.grad(truth, exact, upstream)]
    for name in HERE:
        tensors = [t.detach().to(dtype).requires_grad_() for t in exact]
        out = relative_attention(*tensors, size, 0.25, pool, name)
        found = [out, *torch.autograd.grad(out, tensors, upstream.to(dtype))]
        for ours, theirs in zip(found, truths, strict=True):
            assert ours.dtype == dtype
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), name


@pytest.mark.parametrize("pool", [1, 2])
def test_tiled_never_stores_all_logits(pool: int) -> None:
    """Its largest allocation, forward and backward, is a tile; that of the reference is N x N."""
    size = (64, 64)
    tokens = size[0] * size[1]
    largest = {}
    for name in ("tiled", "reference"):
        q, k, v, p = (torch.randn(1, 1, tokens, n, requires_grad=True) for n in (4, 4, 4, sum(size)))
        with profile(profile_memory=True) as record:
            relative_attention(q, k, v, p, size, 0.5, pool, name).sum().backward()
        largest[name] = max(event.self_cpu_memory_usage for event in record.events())
    assert largest["reference"] >= 4 * tokens**2
    assert largest["tiled"] <= largest["reference"] / 3


def test_low_precision_gradients_are_summed_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """With uniform attention every value has a gradient of 1: the sum of 0.02 from each of 50 tiles."""
    monkeypatch.setattr(kernels, "TILE", 8)
    q, k, v = (torch.zeros(1, 1, 400, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    relative_attention(q, k, v, None, (20, 20), 0.5, implementation="tiled").sum().backward()
    assert (v.grad - 1).abs().max() < 0.01


def test_second_derivative_is_refused() -> None:
    tensors = draw(SIZE)
    out = relative_attention(*tensors, SIZE, 0.3, 1, "tiled")
    (grad,) = torch.autograd.grad(out.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def tangent(function, tensors: Sequence[Tensor], tangents: Sequence[Tensor], how: str) -> Tensor | None:
    """The directional derivative of a function in forward mode, by one of torch's interfaces."""
    if how == "jvp":
        return torch.func.jvp(function, tuple(tensors), tuple(tangents))[1]
    if how == "jvp of vmap":
        one, direction = ([x[None] for x in given] for given in (tensors, tangents))
        return torch.func.jvp(torch.vmap(function), tuple(one), tuple(direction))[1][0]
    with forward_ad.dual_level():
        dual = (forward_ad.make_dual(x, t) for x, t in zip(tensors, tangents, strict=True))
        return forward_ad.unpack_dual(function(*dual)).tangent


@pytest.mark.parametrize("how", ["jvp", "jvp of vmap", "forward_ad"])
@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, None])
def test_forward_mode_is_right_or_refused(name: str | None, how: str) -> None:
    size, step = (2, 150), 1e-6  # a map for which the default is tiled
    tensors = [x.detach() for x in draw(size)]
    tangents = [torch.randn_like(x) for x in tensors]

    def attend(*given: Tensor) -> Tensor:
        return relative_attention(*given, size, 0.3, 2, name)

    if name not in ("reference", None):
        own = name in ("tiled", "triton")
        message = f"{name} attention has no forward-mode derivative" if own else None
        with pytest.raises(RuntimeError, match=message):
            tangent(attend, tensors, tangents, how)
        return
    before, after = (
        attend(*(x + way * step * t for x, t in zip(tensors, tangents, strict=True))) for way in (-1, 1)
    )
    expected = (after - before) / (2 * step)
    torch.testing.assert_close(tangent(attend, tensors, tangents, how), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("size", "expected"), [((7, 7), "reference"), ((14, 14), "reference"), ((32, 32), "tiled")]
)
def test_choice_by_size(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], expected: str) -> None:
    chosen = []
    for name, compute in list(IMPLEMENTATIONS.items()):
        monkeypatch.setitem(IMPLEMENTATIONS, name, lambda *a, n=name, c=compute: (chosen.append(n), c(*a))[1])
    relative_attention(*draw(size), size, 0.3)
    assert chosen == [expected]


def test_bad_input() -> None:
    q, k, v, p = draw(SIZE)
    with pytest.raises(ValueError, match="no logits"):
        relative_attention(q, None, v, None, SIZE, 0.3)
    with pytest.raises(ValueError, match="15 values do not fit a map of 4 x 5"):
        relative_attention(q, k, v, p, (4, 5), 0.3)
    with pytest.raises(ValueError, match="expected 3 \\+ 5"):
        relative_attention(q, k, v, p[..., 1:], SIZE, 0.3)
    with pytest.raises(ValueError, match="pool=3: expected 1 or 2"):
        relative_attention(q, k, v, p, SIZE, 0.3, pool=3)


GPU = torch.device("cuda")
LARGE = (8, 4, 4096, 128)


@pytest.fixture
def measured_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which the Triton kernels pay from 1,000 cells on with gradients, from 4,096 on without."""
    monkeypatch.setattr(kernels, "TRITON_FROM", {(1, 2): (1000, 4096)})
    monkeypatch.setattr(kernels, "HAS_TRITON", True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (1, 2))


@pytest.mark.parametrize(
    ("tokens", "gradients", "expected"),
    [(999, True, "sdpa"), (1000, True, "triton"), (4095, False, "sdpa"), (4096, False, "triton")],
)
def test_triton_is_chosen_from_the_measured_size_on(measured_gpu, tokens, gradients, expected) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert choose((8, 4, tokens, 128), dtype, GPU, gradients) == expected


def test_triton_is_not_chosen_where_nothing_was_measured(measured_gpu, monkeypatch) -> None:
    assert choose(LARGE, torch.bfloat16, GPU, True) == "triton"
    assert choose(LARGE, torch.float32, GPU, True) == "sdpa"
    assert choose((8, 4, 4096, 64), torch.bfloat16, GPU, True) == "sdpa"
    assert choose(LARGE, torch.bfloat16, torch.device("mps"), True) == "sdpa"
    for place, name, value in (
        (kernels, "HAS_TRITON", False),
        (torch.version, "hip", "6.0"),  # AMD's (1, 2) is another GPU
        (torch.cuda, "get_device_capability", lambda device: (1, 3)),
        (torch.compiler, "is_exporting", lambda: True),
        (torch.jit, "is_tracing", lambda: True),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(place, name, value)
            assert choose(LARGE, torch.bfloat16, GPU, True) == "sdpa"


def gains(table: str) -> dict[tuple[int, bool], float]:
    """By cells and gradients: how much faster a report of `make proof-gpu` has Triton than the next."""
    rows = re.findall(r"^\| (\d+)x(\d+) batch \d+ (training|inference) \| \w+ \| ([\d.]*) \|$", table, re.M)
    return {(int(h) * int(w), kind == "training"): float(gain) for h, w, kind, gain in rows if gain}


def unproved(limits: tuple[float, float], table: str) -> list[str]:
    """Where the table does not show what an entry of `TRITON_FROM` says."""
    found = gains(table)
    missing = []
    for gradients, limit in zip((True, False), limits, strict=True):
        cases = {cells: gain for (cells, kind), gain in found.items() if kind == gradients}
        if limit < math.inf and limit not in cases:
            missing.append(f"{limit} cells were not measured")
        missing += [
            f"{cells} cells: {gain}" for cells, gain in cases.items() if cells >= limit and gain < 1.15
        ]
    return missing


def test_the_default_is_what_the_committed_tables_show() -> None:
    reports = [path.read_text() for path in sorted((ROOT / "docs" / "gpu").glob("*.md"))]
    for (major, minor), limits in kernels.TRITON_FROM.items():
        tables = [text for text in reports if f"capability {major}.{minor}," in text]
        assert tables, f"docs/gpu has no report of a GPU of capability {major}.{minor}"
        assert [unproved(limits, text) for text in tables] == [[]] * len(tables)


def test_a_table_that_does_not_show_it_is_noticed() -> None:
    rows = ("14x14 batch 128 training | sdpa | 0.9", "32x32 batch 8 training | triton | 1.3")
    table = "\n".join(f"| {row} |" for row in (*rows, "32x32 batch 8 inference | sdpa | 1.1"))
    assert unproved((1024, math.inf), table) == []
    assert unproved((196, 4096), table) == ["196 cells: 0.9", "4096 cells were not measured"]
    assert unproved((1024, 1024), table) == ["1024 cells: 1.1"]


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "botnet.layers.triton_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    x = torch.randn(1, 1, 6, 16)
    with pytest.raises(RuntimeError, match="implementation='triton' needs the package triton"):
        relative_attention(x, x, x, None, (2, 3), 0.3, implementation="triton")
