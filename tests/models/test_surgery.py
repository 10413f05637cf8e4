"""Surgery replaces or inserts the chosen layers and leaves the rest of the network unchanged."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from botnet.layers import MHSA2d
from botnet.layers.non_local import NonLocal2d
from botnet.models import (
    bottleneck_transformer,
    fresh_parameters,
    insert_bot,
    insert_non_local,
    load_resnet,
)
from tests.support.networks import randomize_norms

pytestmark = pytest.mark.long

FAMILIES = [
    "resnet26",
    "resnet26d",
    "resnet26t",
    "resnet50c",
    "resnext50_32x4d",
    "seresnet50",
    "legacy_seresnet50",
    "ecaresnet26t",
    "resnetrs50",
    "wide_resnet50_2",
    "resnetblur50",
    "resnet50_gn",
    "torchvision resnet50",
    "torchvision resnext50_32x4d",
]


def build(name: str) -> nn.Module:
    if name.startswith("torchvision"):
        return torchvision.models.get_model(name.split()[1], weights=None)
    return timm.create_model(name)


@pytest.fixture(scope="module")
def resnet26() -> nn.Module:
    return randomize_norms(timm.create_model("resnet26", num_classes=10)).eval()


@pytest.fixture
def net(resnet26: nn.Module) -> nn.Module:
    return copy.deepcopy(resnet26)


def attention(model: nn.Module) -> dict[str, MHSA2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MHSA2d)}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_keep_every_other_module(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
        before = dict(model.named_modules())
        tensors = model.state_dict(keep_vars=True)
        returned = bottleneck_transformer(model)
    assert returned is model
    replaced = attention(model)
    assert list(replaced) == [f"layer4.{i}.conv2" for i in range(len(model.layer4))]
    inside = tuple(f"{name}." for name in replaced)
    after = {name: m for name, m in model.named_modules() if not name.startswith(inside)}
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before.keys() - replaced.keys())
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(inside)}
    now = model.state_dict(keep_vars=True)
    assert all(now[key] is tensor for key, tensor in kept.items())
    assert now.keys() - kept.keys() == {
        key + table
        for key in inside
        for table in ("qkv.weight", "pos_embed.height_rel", "pos_embed.width_rel")
    }


@pytest.mark.parametrize("name", ["resnet26d", "seresnet50", "legacy_seresnet50", "torchvision resnet50"])
def test_families_keep_every_value(name: str) -> None:
    model = build(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    bottleneck_transformer(model)
    after = model.state_dict()
    kept = before.keys() & after.keys()
    assert len(before) - len(kept) == len(model.layer4)
    assert all(torch.equal(after[key], before[key]) for key in kept)
    assert model(torch.randn(2, 3, 64, 96)).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_families_keep_their_strides(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
        x = torch.empty(1, 3, 224, 160)
        shapes: list[torch.Size] = []
        model.layer4.register_forward_hook(lambda _m, _x, y: shapes.append(y.shape))
        model(x)
        bottleneck_transformer(model, img_size=(224, 160))(x)
        bottleneck = model.layer4[0]
    assert shapes[0] == shapes[1]
    seen = (14, 10) if bottleneck.conv2.stride == 2 else shapes[0][2:]
    if name == "resnetblur50":  # its anti-aliasing layer does the striding, after the 3x3
        seen = (14, 10)
    assert bottleneck.conv2.feat_size == tuple(seen)
    assert model.layer4[1].conv2.feat_size == tuple(shapes[0][2:])


@pytest.mark.parametrize("name", FAMILIES)
def test_s1_doubles_the_last_map(name: str) -> None:
    with torch.device("meta"):
        plain, s1 = build(name), bottleneck_transformer(build(name), s1=True)
        shapes: list[torch.Size] = []
        for model in (plain, s1):
            model.layer4.register_forward_hook(lambda _m, _x, y: shapes.append(y.shape))
            model(torch.empty(1, 3, 192, 128))
    assert (shapes[0][2:], shapes[1][2:]) == ((6, 4), (12, 8))
    assert {layer.stride for layer in attention(s1).values()} == {1}
    assert len({layer.feat_size for layer in attention(s1).values()}) == 1
    if hasattr(s1, "feature_info"):
        assert [level["reduction"] for level in s1.feature_info][-2:] == [16, 16]


def test_putting_the_convolutions_back_gives_the_resnet() -> None:
    resnet50 = randomize_norms(timm.create_model("resnet50", num_classes=10)).eval()
    botnet50 = timm.create_model("botnet50", num_classes=10).eval()
    load_resnet(botnet50, resnet50.state_dict())
    x = torch.randn(2, 3, 96, 64)
    assert not torch.allclose(botnet50(x), resnet50(x))
    for block, original in zip(botnet50.layer4, resnet50.layer4, strict=True):
        block.conv2 = original.conv2
    assert torch.equal(botnet50(x), resnet50(x))


def test_blocks_with_zero_gamma_return_their_shortcut(resnet26: nn.Module, net: nn.Module) -> None:
    # float64: the attention's output may have another memory layout, in which convolutions round differently
    bottleneck_transformer(net.double())
    resnet26 = copy.deepcopy(resnet26).double()
    for block in net.layer4:
        nn.init.zeros_(block.bn3.weight)
        nn.init.zeros_(block.bn3.bias)
    image = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    c4 = resnet26.layer3(resnet26.layer2(resnet26.layer1(resnet26.maxpool(_stem(resnet26, image)))))
    c5 = resnet26.layer4[0].downsample(c4).relu()
    assert torch.allclose(net(image), resnet26.forward_head(c5), rtol=1e-12)


def _stem(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model.act1(model.bn1(model.conv1(image)))


def test_choice_of_stage_and_block(net: nn.Module) -> None:
    bottleneck_transformer(net, blocks=[-1], heads=8, position="absolute")
    bottleneck_transformer(net, stages=["c4"], blocks=[0], content=False, img_size=(320, 256))
    layers = attention(net)
    assert list(layers) == ["layer3.0.conv2", "layer4.1.conv2"]
    c4, c5 = layers.values()
    assert (c4.heads, c4.position, c4.content, c4.stride, c4.feat_size) == (4, "relative", False, 2, (40, 32))
    # 288 px is what timm's configuration of this network says
    size = net.pretrained_cfg["input_size"][1] // 32
    assert (c5.heads, c5.position, c5.content, c5.stride, c5.feat_size) == (
        8,
        "absolute",
        True,
        1,
        (size, size),
    )


def test_s1_with_one_block_removes_the_stride_of_the_stage(net: nn.Module) -> None:
    bottleneck_transformer(net, blocks=[1], s1=True)
    assert list(attention(net)) == ["layer4.1.conv2"]
    assert net.forward_features(torch.randn(1, 3, 64, 96)).shape == (1, 2048, 4, 6)


def test_s1_in_c4_too() -> None:
    with torch.device("meta"):
        net = bottleneck_transformer(timm.create_model("resnet26"), stages=("c4", "c5"), s1=True)
        assert net.forward_features(torch.empty(1, 3, 64, 96)).shape[2:] == (8, 12)
    assert [level["reduction"] for level in net.feature_info] == [2, 4, 8, 8, 8]


def test_dilated_network_keeps_its_output_stride() -> None:
    net = bottleneck_transformer(timm.create_model("resnet26", output_stride=16), img_size=224)
    assert [(a.stride, a.feat_size) for a in attention(net).values()] == [(1, (14, 14))] * 2
    assert net.forward_features(torch.randn(1, 3, 64, 96)).shape[2:] == (4, 6)


def test_shortcut_activation(resnet26: nn.Module, net: nn.Module) -> None:
    bottleneck_transformer(net, shortcut_act=True)
    x = torch.randn(1, 1024, 8, 8)
    expected = resnet26.layer4[0].downsample(x).relu()
    assert torch.equal(net.layer4[0].downsample(x), expected)
    assert (expected == 0).any()
    tv = bottleneck_transformer(build("torchvision resnet50"), shortcut_act=True)
    assert isinstance(tv.layer4[0].downsample[-1], nn.ReLU)


def test_mode_dtype_and_device_are_kept_and_no_hooks_remain(net: nn.Module) -> None:
    net.train()
    net.layer1.eval()
    net.to(torch.bfloat16)
    bottleneck_transformer(net)
    assert net.training
    assert not net.layer1.training
    assert net.layer4[0].conv2.training
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert not any(module._forward_pre_hooks for module in net.modules())
    with torch.device("meta"):
        blank = bottleneck_transformer(timm.create_model("resnet26"))
    assert all(tensor.is_meta for tensor in blank.state_dict().values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {}, "BasicBlock"),
        ("vit_tiny_patch16_224", {}, "VisionTransformer has no stage c5"),
        ("skresnext50_32x4d", {}, "SelectiveKernelBottleneck"),
        ("legacy_senet154", {}, "from 1024 to 2048 channels"),
        ("resnet26", {"stages": ["c6"]}, "unknown stage 'c6'"),
        ("resnet26", {"blocks": [2]}, "c5 has 2 blocks, there is no block 2"),
        ("resnet26", {"heads": 3}, "3 heads do not divide the width 512"),
        ("resnet26", {"heads": 0}, "0 heads do not divide the width 512"),
        ("botnet26", {}, "c5 block 0 is an attention block already"),
    ],
)
def test_refused_networks_are_unchanged(name: str, options: dict, message: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    before = str(model)
    with pytest.raises(ValueError, match=message):
        bottleneck_transformer(model, s1=True, **options)
    assert str(model) == before


@pytest.mark.parametrize("name", ["resnet26", "torchvision resnet50"])
@pytest.mark.parametrize("insert", [insert_bot, insert_non_local])
def test_inserted_blocks_start_as_identity_and_keep_names(insert, name: str) -> None:
    model = randomize_norms(build(name)).eval().double()
    keys = list(model.state_dict())
    x = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    expected = model(x)
    insert(model, stages=("c4", "c5"))
    assert [key for key in model.state_dict() if "_bot." not in key and "_non_local." not in key] == keys
    assert torch.allclose(model(x), expected, rtol=1e-10)
    for layer in (model.layer3, model.layer4):
        new = layer[-2]
        assert isinstance(new, NonLocal2d) or isinstance(new.conv2, MHSA2d)
        last = new.norm if isinstance(new, NonLocal2d) else new.bn3
        nn.init.ones_(last.weight)
        assert not torch.allclose(model(x), expected)
        nn.init.zeros_(last.weight)


def test_inserted_block_has_new_weights(net: nn.Module) -> None:
    insert_bot(net, img_size=(256, 192))
    old, new = net.layer3[-1], net.layer3[-2]
    assert new.conv2.feat_size == (16, 12)
    assert new.conv1.weight.shape == old.conv1.weight.shape
    assert not torch.equal(new.conv1.weight, old.conv1.weight)
    assert torch.equal(new.bn1.running_var, torch.ones(256))
    net.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert new.bn3.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("source", ["timm", "torchvision"])
@pytest.mark.parametrize("insert", [insert_bot, insert_non_local])
def test_inserted_blocks_learn_in_a_frozen_network(insert, source: str) -> None:
    if source == "timm":
        net = freeze_batch_norm_2d(timm.create_model("resnet26"))
    else:
        net = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
    insert(net.requires_grad_(False))
    new = net.layer3[-2]
    assert all(p.requires_grad for p in new.parameters())
    nn.init.ones_(new.norm.weight if isinstance(new, NonLocal2d) else new.bn3.weight)
    net.train()(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in new.named_parameters() if not name.endswith("bias"))
    norms = [m for m in new.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (1 if isinstance(new, NonLocal2d) else 3)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in new.modules())


def test_inserted_blocks_are_named_after_their_predecessor() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet26")
        for insert in (insert_bot, insert_non_local, insert_bot, insert_non_local, insert_bot):
            insert(model)
    expected = ["0", "0_bot", "0_non_local", "0_bot_2", "0_non_local_2", "0_bot_3", "1"]
    assert [name for name, _ in model.layer3.named_children()] == expected
    new = {".".join(name.split(".")[:2]) for name in fresh_parameters(model)}
    assert new == {f"layer3.{name}" for name in expected[1:-1]}


def test_insertion_needs_two_blocks() -> None:
    with torch.device("meta"):
        model = timm.create_model("botnet_tiny")
    before = str(model)
    with pytest.raises(ValueError, match="c2 has a single block"):
        insert_non_local(model, stages=("c3", "c2"))
    with pytest.raises(ValueError, match="the last block of c5 is an attention block already"):
        insert_bot(model, stages=("c4", "c5"))
    assert str(model) == before
