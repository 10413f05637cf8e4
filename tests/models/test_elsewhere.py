"""The networks in other tools: transformers, segmentation_models_pytorch, ONNX, torch.compile."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.models import get_notrace_functions, get_notrace_modules
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import botnet  # noqa: F401 (registers the networks)
from botnet.layers import MHSA2d
from botnet.layers.torchscript import scriptable
from botnet.models import bottleneck_transformer, fresh_parameters, load_resnet
from tests.support.networks import randomize_norms

pytestmark = pytest.mark.long


def test_detr_trains_at_two_sizes() -> None:
    """Section 2 leaves a BoTNet in DETR for the future."""
    transformers = pytest.importorskip("transformers", reason="transformers brings DETR")
    config = transformers.DetrConfig(
        backbone="botnet50",
        use_timm_backbone=True,
        use_pretrained_backbone=False,
        encoder_layers=1,
        decoder_layers=1,
        d_model=32,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
        num_labels=3,
    )
    torch.manual_seed(0)
    detr = transformers.DetrForObjectDetection(config)
    # DETR freezes the normalisation: without loaded weights, gammas that start at zero would stay zero.
    resnet = randomize_norms(timm.create_model("resnet50"))
    fresh = load_resnet(detr.model.backbone.model, resnet.state_dict())
    assert fresh == fresh_parameters(detr.model.backbone.model)
    optimizer = torch.optim.SGD(detr.parameters(), lr=1e-4)
    losses = []
    for height, width in ((64, 96), (128, 64)):
        objects = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])}
        loss = detr(pixel_values=torch.randn(1, 3, height, width), labels=[objects]).loss
        optimizer.zero_grad()
        loss.backward()
        attention = [p for name, p in detr.named_parameters() if "conv2.qkv" in name]
        assert len(attention) == 3
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in attention)
        optimizer.step()
        losses.append(loss.item())
    assert torch.tensor(losses).isfinite().all()


def test_segmentation_models() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="a consumer of timm's features")
    net = smp.Unet("tu-botnet_tiny", encoder_weights=None, decoder_channels=(16,) * 5, classes=2)
    mask = net(torch.randn(2, 3, 64, 96))
    assert mask.shape == (2, 2, 64, 96)
    mask.square().mean().backward()
    assert net.encoder.model.layer1[0].conv1.weight.grad is not None
    dilated = smp.DeepLabV3("tu-botnet_tiny", encoder_weights=None, encoder_output_stride=16, classes=2)
    assert dilated.eval()(torch.randn(1, 3, 96, 64)).shape == (1, 2, 96, 64)


def test_onnx_classifier_of_any_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime", reason="runs the exported file")
    model = randomize_norms(timm.create_model("botnet_tiny", num_classes=10)).eval()
    for module in model.modules():
        if isinstance(module, MHSA2d):
            module.implementation = "reference"  # ONNX has no operation for the tiled kernel
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    path = tmp_path / "botnet.onnx"
    torch.onnx.export(
        model, (torch.randn(2, 3, 96, 128),), path, dynamo=True, dynamic_shapes=(any_size,), verbose=False
    )
    session = runtime.InferenceSession(path)
    for batch, height, width in ((1, 64, 96), (3, 224, 160)):
        x = torch.randn(batch, 3, height, width)
        (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(logits), model(x), rtol=1e-3, atol=1e-4)


def test_compiled_botnet50_is_one_graph() -> None:
    # Only the graph and its gradients are tested here; the layer's own tests compile it.
    model = randomize_norms(timm.create_model("botnet50", num_classes=10)).double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 64, 96, dtype=torch.double)
    expected = torch.autograd.grad(model(x).square().sum(), model.layer4[0].conv2.qkv.weight)[0]
    found = torch.autograd.grad(compiled(x).square().sum(), model.layer4[0].conv2.qkv.weight)[0]
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("name", ["botnet_tiny", "resnet50_nl"])
def test_torchscript(name: str, tmp_path: Path) -> None:
    model = randomize_norms(timm.create_model(name, num_classes=10)).eval()
    before = str(model)
    torch.jit.script(model).save(tmp_path / "net.pt")
    scripted = torch.jit.load(tmp_path / "net.pt")
    with torch.no_grad():
        for size in ((64, 96), (96, 160)):
            x = torch.randn(2, 3, *size)
            assert torch.allclose(scripted(x), model(x), rtol=1e-3, atol=1e-4)
    assert str(model) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("name", ["botnet_tiny", "botnet50_absolute", "resnet50_nl"])
def test_torchscript_after_fx(name: str) -> None:
    """As timm's own tests script a traced network."""
    model = randomize_norms(timm.create_model(name, num_classes=10)).eval()
    leaves = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
    last = get_graph_node_names(model, tracer_kwargs=leaves)[1][-1]
    traced = create_feature_extractor(
        model, return_nodes={last: "logits"}, tracer_kwargs={**leaves, "param_shapes_constant": True}
    )
    scripted = torch.jit.script(traced)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(scripted(x)["logits"], model(x), rtol=1e-3, atol=1e-4)
    assert "Scriptable" not in str(model)


def test_torchvision_extracts_features_of_a_converted_network() -> None:
    """torch.fx cannot follow the layer, so that it is a leaf."""
    model = bottleneck_transformer(randomize_norms(torchvision.models.resnet50(weights=None))).eval()
    extractor = create_feature_extractor(
        model, {"layer4": "c5", "fc": "logits"}, tracer_kwargs={"leaf_modules": [MHSA2d]}
    )
    with torch.no_grad():
        for size in ((96, 64), (64, 128)):
            x = torch.randn(1, 3, *size)
            found = extractor(x)
            assert found["c5"].shape == (1, 2048, size[0] // 32, size[1] // 32)
            assert torch.equal(found["logits"], model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_torchscript_of_features() -> None:
    model = randomize_norms(timm.create_model("botnet_tiny", features_only=True)).eval()
    scripted = torch.jit.script(scriptable(model))
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        pairs = zip(scripted(x), model(x), strict=True)
        assert all(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4) for ours, theirs in pairs)


def test_channels_last_and_autocast() -> None:
    model: nn.Module = randomize_norms(timm.create_model("botnet_tiny", num_classes=10)).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        model.to(memory_format=torch.channels_last)
        assert torch.allclose(model(x.to(memory_format=torch.channels_last)), expected, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            lower = model(x)
    assert lower.dtype == torch.bfloat16
    assert (lower - expected).abs().max() < 0.1 * expected.abs().max()
