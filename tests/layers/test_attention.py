import copy
import pickle
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bottleneck_transformer_pytorch.bottleneck_transformer_pytorch import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn

from botnet.layers import MHSA2d, kernels
from tests.support import oracle

POSITIONS = ["relative", "absolute", None]


def layer(dim: int = 8, heads: int = 2, seed: int = 0, **kwargs) -> MHSA2d:
    """A float64 layer whose logits are large enough to make the softmax uneven."""
    torch.manual_seed(seed)
    module = MHSA2d(dim, heads, **{"feat_size": (4, 3), **kwargs}).double()
    nn.init.normal_(module.qkv.weight)
    return module


def by_loops(module: MHSA2d, x: Tensor) -> Tensor:
    tables = None
    if module.pos_embed is not None:
        tables = tuple(table.detach().numpy() for table in module.pos_embed.parameters())
    out = oracle.mhsa(
        x.numpy(),
        module.qkv.weight.detach().numpy()[:, :, 0, 0],
        module.heads,
        module.stride,
        module.content,
        relative=tables if module.position == "relative" else None,
        absolute=tables if module.position == "absolute" else None,
    )
    return torch.from_numpy(out)


@pytest.mark.parametrize("implementation", ["reference", "tiled", "sdpa"])
@pytest.mark.parametrize("size", [(4, 3), (1, 1), (2, 7)], ids=["table", "point", "crop-and-stretch"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("position", "content"), [pair for pair in product(POSITIONS, [True, False]) if pair != (None, False)]
)
def test_equals_the_formula(position, content, stride, size, implementation) -> None:
    module = layer(position=position, content=content, stride=stride)
    module.implementation = implementation
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_loops(module, x))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 4), (20, 24)])
def test_equals_timm(stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    peer = BottleneckAttn(32, feat_size=size, stride=stride, num_heads=4, scale_pos_embed=True)
    module = MHSA2d(32, stride=stride, feat_size=size)
    module.load_state_dict(peer.state_dict())
    x = torch.randn(2, 32, *size)
    torch.testing.assert_close(module(x), peer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", ["relative", "absolute"])
@pytest.mark.parametrize("size", [(6, 4), (20, 24)])
def test_equals_the_pypi_package(position: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    peer = Attention(dim=32, fmap_size=size, heads=4, dim_head=8, rel_pos_emb=position == "relative")
    module = MHSA2d(32, position=position, feat_size=size)
    tables = [value for name, value in peer.state_dict().items() if name.startswith("pos_emb.")]
    names = [name for name in module.state_dict() if name.startswith("pos_embed.")]
    module.load_state_dict(
        {"qkv.weight": peer.to_qkv.weight, **dict(zip(names, tables, strict=True))},
    )
    x = torch.randn(2, 32, *size)
    torch.testing.assert_close(module(x), peer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (4, 7), (21, 19)])
def test_stride_rounds_odd_maps_up(size: tuple[int, int]) -> None:
    """As a ResNet's strided convolutions do, so that the shortcut of the block still fits."""
    full, strided = layer(), layer(stride=2)
    x = torch.randn(1, 8, *size, dtype=torch.float64)
    expected = F.avg_pool2d(full(x), 2, 2, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(strided(x), expected)
    assert strided(x).shape == nn.Conv2d(8, 8, 1, stride=2)(x.float()).shape


sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))
positions = st.sampled_from(POSITIONS)


@settings(max_examples=20, deadline=None)
@given(size=sizes, position=positions, order=st.permutations(range(4)), stride=st.sampled_from([1, 2]))
def test_permuting_heads_permutes_their_outputs(size, position, order, stride) -> None:
    module = layer(heads=4, position=position, stride=stride)
    permuted = copy.deepcopy(module)
    channels = torch.arange(8).view(4, 2)[list(order)].flatten()
    permuted.qkv.weight.data = module.qkv.weight.data.unflatten(0, (3, 8))[:, channels].flatten(0, 1)
    x = torch.randn(1, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(permuted(x), module(x)[:, channels])


@settings(max_examples=20, deadline=None)
@given(size=sizes, position=positions, stride=st.sampled_from([1, 2]), content=st.booleans())
def test_transposing_image_and_tables_transposes_the_output(size, position, stride, content) -> None:
    module = layer(position=position, stride=stride, content=content or position is None, feat_size=(3, 5))
    swapped = layer(position=position, stride=stride, content=module.content, feat_size=(5, 3))
    state = module.state_dict()
    swap = {"height": "width", "width": "height"}
    for name in list(state):
        axis = name.removeprefix("pos_embed.").partition("_")[0]
        if axis in swap:
            state[name.replace(axis, swap[axis])] = module.state_dict()[name]
    swapped.load_state_dict(state)
    x = torch.randn(1, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(swapped(x.mT), module(x).mT)


@settings(max_examples=20, deadline=None)
@given(dy=st.integers(0, 3), dx=st.integers(0, 3), stride=st.sampled_from([1, 2]))
def test_shifting_an_object_by_cells_shifts_its_output(dy: int, dx: int, stride: int) -> None:
    """Relative positions depend on offsets only. On a background with v = 0, an object's output moves with
    it, provided that all softmax weight is on its own cells."""
    module = layer(feat_size=(9, 9), stride=stride)
    # A constant channel gives the object's keys all the weight; the background would differ at the border.
    keys = torch.zeros(8, 8, dtype=torch.float64)
    keys[[0, 4], 0] = 1.0
    queries = torch.zeros(8, 8, dtype=torch.float64)
    queries[[0, 4], 1] = 2000.0
    module.qkv.weight.data[:16, :, 0, 0] += torch.cat([queries, keys])
    base = torch.zeros(1, 8, 9, 9, dtype=torch.float64)
    base[:, 1] = 1.0
    blob = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    blob[:, 0], blob[:, 1] = 1.0, 1.0
    at_origin, moved = base.clone(), base.clone()
    dy, dx = dy * stride, dx * stride
    at_origin[:, :, :3, :3] = blob
    moved[:, :, dy : dy + 3, dx : dx + 3] = blob
    h, w = 9 // stride - dy // stride, 9 // stride - dx // stride
    first, second = module(at_origin), module(moved)
    torch.testing.assert_close(
        second[:, :, dy // stride :, dx // stride :][:, :, :h, :w], first[:, :, :h, :w]
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(14, 14), (20, 20)], ids=["reference", "tiled"])
def test_autocast_and_bfloat16(stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = MHSA2d(32, stride=stride, feat_size=size)
    nn.init.normal_(module.qkv.weight, std=32**-0.5)
    x = torch.randn(2, 32, *size)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(x)
    mixed.float().sum().backward()
    assert mixed.dtype == torch.bfloat16
    assert module.pos_embed.height_rel.grad.isfinite().all()
    assert (mixed - expected).abs().max() < 0.03 * expected.abs().max()
    low = copy.deepcopy(module).bfloat16()(x.bfloat16())
    assert (low - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [(14, 14), (20, 20)], ids=["reference", "tiled"])
def test_keeps_the_memory_format(memory_format: torch.memory_format, size: tuple[int, int]) -> None:
    x = torch.randn(2, 32, *size).to(memory_format=memory_format).requires_grad_()
    out = MHSA2d(32, feat_size=size)(x)
    assert out.is_contiguous(memory_format=memory_format)
    out.sum().backward()
    assert x.grad.is_contiguous(memory_format=memory_format)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("size", [(4, 3), (20, 24)], ids=["reference", "tiled"])
def test_the_transforms_of_torch_func(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of each image, by vmap, and those of the batch; the operator of `tiled` has neither."""
    monkeypatch.setattr(kernels, "FEW", 0)
    module = layer(stride=2)
    x = torch.randn(3, 8, *size, dtype=torch.float64)
    parameters = dict(module.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, x).square().sum()

    torch.testing.assert_close(torch.func.vmap(module)(x[:, None])[:, 0], module(x))
    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    of_batch = torch.func.grad(loss)(parameters, x)
    of_images = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(of_batch[name], gradient)
        torch.testing.assert_close(of_images[name].sum(0), gradient)


def test_initial_values() -> None:
    torch.manual_seed(0)
    module = MHSA2d(512, feat_size=(64, 32))
    assert module.qkv.weight.std().item() == pytest.approx(0.01, rel=0.02)
    fan_in = MHSA2d(512, position=None, qkv_std="fan_in")
    assert fan_in.qkv.weight.std().item() == pytest.approx(512**-0.5, rel=0.02)
    fan_in.qkv_std = 0.02
    fan_in.reset_parameters()
    assert fan_in.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert module.pos_embed.height_rel.shape == (127, 128)
    assert module.pos_embed.width_rel.shape == (63, 128)
    assert module.pos_embed.height_rel.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert [name for name, _ in module.named_parameters()] == [
        "qkv.weight",
        "pos_embed.height_rel",
        "pos_embed.width_rel",
    ]
    assert module.no_weight_decay() == {"pos_embed.height_rel", "pos_embed.width_rel"}
    assert module.feat_size == (64, 32)


def test_copies_compute_the_same() -> None:
    module = layer(stride=2)
    x = torch.randn(1, 8, 5, 4, dtype=torch.float64)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(twin(x), module(x), rtol=0, atol=0)


def test_single_image_equals_the_same_image_in_a_batch() -> None:
    module = layer()
    x = torch.randn(3, 8, 17, 18, dtype=torch.float64)
    torch.testing.assert_close(torch.cat([module(image[None]) for image in x]), module(x))


def test_a_sharp_softmax_stays_finite() -> None:
    module = layer()
    module.qkv.weight.data *= 100
    x = torch.randn(1, 8, 17, 18, dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dim": 10, "heads": 4}, "dim=10 is not divisible by heads=4"),
        ({"heads": 0}, "heads=0: expected a positive number"),
        ({"stride": 3}, "stride=3: expected 1 or 2"),
        ({"position": "rotary"}, "'rotary'.*'relative', 'absolute' or None"),
        ({"position": None, "content": False}, "no logits"),
        ({"feat_size": None}, "needs feat_size"),
        ({"qkv_std": 0}, "expected a positive number or 'fan_in'"),
        ({"qkv_std": "fan_out"}, "expected a positive number or 'fan_in'"),
    ],
)
def test_bad_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MHSA2d(**{"dim": 8, "feat_size": (4, 4), **kwargs})


@pytest.mark.parametrize("shape", [(8, 4, 4), (2, 16, 8), (1, 8, 2, 4, 4), (1, 16, 4, 4)])
def test_bad_maps(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a map \(B, 8, H, W\)"):
        MHSA2d(8, feat_size=(4, 4))(torch.zeros(shape))


def test_oracle_by_hand() -> None:
    """Two cells, one head of width 1: the loops themselves against a softmax worked out by hand."""
    x = np.array([1.0, 2.0]).reshape(1, 1, 1, 2)
    weight = np.array([[1.0], [0.5], [3.0]])
    width = np.array([[-1.0], [0.0], [0.25]])
    out = oracle.mhsa(x, weight, 1, 1, True, relative=(np.zeros((1, 1)), width))
    first = np.exp([1 * 0.5, 1 * 1.0 + 1 * 0.25])
    second = np.exp([2 * 0.5 + 2 * -1.0, 2 * 1.0])
    expected = [first @ [3, 6] / first.sum(), second @ [3, 6] / second.sum()]
    np.testing.assert_allclose(out.ravel(), expected)
