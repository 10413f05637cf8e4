import pytest
import torch
from torch import nn
from torch.export import Dim

from botnet.layers import MHSA2d

pytestmark = pytest.mark.long

# At least three rows and columns: torch.export specialises on an output of one row (stride 2).
DYNAMIC = {"x": {2: Dim("height", min=3, max=100), 3: Dim("width", min=3, max=100)}}
MAPS = [(6, 8), (9, 5), (17, 20)]


def layer(**kwargs) -> MHSA2d:
    torch.manual_seed(0)
    module = MHSA2d(16, **{"feat_size": (6, 7), **kwargs}).eval()
    nn.init.normal_(module.qkv.weight, std=0.25)
    return module


@pytest.mark.parametrize("implementation", [None, "reference", "tiled", "sdpa"])
@pytest.mark.parametrize("stride", [1, 2])
def test_compiles_without_graph_breaks(stride: int, implementation: str) -> None:
    torch._dynamo.reset()  # it counts the compilations of all cases together
    module = layer(stride=stride)
    module.implementation = implementation
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for size in MAPS[:2]:
        x = torch.randn(2, 16, *size, requires_grad=True)
        upstream = torch.randn_like(module(x))
        expected = torch.autograd.grad(module(x), [x, *module.parameters()], upstream)
        found = torch.autograd.grad(compiled(x), [x, *module.parameters()], upstream)
        torch.testing.assert_close(compiled(x), module(x))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", [None, "reference", "tiled"])
@pytest.mark.parametrize("position", ["relative", "absolute"])
@pytest.mark.parametrize("stride", [1, 2])
def test_exports_with_dynamic_sides(stride: int, position: str, implementation: str | None) -> None:
    module = layer(stride=stride, position=position)
    module.implementation = implementation
    program = torch.export.export(module, (torch.randn(2, 16, 6, 8),), dynamic_shapes=DYNAMIC)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("botnet.relative_attention.default") == (implementation == "tiled")
    for size in MAPS:
        x = torch.randn(2, 16, *size)
        torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_onnx_runs_at_other_sizes(stride: int, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = layer(stride=stride)
    path = tmp_path / "layer.onnx"
    x = torch.randn(2, 16, 6, 8)
    torch.onnx.export(module, (x,), path, dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for size in MAPS:
        x = torch.randn(2, 16, *size)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), module(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python")
@pytest.mark.parametrize("stride", [1, 2])
def test_traces_a_map_for_which_the_default_is_tiled(stride: int) -> None:
    module = layer(stride=stride)
    x = torch.randn(2, 16, 18, 20)
    with torch.no_grad():
        traced = torch.jit.trace(module, x)
        torch.testing.assert_close(traced(x), module(x))
