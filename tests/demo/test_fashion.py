"""Fashion-MNIST as class folders, from files as its authors publish them."""

import gzip
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from botnet.classification.readers import class_names, open_reader
from botnet.cli import main
from botnet.demo.fashion import NAMES, make_images, read_idx
from botnet.errors import ConfigError, DataError


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    with gzip.open(path, "wb") as file:
        file.write(head + array.tobytes())


@pytest.fixture
def authors_files(tmp_path):
    """Files in the form of Fashion-MNIST's: 30 training and 20 test images."""
    folder = tmp_path / "source"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("t10k", 20)):
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return folder


def test_make_images_writes_class_folders(authors_files, tmp_path):
    made = make_images(tmp_path / "made", authors_files, 25, 12, progress=False)
    assert made["made"]
    images = read_idx(authors_files / "train-images-idx3-ubyte.gz")
    reader = open_reader(tmp_path / "made" / "train")
    assert class_names(reader) == sorted(NAMES)
    assert len(reader) == 25
    assert len(open_reader(tmp_path / "made" / "val")) == 12
    for index in (0, 24):  # label = index % 10
        file = tmp_path / "made" / "train" / NAMES[index % 10] / f"{index:05d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(file)), images[index])
    assert not make_images(tmp_path / "made", authors_files, 25, 12, progress=False)["made"]


def test_an_empty_directory_is_used(authors_files, tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    assert make_images(Path(), authors_files, 25, 12, progress=False)["made"]
    assert not make_images(tmp_path / "set", authors_files, 25, 12, progress=False)["made"]


@pytest.mark.parametrize("network", ["botnet_s1_tiny", "resnet_tiny"])
def test_the_recipe_of_the_quickstart_runs(network, authors_files, tmp_path):
    folder = tmp_path / "fashion"
    assert main(["make-images", f"{folder}", "--train=30", "--val=20", f"--source={authors_files}"]) == 0
    options = {
        "model.init_args.model": network,
        "data.init_args.train": folder / "train",
        "data.init_args.val": folder / "val",
        "data.init_args.batch_size": 15,
        "data.init_args.num_workers": 0,
        "trainer.max_epochs": 1,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": tmp_path / "run",
    }
    recipe = Path(__file__).parents[2] / "botnet" / "recipes" / "quickstart_classify.yaml"
    assert main(["fit", "--config", f"{recipe}", *(f"--{k}={v}" for k, v in options.items())]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 2


def test_make_images_refuses(authors_files, tmp_path):
    make_images(tmp_path / "made", authors_files, 25, 12, progress=False)
    with pytest.raises(DataError, match="not empty and not the images of these settings"):
        make_images(tmp_path / "made", authors_files, 26, 12, progress=False)
    next((tmp_path / "made").glob("val/*/*.png")).unlink()
    with pytest.raises(DataError, match="not empty"):
        make_images(tmp_path / "made", authors_files, 25, 12, progress=False)
    with pytest.raises(DataError, match="30 train images"):
        make_images(tmp_path / "more", authors_files, 31, 12, progress=False)
    with pytest.raises(ConfigError, match="train: 0 is not allowed"):
        make_images(tmp_path / "more", authors_files, 0, 12, progress=False)
    (authors_files / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="no gzipped IDX file"):
        make_images(tmp_path / "more", authors_files, 25, 12, progress=False)
    assert not (tmp_path / "more").exists()  # nothing half-made


def test_without_a_source_the_command_says_where_to_get_it(tmp_path, capsys):
    assert main(["make-images", str(tmp_path / "made")]) == 2
    message = capsys.readouterr().err
    for remedy in ("--source FOLDER", "scripts/fetch_fashion_mnist.py", "github.com/zalandoresearch"):
        assert remedy in message
    assert not (tmp_path / "made").exists()


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere/train-images-idx3-ubyte\.gz.*download it again"):
        make_images(tmp_path / "made", tmp_path / "nowhere", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def fetch_script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return importlib.import_module("fetch_fashion_mnist")


def test_the_script_takes_an_installed_package(fetch_script, authors_files, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_script, "INSTALLED", authors_files)
    fetch_script.fetch(tmp_path / "fetched")
    assert sorted(path.name for path in (tmp_path / "fetched").iterdir()) == sorted(fetch_script.FILES)
    monkeypatch.setattr(fetch_script, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    fetch_script.fetch(tmp_path / "fetched")  # nothing to do
    with pytest.raises(SystemExit, match="dataset-fashion-mnist could not be downloaded"):
        fetch_script.fetch(tmp_path / "more")
    assert not (tmp_path / "more").exists()
