"""Every registered network supports what timm's own networks support."""

import dataclasses
import subprocess
import sys

import pytest
import timm
import torch
from timm.layers import SEModule
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

import botnet  # noqa: F401 (registers the networks)
from botnet.layers import MHSA2d
from botnet.layers.non_local import NonLocal2d
from botnet.models import NETWORKS

pytestmark = pytest.mark.long

# One of each kind: attention in place, without stride, inserted; and Non-Local
KINDS = ["botnet_tiny", "botnet_s1_50", "resnet50_bot_c4_c5", "resnet50_nl"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def tiny(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("botnet_tiny", **options)


@pytest.mark.parametrize("order", ["import botnet, timm", "import timm, botnet"])
def test_import_registers(order: str) -> None:
    program = f"{order}\nprint(timm.is_model('botnet50'), len(timm.list_models(module='zoo')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(len(NETWORKS))]


# The same blocks as a smaller network, but more of them: tested on the meta device only.
LARGE = [
    "botnet152",
    "botnet200",
    *(f"botnet_t{i}" for i in (4, 5, 6, 7)),
    *(f"senet_s{i}" for i in range(1, 6)),
]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LARGE])
def test_builds_trains_and_reloads(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    for module in model.modules():  # a new residual branch has zero weight, and nothing in it gets gradients
        if hasattr(module, "bn3"):
            nn.init.ones_(module.bn3.weight)
        if isinstance(module, NonLocal2d):
            nn.init.ones_(module.norm.weight)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    queries = [
        gradient for name, gradient in gradients.items() if name.endswith(("qkv.weight", "query.weight"))
    ]
    assert all(gradient.abs().sum() > 0 for gradient in queries)
    assert len(queries) == sum(isinstance(m, MHSA2d | NonLocal2d) for m in model.modules())

    model.eval()
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 33)
        expected = model(x)
    assert expected.shape == (1, 3)
    with torch.device("meta"):
        other = timm.create_model(name, num_classes=3)
    other.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), expected)


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_build_train_and_reload(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3)
        for x in (torch.empty(2, 3, 32, 32), torch.empty(2, 3, 64, 33)):
            logits = model(x)
            assert logits.shape == (2, 3)
            model.zero_grad()
            logits.sum().backward()
            assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    state = {key: torch.zeros((), dtype=t.dtype).expand(t.shape) for key, t in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def test_qkv_std_is_0_01_in_the_papers_networks_and_fan_in_in_the_small_ones() -> None:
    def starts(name: str, **options) -> set[float]:
        with torch.device("meta"):
            net = timm.create_model(name, **options)
        return {layer.qkv_std for layer in net.modules() if isinstance(layer, MHSA2d)}

    for name, network in NETWORKS.items():
        if network.surgery is not None and name != "resnet50_nl":
            expected = {0.01} if network.paper != "-" else {network.widths[3] ** -0.5}
            assert starts(name) == expected, name
    assert starts("botnet50", qkv_std="fan_in") == {512**-0.5}
    assert starts("resnet50_bot_c4_c5", qkv_std="fan_in") == {256**-0.5, 512**-0.5}
    assert starts("botnet_tiny", qkv_std=0.01, features_only=True) == {0.01}


@pytest.mark.parametrize("name", ["botnet26", "resnet50_nl"])
def test_drawing_the_weights_again_keeps_the_rule_of_the_attention(name: str) -> None:
    model = timm.create_model(name, qkv_std=0.01)
    stem = model.conv1.weight.detach().clone()
    model.init_weights()
    assert not torch.equal(model.conv1.weight, stem)
    kernels = [p for k, p in model.named_parameters() if "qkv" in k or ("non_local" in k and p.ndim == 4)]
    assert len(kernels) == (2 if name == "botnet26" else 4)
    assert [p.std().item() for p in kernels] == pytest.approx([0.01] * len(kernels), rel=0.05)


def test_attention_is_where_the_table_says() -> None:
    with torch.device("meta"):
        nets = {name: timm.create_model(name) for name in NETWORKS}
    for name, network in NETWORKS.items():
        net = nets[name]
        where = [n.rpartition(".conv2")[0] for n, m in net.named_modules() if isinstance(m, MHSA2d)]
        if name.startswith("botnet"):
            assert where == [f"layer4.{i}" for i in range(network.blocks[3])]
        assert [len(getattr(net, f"layer{i}")) for i in (1, 2, 3, 4)] == (
            [3, 4, 7, 3 + (name == "resnet50_bot_c4_c5")]
            if name.startswith("resnet50")
            else [*network.blocks]
        )
        se = [n for n, m in net.named_modules() if isinstance(m, SEModule)]
        expected_se = sum(network.blocks[: 3 if where else 4]) if network.se else 0
        assert len(se) == expected_se
        assert isinstance(net.act1, nn.SiLU if network.se else nn.ReLU)
    assert [n for n, m in nets["resnet50_nl"].named_modules() if isinstance(m, NonLocal2d)] == [
        "layer3.4_non_local"
    ]
    assert nets["botnet_t3"].layer3[0].se.fc1.out_channels == 1024 // 16
    ablations = {
        name: {(m.position, m.content) for m in nets[name].modules() if isinstance(m, MHSA2d)}
        for name in ("botnet50", "botnet50_qk", "botnet50_qr", "botnet50_absolute")
    }
    assert list(ablations.values()) == [
        {("relative", True)},
        {(None, True)},
        {("relative", False)},
        {("absolute", True)},
    ]
    tables = [m.feat_size for m in nets["botnet_t7"].modules() if isinstance(m, MHSA2d)]
    assert tables == [(24, 24)] * 12


def test_image_size_sets_the_tables() -> None:
    with torch.device("meta"):
        model = timm.create_model("botnet50", img_size=(1024, 640), features_only=True)
    assert [b.conv2.feat_size for b in model["layer4"]] == [(64, 40), (32, 20), (32, 20)]


def test_configuration(kind: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(kind, num_classes=0)
    config = model.pretrained_cfg
    assert config["architecture"] == kind
    assert isinstance(model.get_submodule(config["first_conv"]), nn.Conv2d)
    assert config["classifier"] == model.get_classifier(name_only=True)
    size = config["input_size"]
    with torch.device("meta"):
        last = timm.create_model(kind).forward_features(torch.empty(1, *size))
    assert last.shape[2:] == config["pool_size"]
    assert timm.data.resolve_data_config({}, model=model)["input_size"] == size


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in KINDS]
    + [("botnet_tiny", {"feature_cls": cls}) for cls in ("fx", "hook", "getter", "dict")]
    + [("resnet50_nl", {"feature_cls": "fx"})],
)
def test_features_only(name: str, options: dict[str, str]) -> None:
    model = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), **options).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 96, 64))
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [96 // m.shape[2] for m in maps] == model.feature_info.reduction()
    assert [64 // m.shape[3] for m in maps] == model.feature_info.reduction()


def test_head_and_intermediates(kind: str) -> None:
    model = timm.create_model(kind, num_classes=7).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = model.forward_features(x)
        assert torch.equal(model.forward_head(features), model(x))
        assert model.forward_head(features, pre_logits=True).shape == (1, model.num_features)
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, features)
        assert [m.shape[1] for m in maps] == [level["num_chs"] for level in model.feature_info]
        assert torch.equal(maps[-1], features)
        assert model.get_classifier().out_features == 7
        model.reset_classifier(11)
        assert model(x).shape == (1, 11)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        model.prune_intermediate_layers([2])
        assert model.forward_intermediates(x, indices=[2], intermediates_only=True)[0].shape == maps[2].shape


def test_parameter_groups_follow_depth(kind: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(kind)
    groups = group_parameters(model, model.group_matcher(coarse=False))
    placed = [name for names in groups.values() for name in names]
    assert sorted(placed) == sorted(name for name, _ in model.named_parameters())
    depth = {name: i for i, names in groups.items() for name in names}
    order = [depth[name] for name, _ in model.named_parameters()]
    assert order == sorted(order)
    # More groups than stem, blocks and classifier would mean a block that the pattern misses.
    blocks = sum(len(getattr(model, f"layer{i}")) for i in (1, 2, 3, 4))
    assert len(set(order)) <= blocks + 2


def test_position_tables_have_no_weight_decay(kind: str) -> None:
    model = timm.create_model(kind)
    tables = {name for name, _ in model.named_parameters() if "pos_embed" in name}
    assert model.no_weight_decay() == tables
    optimizer = create_optimizer_v2(model, "sgd", lr=0.1, weight_decay=1e-4)
    by_id = {id(p): name for name, p in model.named_parameters()}
    decayed = {
        by_id[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    assert decayed
    assert not tables & decayed


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    x = torch.randn(2, 3, 64, 96)
    gradients = []
    for enable in (False, True):
        model = tiny().double()
        model.set_grad_checkpointing(enable)
        model(x.double()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(*gradients, strict=True))


def test_timm_options() -> None:
    model = tiny(in_chans=5, num_classes=4, drop_path_rate=0.2, drop_rate=0.1, output_stride=16)
    assert model(torch.randn(2, 5, 64, 48)).shape == (2, 4)
    assert model.forward_features(torch.randn(2, 5, 64, 48)).shape[2:] == (4, 3)
    assert model.layer4[2].drop_path.drop_prob == pytest.approx(0.2)
    assert model.feature_info[-1]["reduction"] == 16
    assert tiny(global_pool="catavgmax").head_hidden_size == 2 * 768


# Rows that differ only in the image size (T5 and T7, S2 and S3, S4 and S5) are the same network here.
DISTINCT = {repr(dataclasses.replace(network, img_size=0)): name for name, network in NETWORKS.items()}


@pytest.mark.parametrize("name", DISTINCT.values())
def test_every_network_runs_on_real_tensors(name):
    model = timm.create_model(name, img_size=64, num_classes=3)
    for size in ((64, 64), (64, 96)):
        logits = model(torch.randn(2, 3, *size))
        assert logits.shape == (2, 3)
        assert logits.isfinite().all()
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    twin = timm.create_model(name, img_size=64, num_classes=3)
    twin.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(image), twin.eval()(image))
