"""Publishing models: what is written, and that it can be read again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import botnet
from botnet.classification.checkpoint import create_classifier, load_classifier
from botnet.cli import main
from botnet.deploy.hub import save_published
from botnet.detection.checkpoint import load_detector
from botnet.errors import CheckpointError, ConfigError, DataError
from botnet.training.checkpoint_file import FORMAT, write_file
from botnet.training.model_source import is_trained_here, open_checkpoint
from tests.support.detector import small_detector
from tests.support.hub import TOKEN, loopback_hub

NAMES = ["zebra", "ant", "bee"]  # not in order
NUMBERS = {"AP": 0.5, "AP50": 0.75, "AP75": 0.25, "APs": -1.0, "APm": 0.5, "APl": 0.5}


def finished_run(folder: Path) -> Path:
    """The folder of a detector's run with an evaluation, without training one."""
    detector = small_detector()
    contents = {
        "state_dict": {f"detector.{name}": value for name, value in detector.state_dict().items()},
        "global_step": 40,
        "epoch": 4,
        "botnet": {
            "format": FORMAT,
            "version": "0.2.0",
            "class_names": NAMES,
            "category_ids": [7, 0, 90],
            "canvas": 96,
            "detector": detector.spec,
            "settings": {"learning_rate": 0.1},
        },
    }
    write_file(contents, folder / "checkpoints" / "best.ckpt")
    (folder / "config.yaml").write_text("row: null\n")
    metrics = {"epoch": 5, "step": 50, "box": NUMBERS, "mask": NUMBERS | {"AP": 0.125}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "pictures").mkdir()
    for name in ("curves", "pictures/1", "pictures/2"):
        Image.new("RGB", (2000, 500), "red").save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "mine")


def test_a_published_detector_is_the_same(run, tmp_path):
    save_published(run, tmp_path / "model", "apache-2.0", "somebody/digits")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json", "model.safetensors", "README.md", "recipe.yaml", "curves.jpg", "1.jpg", "2.jpg",
    }  # fmt: skip
    published, metadata = load_detector(tmp_path / "model")
    original, expected = load_detector(run)
    assert metadata == expected
    assert metadata["category_ids"] == [7, 0, 90]
    state = original.state_dict()
    assert published.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in published.state_dict().items())
    assert max(Image.open(tmp_path / "model" / "curves.jpg").size) <= 1200


def test_the_card_says_what_was_measured(run, tmp_path):
    save_published(run, tmp_path / "model", "apache-2.0", "somebody/digits")
    card = (tmp_path / "model" / "README.md").read_text()
    for expected in (
        "license: apache-2.0",
        "pipeline_tag: image-segmentation",
        "library_name: botnet",
        'botnet.load("hf-hub:somebody/digits")',
        "| box | 0.500 | 0.750 | 0.250 | - | 0.500 | 0.500 |",
        "| mask | 0.125 |",
        "after epoch 5, step 50",
        "The weights are those of step 40",
        "3: zebra, ant, bee",
        "![curves.jpg](curves.jpg)",
    ):
        assert expected in card, expected


def test_a_classifier_is_published_with_the_average_of_its_weights(tmp_path):
    model = create_classifier("botnet_s1_tiny", 3, 64)
    average = {name: value + 1 for name, value in model.state_dict().items()}
    evaluation = {
        "image_size": 64,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
    }
    contents = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}
        | {f"ema.module.{name}": value for name, value in average.items()},
        "botnet": {
            "class_names": NAMES,
            "evaluation": evaluation,
            "classifier": {"name": "botnet_s1_tiny", "num_classes": 3, "image_size": 64},
        },
    }
    write_file(contents, tmp_path / "x.ckpt")
    save_published(tmp_path / "x.ckpt", tmp_path / "model", "mit")
    published, metadata = load_classifier(tmp_path / "model")
    assert metadata["class_names"] == NAMES
    assert metadata["evaluation"]["image_size"] == 64
    assert all(torch.equal(value, average[name]) for name, value in published.state_dict().items())
    assert "Nothing: the model was not published from a run" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.long
def test_the_hubs_own_client_pushes_and_fetches(run, tmp_path):
    script = (
        "import sys; from botnet.cli import main; from botnet.detection.checkpoint import load_detector\n"
        "assert main(['push', sys.argv[1], 'somebody/digits', '--license', 'mit', '--private']) == 0\n"
        "detector, metadata = load_detector('hf-hub:somebody/digits')\n"
        "print(metadata, sum(float(p.detach().sum()) for p in detector.parameters()))\n"
    )
    with loopback_hub() as (address, hub):
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        finished = subprocess.run(
            [sys.executable, "-c", script, str(run)], env=environment, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
        refused = subprocess.run(
            [sys.executable, "-m", "botnet.cli", "push", str(run), "somebody/digits", "--license", "mit"],
            env=environment | {"HF_TOKEN": "hf_wrong"},
            capture_output=True,
            text=True,
        )
        absent = subprocess.run(
            [sys.executable, "-m", "botnet.cli", "predict", "hf-hub:somebody/else", str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
        )
    files = hub.repositories["somebody/digits"]
    assert {"config.json", "model.safetensors", "README.md", "recipe.yaml"} < files.keys()
    assert hub.private == {"somebody/digits"}
    # The weights and their configuration are all that a user downloads.
    assert set(hub.downloads) == {"config.json", "model.safetensors"}
    printed = finished.stdout.splitlines()
    assert printed[0] == f"{address}/somebody/digits"
    detector, metadata = load_detector(run)
    assert printed[1] == f"{metadata} {sum(float(p.detach().sum()) for p in detector.parameters())}"
    assert refused.returncode == 2
    assert refused.stderr.startswith("botnet: somebody/digits cannot be published")
    assert "hf auth login" in refused.stderr
    assert absent.returncode == 2
    assert absent.stderr.startswith("botnet: hf-hub:somebody/else cannot be fetched")


def test_a_folder_is_written_instead_of_the_hub(run, tmp_path, capsys):
    assert main(["push", str(run), "--output", str(tmp_path / "model"), "--license", "mit"]) == 0
    assert open_checkpoint(tmp_path / "model").kind == "detector"
    assert main(["push", str(run), "--license", "mit"]) == 2
    assert "give either USER/NAME, or --output FOLDER" in capsys.readouterr().err


def broken(folder: Path, change: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    match change:
        case "no config":
            config.unlink()
        case "somebody's":
            config.write_text('{"architecture": "resnet50"}')
        case "no JSON":
            config.write_text("{")
        case "newer":
            metadata = json.loads(config.read_text())
            metadata["botnet"]["format"] = FORMAT + 1
            config.write_text(json.dumps(metadata))
        case "no weights":
            weights.unlink()
        case "torn weights":
            weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no config", "holds neither a run"),
        ("somebody's", "was not published by botnet push"),
        ("no JSON", "config.json is broken"),
        ("newer", "in format 2; botnet .* reads up to format 1"),
        ("no weights", "its model.safetensors cannot be read"),
        ("torn weights", "its model.safetensors cannot be read"),
    ],
)
def test_a_broken_model_is_refused(change, message, run, tmp_path):
    save_published(run, tmp_path / "model", "mit")
    broken(tmp_path / "model", change)
    with pytest.raises(CheckpointError, match=message):
        load_detector(tmp_path / "model")


def test_a_repository_without_configuration_is_refused(tmp_path, monkeypatch):
    """As the client leaves it: only files that there are."""
    monkeypatch.setattr("botnet.training.model_source.fetch", lambda *_: tmp_path)
    with pytest.raises(CheckpointError, match=r"^hf-hub:somebody/else was not published by botnet push"):
        botnet.load("hf-hub:somebody/else")
    assert not is_trained_here("hf-hub:somebody/else")


def test_nothing_is_half_written(run, tmp_path):
    torn = finished_run(tmp_path / "torn")
    (torn / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics\.json is broken"):
        save_published(torn, tmp_path / "model", "mit")
    assert not (tmp_path / "model").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        save_published(run, tmp_path / "used", "mit")


def test_a_run_is_its_best_checkpoint_or_its_last(run, tmp_path):
    assert open_checkpoint(run).path == run / "checkpoints" / "best.ckpt"
    other = finished_run(tmp_path / "other")
    (other / "checkpoints" / "best.ckpt").rename(other / "checkpoints" / "last.ckpt")
    assert open_checkpoint(other).path.name == "last.ckpt"
    (other / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(CheckpointError, match="holds neither a run"):
        open_checkpoint(other)
