"""Weights from other projects compute the same function here; files that could run code are refused."""

import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from bottleneck_transformer_pytorch.bottleneck_transformer_pytorch import Attention as PyPIAttention
from safetensors.torch import save_file
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import nn

from botnet.errors import CheckpointError
from botnet.layers import MHSA2d, resize_position_tables
from botnet.models import (
    adopt_attention,
    bottleneck_transformer,
    fresh_parameters,
    from_pretrained,
    insert_bot,
    insert_non_local,
    load_resnet,
    load_weights,
    push_to_hub,
    read_weights,
    save_pretrained,
    save_weights,
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def resnet26() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet26")


def same(model: nn.Module, other: nn.Module, fresh: list[str]) -> bool:
    """Whether all tensors but the fresh parameters are equal."""
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in ours if key not in fresh)


def test_everything_loads_but_the_replaced_layers(resnet26: nn.Module, tmp_path: Path) -> None:
    save_file(resnet26.state_dict(), tmp_path / "resnet26.safetensors")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in resnet26.state_dict().items()}}, tmp_path / "r.pth"
    )
    for source in (tmp_path / "resnet26.safetensors", str(tmp_path / "r.pth"), resnet26.state_dict()):
        model = timm.create_model("botnet26")
        fresh = load_resnet(model, source)
        assert fresh == [
            f"layer4.{i}.conv2.{name}"
            for i in (0, 1)
            for name in ("qkv.weight", "pos_embed.height_rel", "pos_embed.width_rel")
        ]
        assert fresh == fresh_parameters(model)
        assert same(model, resnet26, fresh)


def test_loads_into_features_inputs_and_classes(resnet26: nn.Module) -> None:
    features = timm.create_model("botnet26", features_only=True, out_indices=(1, 2, 3))
    assert load_resnet(features, resnet26.state_dict()) == []
    assert same(features, resnet26, [])

    grey = timm.create_model("botnet26", in_chans=1, num_classes=10)
    fresh = load_resnet(grey, resnet26.state_dict())
    assert fresh[-2:] == ["fc.weight", "fc.bias"]
    assert torch.allclose(grey.conv1.weight, resnet26.conv1.weight.sum(1, keepdim=True))
    assert same(grey, resnet26, [*fresh, "conv1.weight"])


@pytest.mark.parametrize("name", ["convnext_atto", "test_byobnet"])
def test_any_file_of_a_network_fits_other_inputs(name: str, tmp_path: Path) -> None:
    """A .safetensors file does not begin with the first layer."""
    source = timm.create_model(name)
    stem = f"{source.pretrained_cfg['first_conv']}.weight"
    save_weights(source, tmp_path / "net.safetensors")
    grey = timm.create_model(name, in_chans=1)
    assert load_resnet(grey, tmp_path / "net.safetensors") == []
    assert torch.allclose(grey.state_dict()[stem], source.state_dict()[stem].sum(1, keepdim=True))
    assert same(grey, source, [stem])


def test_loads_around_inserted_blocks(resnet26: nn.Module) -> None:
    model = insert_non_local(insert_bot(timm.create_model("resnet26"), stages=("c4", "c5")))
    fresh = load_resnet(model, resnet26.state_dict())
    assert {".".join(name.split(".")[:2]) for name in fresh} == {
        "layer3.0_bot",
        "layer3.0_non_local",
        "layer4.0_bot",
    }
    ours = model.state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in resnet26.state_dict().items())


def test_a_botnet_takes_the_attention_of_another(tmp_path: Path) -> None:
    """Such as one that was trained on ImageNet, as the backbone of a detector at another size."""
    torch.manual_seed(0)
    source, model = timm.create_model("botnet_tiny"), timm.create_model("botnet_tiny")
    assert load_resnet(model, source.state_dict()) == []
    assert same(model, source, [])

    save_weights(source, tmp_path / "net.safetensors")
    backbone = timm.create_model("botnet_tiny", features_only=True, img_size=320)
    with pytest.warns(UserWarning, match="resized on loading: "):
        assert load_resnet(backbone, tmp_path / "net.safetensors") == []
    resize_position_tables(source, (20, 20))
    assert same(backbone, source, [])


def test_blocks_that_the_weights_lack_are_fresh() -> None:
    c5 = insert_bot(timm.create_model("botnet_tiny"))
    model = bottleneck_transformer(insert_bot(timm.create_model("botnet_tiny")), stages=["c3"])
    fresh = load_resnet(model, c5.state_dict())
    assert {name.rpartition(".conv2.")[0] for name in fresh} == {"layer2.0", "layer2.1"}
    assert same(model, c5, fresh)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("botnet50_qk", r"lack: layer4\.0\.conv2\.pos_embed\.height_rel"),
        ("botnet50_absolute", r"lack: layer4\.0\.conv2\.pos_embed\.height_rel"),
        ("eight heads", r"have in other shapes: layer4\.0\.conv2\.pos_embed\.height_rel"),
    ],
)
def test_attention_of_another_form_is_refused(name: str, message: str) -> None:
    with torch.device("meta"):
        model = timm.create_model("botnet50")
        if name == "eight heads":
            other = bottleneck_transformer(timm.create_model("resnet50"), heads=8)
        else:
            other = timm.create_model(name)
    with pytest.raises(CheckpointError, match=message):
        load_resnet(model, other.state_dict())
    if name == "botnet50_qk":
        with pytest.raises(CheckpointError, match=r"have beyond it: layer4\.0\.conv2\.pos_embed"):
            load_resnet(other, model.state_dict())


def test_damaged_tables_are_refused() -> None:
    state = timm.create_model("botnet_tiny").state_dict()
    state["layer4.0.conv2.pos_embed.height_rel"].fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"layer4\.0\.conv2\.pos_embed\.height_rel has NaN entries"):
        load_resnet(timm.create_model("botnet_tiny"), state)


def test_loads_squeeze_excite_networks() -> None:
    source = timm.create_model("senet_s0")
    model = timm.create_model("botnet_t3", num_classes=0)
    with pytest.raises(CheckpointError, match=r"the weights lack: layer4\.3"):  # T3 has more blocks in c5
        load_resnet(model, source.state_dict())
    model = bottleneck_transformer(timm.create_model("senet_s0"))
    for block in model.layer4:
        block.se = None
    assert same(model, source, load_resnet(model, source.state_dict()))


def test_torchvision_enum_and_timm_tag(resnet26: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    original = torchvision.models.resnet50(weights=None)
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_a, **_k: original.state_dict())
    model = timm.create_model("botnet50")
    assert same(model, original, load_resnet(model, weights))

    created = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: created.append((a, k)) or resnet26)
    load_resnet(create("botnet26"), "resnet26.bt_in1k")
    assert created == [(("resnet26.bt_in1k",), {"pretrained": True})]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet50", "the weights have beyond it: layer1.2.bn1.bias, layer1.2.bn1.running_mean"),
        ("resnet26d", "the weights lack: conv1.weight, layer1.0.downsample.0.weight"),
    ],
)
def test_another_network_is_refused(source: str, message: str) -> None:
    model = timm.create_model("botnet26")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=re.escape(f"not the weights of this BoTNet; {message}")):
        load_resnet(model, timm.create_model(source).state_dict())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_another_width_is_refused() -> None:
    model = timm.create_model("botnet50")
    with pytest.raises(CheckpointError, match=r"the weights have in other shapes: layer1\.0\.bn1\.bias"):
        load_resnet(model, timm.create_model("wide_resnet50_2").state_dict())


@pytest.mark.parametrize("name", ["test_convnext", "resnet18d", "test_byobnet"])
def test_any_network_takes_its_own_weights(name: str) -> None:
    """Its extractor has other names: timm makes one level of some."""
    torch.manual_seed(0)
    whole = timm.create_model(name)
    extractor = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1))
    images = torch.randn(1, 3, 64, 64)
    assert load_resnet(extractor, whole.state_dict()) == []
    expected = whole.eval().forward_intermediates(images, indices=4, intermediates_only=True)
    for ours, theirs in zip(extractor.eval()(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(CheckpointError, match=r"not the weights of this .* \(0 of \d+ tensors fit\)"):
        load_resnet(extractor, timm.create_model("botnet_tiny").state_dict())


def test_the_backbone_of_a_torchvision_detector_is_taken(tmp_path: Path) -> None:
    """COCO weights from a file."""
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    model = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3, 4))
    assert load_resnet(model, tmp_path / "coco.pth") == []
    assert same(model, theirs.backbone.body, [])
    with pytest.raises(CheckpointError, match=r"coco\.pth: not the weights of this .*; the weights lack"):
        load_resnet(timm.create_model("resnet101", features_only=True), tmp_path / "coco.pth")


@pytest.mark.parametrize("source", [{}, {"fc.weight": torch.ones(1000, 2048)}])
def test_weights_without_a_kernel_are_refused(source: dict) -> None:
    with torch.device("meta"):
        model = timm.create_model("botnet26")
    with pytest.raises(CheckpointError, match=r"the weights lack: bn1\.bias"):
        load_resnet(model, source)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_timm_layer(stride: int, scaled: bool) -> None:
    torch.manual_seed(0)
    theirs = BottleneckAttn(64, feat_size=(8, 6), stride=stride, num_heads=2, scale_pos_embed=scaled).double()
    nn.init.normal_(theirs.qkv.weight)
    ours = adopt_attention(theirs)
    x = torch.randn(2, 64, 8, 6, dtype=torch.float64)
    assert isinstance(ours, MHSA2d)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-9)
    assert ours(torch.randn(1, 64, 3, 11, dtype=torch.float64)).isfinite().all()


def test_adopted_weights_stay_frozen() -> None:
    model = timm.create_model("botnet26t_256").requires_grad_(False)
    first = next(name for name, module in model.named_modules() if isinstance(module, BottleneckAttn))
    model.get_submodule(first).pos_embed.width_rel.requires_grad_(True)
    trained = [name for name, p in adopt_attention(model).named_parameters() if p.requires_grad]
    assert trained == [f"{first}.pos_embed.width_rel"]


@pytest.mark.parametrize("relative", [False, True])
def test_pypi_layer(relative: bool) -> None:
    torch.manual_seed(0)
    theirs = PyPIAttention(dim=64, fmap_size=(8, 6), heads=2, dim_head=32, rel_pos_emb=relative).double()
    nn.init.normal_(theirs.to_qkv.weight)
    ours = adopt_attention(theirs)
    x = torch.randn(2, 64, 8, 6, dtype=torch.float64)
    assert isinstance(ours, MHSA2d)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-9)


def test_timm_network() -> None:
    torch.manual_seed(0)
    model = timm.create_model("botnet26t_256", num_classes=5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # a zero gamma would hide the attention
            nn.init.constant_(module.weight, 0.7)
    x = torch.randn(1, 3, 256, 256)
    expected = model(x)
    without = adopt_attention(model)
    assert without is model
    assert not any(isinstance(module, BottleneckAttn) for module in model.modules())
    assert torch.allclose(model(x), expected, rtol=1e-4)
    first = next(module for module in model.modules() if isinstance(module, MHSA2d))
    nn.init.zeros_(first.qkv.weight)
    assert not torch.allclose(model(x), expected, rtol=1e-2)
    assert model(torch.randn(1, 3, 192, 96)).shape == (1, 5)


@pytest.mark.parametrize(
    "layer",
    [
        BottleneckAttn(64, feat_size=(4, 4), qk_ratio=0.5),
        BottleneckAttn(64, dim_out=128, feat_size=(4, 4)),
        BottleneckAttn(64, feat_size=(4, 4), qkv_bias=True),
        PyPIAttention(dim=64, fmap_size=(4, 4), heads=4, dim_head=8),
    ],
    ids=["narrow queries", "other width", "bias", "narrow heads"],
)
def test_foreign_layers_of_another_form_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"0: expected queries, keys and values of the input's 64 channels"):
        adopt_attention(nn.Sequential(layer))


def test_safetensors_round_trip(tmp_path: Path) -> None:
    model = timm.create_model("botnet_tiny").to(memory_format=torch.channels_last)
    save_weights(model, tmp_path / "net.safetensors")
    other = timm.create_model("botnet_tiny")
    load_weights(other, tmp_path / "net.safetensors")
    assert same(other, model, [])


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_hub_folder_round_trip(tmp_path: Path, prefix: str) -> None:
    model = timm.create_model("botnet_tiny", num_classes=5, in_chans=1, img_size=96).eval()
    save_pretrained(model.to(memory_format=torch.channels_last), tmp_path)
    model.to(memory_format=torch.contiguous_format)  # for the same rounding
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    other = from_pretrained(f"{prefix}{tmp_path}").eval()
    x = torch.randn(1, 1, 64, 96)
    assert torch.equal(other(x), model(x))
    assert other.layer4[0].conv2.feat_size == model.layer4[0].conv2.feat_size == (6, 6)
    assert from_pretrained(f"{prefix}{tmp_path}", num_classes=2)(x).shape == (1, 2)


def test_broken_hub_folder(tmp_path: Path) -> None:
    save_pretrained(timm.create_model("botnet_tiny"), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=f"local-dir:{tmp_path}: no network can be loaded from it"):
        from_pretrained(tmp_path)
    for config in ("{", "{}", "[]", '{"architecture": "resnet_tiny", "pretrained_cfg": {"unknown": 1}}'):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match=f"local-dir:{tmp_path}: no network can be loaded from it"):
            from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        from_pretrained(tmp_path)


def test_hub_gets_safetensors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("botnet.models.hub.push_to_hf_hub", lambda *a, **k: calls.append((a[1:], k)))
    push_to_hub(timm.create_model("botnet_tiny"), "me/botnet", private=True)
    assert calls == [(("me/botnet",), {"private": True, "safe_serialization": True})]
    names = []
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: names.append(a[0]))
    from_pretrained("me/botnet")
    from_pretrained("hf-hub:me/botnet")
    assert names == ["hf-hub:me/botnet"] * 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("resnet26", bottleneck_transformer),
        ("botnet26", insert_bot),
        ("botnet26t_256", adopt_attention),
        ("botnet_tiny", lambda model: resize_position_tables(model, (20, 20)) and model),
        ("botnet26", lambda model: timm.create_model("botnet26", features_only=True)),
        (None, lambda _: nn.Conv2d(3, 4, 1)),
    ],
    ids=["converted", "inserted", "adopted", "resized", "features", "no name"],
)
def test_a_network_that_its_name_does_not_build_is_not_saved(
    name: str | None, change, tmp_path: Path
) -> None:
    model = change(None if name is None else timm.create_model(name))
    expected = f"not what timm builds by the name {name!r}" if name else "not built by timm"
    with pytest.raises(ValueError, match=f"{expected}.*save_weights"):
        save_pretrained(model, tmp_path / "net")
    with pytest.raises(ValueError, match="save_weights"):
        push_to_hub(model, "me/net")
    assert not (tmp_path / "net").exists()


class Trap:
    """A pickle that would write a file when read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_unsafe_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    written = tmp_path / "written"
    torch.save({"weight": torch.ones(1), "extra": Trap(written)}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match=r"trap\.pth: refused.*runs whatever code.*safetensors"):
        read_weights(tmp_path / "trap.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Trap(written)))
    with pytest.raises(CheckpointError, match=r"plain\.pkl: "):
        load_resnet(timm.create_model("botnet_tiny"), tmp_path / "plain.pkl")
    assert not written.exists()


def test_errors_name_bad_files(tmp_path: Path) -> None:
    for kind in (CheckpointError, FileNotFoundError):
        with pytest.raises(kind, match=r"gone\.pth: no such file, and no network of this name in timm"):
            load_resnet(timm.create_model("botnet_tiny"), "gone.pth")
        with pytest.raises(kind, match=r"gone\.pth: no such file$"):
            read_weights("gone.pth")
    intact = tmp_path / "intact.safetensors"
    save_file({"weight": torch.ones(100)}, intact)
    for name, content in {
        "cut.safetensors": intact.read_bytes()[:200],
        "text.safetensors": b"not weights",
        "empty.pth": b"",
        "page.pth": b"<!DOCTYPE html><html>",
        "text.pth": b"hello world",
        "noise.pth": b"\x80\x02X\x01\0\0\0\xff.",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: damaged, or not a file of weights"):
            read_weights(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"list\.pth: expected a dictionary of tensors, found list"):
        read_weights(tmp_path / "list.pth")


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(CheckpointError, match=r"resnet50\.tv_in1k: its weights cannot be fetched .* a file"):
        load_resnet(torch.nn.Identity(), "resnet50.tv_in1k")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("resnet26.foo", r"Invalid pretrained tag \(foo\)"), ("botnet26", "No pretrained weights exist")],
)
def test_names_without_weights_are_refused(name: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^{name}: {reason} for \w+; name another network, or a file"):
        load_resnet(torch.nn.Identity(), name)
