"""Tests of the Triton kernels under Triton's interpreter, on a CPU; `test_triton_kernel.py` runs them.

The interpreter must be chosen before Triton is imported, hence a process of its own. Its products of bfloat16
are wrong: float32 and float16 only.
"""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from botnet.layers import MHSA2d, triton_kernel
from botnet.layers.kernels import relative_attention
from botnet.layers.triton_kernel import Tiles
from tests.layers.test_kernels import TERMS, plain
from tests.support import oracle

# The tiles of low precision, whose products with gradients are pooled, and those of float32.
TILES = [Tiles(64, 32, 8, 2), Tiles(32, 16, 4, 1)]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """NaN in all memory that nothing was written to."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(size: tuple[int, int], d: int, dtype: torch.dtype, content: bool = True, position: bool = True):
    """Inputs of 1 image and 2 heads, laid out as the layer has them."""
    torch.manual_seed(0)
    tokens = size[0] * size[1]
    qkv = torch.randn(1, tokens, 3, 2, d, dtype=torch.float64).to(dtype).unbind(2)
    q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in qkv)
    p = torch.randn(1, 2, tokens, sum(size), dtype=torch.float64).to(dtype).requires_grad_()
    return q, k if content else None, v, p if position else None


def compare(inputs: tuple[Tensor | None, ...], size: tuple[int, int], pool: int, tolerance: float) -> None:
    """Output and all gradients against the loops in float64, in the Frobenius norm."""
    exact = tuple(None if x is None else x.detach().double().requires_grad_() for x in inputs)
    out, expected = relative_attention(*inputs, size, 0.3, pool, "triton"), plain(*exact, size, pool)
    upstream = torch.randn_like(out)

    def gradients(result: Tensor, tensors: tuple[Tensor | None, ...], weights: Tensor) -> tuple[Tensor, ...]:
        present = [x for x in (tensors if tensors[1] is not None else tensors[2:]) if x is not None]
        return torch.autograd.grad(result, present, weights)

    ours = [out, *gradients(out, inputs, upstream)]
    theirs = [expected, *gradients(expected, exact, upstream.double())]
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == inputs[2].dtype
        assert (x.double() - y).norm() <= tolerance * max(1.0, y.norm())


# No shrinking: the interpreter is slow.
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    d=st.sampled_from([16, 48]),
    pool=st.sampled_from([1, 2]),
    terms=st.sampled_from(TERMS),
    tiles=st.sampled_from(TILES),
)
def test_equals_the_formula(size, d, pool, terms, tiles) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(triton_kernel, "choose_tiles", lambda *shape: tiles)
        compare(draw(size, d, torch.float32, *terms), size, pool, 3e-6)


@pytest.mark.parametrize(
    ("size", "pool", "dtype", "tolerance"),
    [
        ((5, 7), 1, torch.float32, 3e-6),
        ((3, 13), 2, torch.float32, 3e-6),
        ((3, 19), 1, torch.float16, 2e-3),
        ((7, 10), 2, torch.float16, 2e-3),
    ],
)
def test_several_tiles(size, pool, dtype, tolerance) -> None:
    compare(draw(size, 16, dtype), size, pool, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("d", [80, 128, 256])
@pytest.mark.parametrize("size", [(17, 9), (1, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_large_maps_and_wide_heads(size, d, pool, dtype) -> None:
    compare(draw(size, d, dtype), size, pool, 3e-6 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_layer_equals_the_loops(stride: int) -> None:
    torch.manual_seed(0)
    module = MHSA2d(32, 2, stride, feat_size=(3, 5), qkv_std="fan_in")
    module.implementation = "triton"
    x = torch.randn(1, 32, 3, 5)
    tables = tuple(table.detach().double().numpy() for table in module.pos_embed.parameters())
    weight = module.qkv.weight.detach().double().numpy()[:, :, 0, 0]
    expected = oracle.mhsa(x.double().numpy(), weight, 2, stride, True, relative=tables)
    torch.testing.assert_close(module(x).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_large_logits_and_any_layout_of_memory() -> None:
    """The maximum grows from tile to tile; strides of queries, keys, values and upstream gradients differ."""
    size = (5, 8)
    q, k, v, p = draw(size, 16, torch.float32)
    p = (p.detach() + 3 * torch.arange(13)).requires_grad_()
    inputs = (q, k.detach().contiguous().requires_grad_(), v.mT.detach().contiguous().mT.requires_grad_(), p)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, expected = relative_attention(*inputs, size, 0.3, 2, "triton"), plain(*exact, size, 2)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    ours, theirs = torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(expected.sum(), exact)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-5)


def test_operator_is_registered_completely() -> None:
    size = (2, 3)
    inputs = (*draw(size, 16, torch.float32), size, 0.3, 2)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(triton_kernel._forward, inputs, test_utils=checks)


def test_compiles_without_graph_breaks() -> None:
    module = MHSA2d(32, 2, 2, feat_size=(2, 3), qkv_std="fan_in")
    module.implementation = "triton"
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 32, 2, 3)
    parameters = list(module.parameters())
    with torch.autocast("cpu", torch.float16):
        outs = [f(x) for f in (compiled, module)]
    assert outs[0].dtype == torch.float16
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), parameters) for out in outs))


def test_second_derivative_is_refused() -> None:
    inputs = draw((2, 3), 16, torch.float32)
    out = relative_attention(*inputs, (2, 3), 0.3, 1, "triton")
    (grad,) = torch.autograd.grad(out.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="triton attention has no second derivative"):
        grad.sum().backward()


def test_bad_input() -> None:
    with pytest.raises(
        ValueError, match="heads of width 24: the Triton kernel takes multiples of 16 up to 256"
    ):
        relative_attention(*draw((2, 3), 24, torch.float32), (2, 3), 0.3, 1, "triton")
    with pytest.raises(ValueError, match=r"torch.float64: the Triton kernel takes one of float16"):
        relative_attention(*draw((2, 3), 16, torch.float64), (2, 3), 0.3, 1, "triton")
    q, k, v, p = draw((2, 3), 16, torch.float32)
    with pytest.raises(ValueError, match=r"torch.float16, torch.float32"):
        relative_attention(q.half(), k, v, p, (2, 3), 0.3, 1, "triton")


def test_layer_of_one_cell_has_all_gradients() -> None:
    module = nn.Sequential(MHSA2d(32, 2, 2, feat_size=(1, 1)))
    module[0].implementation = "triton"
    module(torch.randn(1, 32, 1, 1)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
