"""Multiply-adds against torch's own counter, by hand, and of wrong networks."""

import io

import pytest
import timm
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from botnet.layers import MHSA2d
from botnet.layers.non_local import NonLocal2d
from botnet.models import bottleneck_transformer
from botnet.models.complexity import COMPLETE, info, multiply_adds, render_info, total


def text(renderable: object) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "name", ["resnet50", "botnet_tiny", "botnet50_qk", "botnet_t3", "resnet50_nl", "resnet50_bot_c4"]
)
def test_equals_torchs_counter(name: str) -> None:
    """torch counts the operations that run; outside the attention both counts must be equal."""
    model = timm.create_model(name).eval()
    size = (64, 96)
    counts = multiply_adds(model, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, *size))
    # Inside the attention, the number of operations depends on the kernel.
    attention = {layer for layer, kind in counts if kind == "qkv"}
    hooked = sum(n for (layer, kind), n in counts.items() if layer not in attention and kind in COMPLETE)
    inside = sum(
        operations
        for module, kinds in counter.get_flop_counts().items()
        if module.partition(".")[2] in attention
        for operations in kinds.values()
    )
    assert counter.get_total_flops() - inside == 2 * hooked


def test_attention_by_hand() -> None:
    """A 4x6 map of 8 channels with stride 2 and 2 heads, each product written out."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), MHSA2d(8, 2, stride=2, feat_size=(4, 6)))
    counts = {kind: n for (_, kind), n in multiply_adds(model, (4, 6)).items()}
    cells, heads, d = 24, 2, 4
    assert counts == {
        "conv": 24 * 3 * 8,
        "qkv": cells * 8 * 24,
        "content": heads * cells * cells * d,
        "position": heads * cells * (7 + 11) * d,
        "dense position": heads * 2 * cells * cells * d,
        "values": heads * cells * cells * d,
    }


def test_non_local_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), NonLocal2d(8))
    counts = multiply_adds(model, (4, 6))
    assert total(counts) == 24 * 3 * 8 + 24 * (3 * 8 * 4 + 4 * 8) + 2 * 24 * 24 * 4
    model[1] = NonLocal2d(8, project_values=False)
    assert total(multiply_adds(model, (4, 6))) == 24 * 3 * 8 + 24 * (2 * 8 * 4 + 8 * 8) + 24 * 24 * (4 + 8)


def test_a_layer_that_runs_twice_counts_twice() -> None:
    conv = nn.Conv2d(3, 3, 1, bias=False)
    assert total(multiply_adds(nn.Sequential(conv, conv), (8, 8))) == 2 * 64 * 9


def test_a_wrong_network_gives_a_wrong_count() -> None:
    with torch.device("meta"):
        right, strided, shallow, wide = (timm.create_model("botnet50", img_size=1024) for _ in range(4))
    strided.layer4[0].conv2.stride, strided.layer4[0].conv1.stride = 1, (2, 2)
    del shallow.layer3[-1]
    with torch.device("meta"):
        wide.layer2[1].conv2 = nn.Conv2d(128, 128, 5, padding=2, bias=False)
    counts = [total(multiply_adds(model, (1024, 1024))) for model in (right, strided, shallow, wide)]
    assert len(set(counts)) == 4
    assert counts[0] / 1e9 == pytest.approx(102.99, abs=0.01)


def test_counting_does_not_change_the_network() -> None:
    model = timm.create_model("botnet_tiny")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    multiply_adds(model, (64, 96))
    assert model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_info_totals_equal_the_network() -> None:
    counted = info("botnet50", (1024, 1024))
    assert [stage.name for stage in counted.stages] == ["c1", "c2", "c3", "c4", "c5", "head"]
    assert [stage.output[1:] for stage in counted.stages[:5]] == [(1024 // 2**i,) * 2 for i in range(1, 6)]
    assert counted.stages[4].blocks == "3 × [1×1, 512 | MHSA, 512 | 1×1, 2048]"
    with torch.device("meta"):
        model = timm.create_model("botnet50", img_size=1024)
    assert counted.params == sum(p.numel() for p in model.parameters())
    assert counted.madds == total(multiply_adds(model, (1024, 1024)))
    shown = text(render_info(counted))
    assert "102.991 G" in shown


def test_info_of_other_networks() -> None:
    assert info("botnet_t7").size == (384, 384)
    non_local = info("resnet50_nl").stages[3].blocks
    assert non_local == (
        "5 × [1×1, 256 | 3×3, 256 | 1×1, 1024]; Non-Local, 1024; [1×1, 256 | 3×3, 256 | 1×1, 1024]"
    )
    assert "[1×1, 64 | 3×3, 64 | 1×1, 256 | SE]" in info("botnet_t3").stages[1].blocks
    basic = info("resnet18", (32, 64))
    assert basic.stages[1].blocks == "3×3 max pool; 2 × [3×3, 64 | 3×3, 64]"
    assert basic.stages[4].output == (512, 1, 2)
    text(render_info(basic))
    with pytest.raises(ValueError, match=r"no network 'resnet5000' in timm or here; did you mean resnet50"):
        info("resnet5000")
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 is not a ResNet"):
        info("vit_tiny_patch16_224")


def test_converted_network_counts_like_the_registered_one() -> None:
    with torch.device("meta"):
        converted = bottleneck_transformer(timm.create_model("resnet50"), img_size=224)
        registered = timm.create_model("botnet50")
    assert multiply_adds(converted, (224, 224)) == multiply_adds(registered, (224, 224))
