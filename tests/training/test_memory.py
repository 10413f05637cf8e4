"""A batch that cannot fit is refused; the estimate is below what a step takes."""

import subprocess
import sys

import pytest
import timm
import torch

import botnet  # noqa: F401 - registers the networks
from botnet.cli import main
from botnet.detection.rcnn import feature_backbone
from botnet.errors import ConfigError
from botnet.training import memory
from botnet.training.memory import step_bytes, total_memory
from tests.support.recipes import write_recipe
from tests.support.saved import saved_bytes


def weights_of(network):
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


@pytest.mark.parametrize("name", ["botnet_tiny", "resnet18", "botnet_s1_tiny"])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_most_of_what_autograd_keeps(name, frozen):
    network = timm.create_model(name).train()
    if frozen:
        network.conv1.requires_grad_(False)
        network.bn1.requires_grad_(False)
    images = torch.randn(2, 3, 96, 96)
    kept = saved_bytes(network, images)
    estimate = step_bytes(network, tuple(images.shape)) - weights_of(network) - images.nbytes
    assert 0.5 * kept < estimate <= kept


def test_16_bits_take_half_and_recomputed_activations_nothing():
    network = timm.create_model("resnet18").train()
    whole = step_bytes(network, (2, 3, 64, 64))
    assert step_bytes(network, (2, 3, 64, 64), half=True) == whole // 2
    network.set_grad_checkpointing()
    assert step_bytes(network, (2, 3, 64, 64)) == weights_of(network) + 2 * 3 * 64 * 64 * 4


def test_the_network_stays_as_it_is():
    network = feature_backbone("botnet_tiny", 64).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    step_bytes(network, (2, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_batch_without_statistics_is_refused():
    network = timm.create_model("resnet18").train()
    with pytest.raises(
        ConfigError, match=r"^a training batch of 1 image \(data\.batch_size\) of 32 x 32 pixels"
    ):
        step_bytes(network, (1, 3, 32, 32))
    assert step_bytes(network, (2, 3, 32, 32)) > weights_of(network)


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": 3000, "a/b/memory.max": "max"}, [3000]),
        ("4:memory:/a\n1:cpu:/a\n", {"memory/a/memory.limit_in_bytes": 2000}, [2000]),
        ("0::/elsewhere\n", {"memory.max": 1000}, [1000]),  # in a container: only its own group is seen
    ],
)
def test_control_groups_limit_the_memory_of_a_cpu(groups, limits, expected, tmp_path, monkeypatch):
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{limit}\n")
    (tmp_path / "self").write_text(groups)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "self")
    assert list(memory._cgroup_limits()) == expected
    assert total_memory(torch.device("cpu")) == min(expected)


def test_a_canvas_that_cannot_fit_is_refused_with_the_estimate(tmp_path, digits, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run", canvas=2**15)
    assert main(["fit", "--config", str(recipe)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("botnet: a training step of 4 images of 32768 x 32768 pixels takes ")
    assert said.endswith("; lower data.batch_size, or the size of the images")
    assert not list((tmp_path / "run").rglob("*.ckpt"))


@pytest.mark.long
def test_it_is_below_the_measured_peak():
    code = """
import os, re, torch
from botnet.detection.rcnn import feature_backbone
from botnet.training.memory import step_bytes

network = feature_backbone("botnet_tiny", 512).train()
step = lambda side: sum(level.square().mean() for level in network(torch.randn(4, 3, side, side))).backward()
step(64)  # what the first step of a process loads
before = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
step(512)
# Not ru_maxrss, which a process inherits from the one that starts it.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024 - before
weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
print(step_bytes(network, (4, 3, 512, 512)) - weights, peak)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    estimate, peak = (int(number) for number in finished.stdout.split())
    assert 0.3 * peak < estimate < peak
