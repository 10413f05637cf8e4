"""Images in classes: how they are stored, what is wrong with them, what chance does to them."""

import gzip
import io
import json
import random
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from botnet.classification import ImageDataModule
from botnet.classification.fashion import NAMES, make_images, read_idx
from botnet.classification.imagenet import ImageSet, class_names, open_reader, read_image
from botnet.cli import main
from botnet.data import generator
from botnet.errors import DataError
from tests.classification.samples import CLASSES, write_images


def to_tensor(image):
    return v2.functional.pil_to_tensor(image)


def data_of(tmp_path, train_classes=CLASSES, val_classes=CLASSES, **options):
    write_images(tmp_path / "train", train_classes)
    write_images(tmp_path / "val", val_classes, count=3, seed=1)
    settings = {"image_size": 32, "batch_size": 4, "val_batch_size": 4, "num_workers": 0} | options
    return ImageDataModule(tmp_path / "train", tmp_path / "val", **settings)


# ---- how images are stored


def test_labels_are_folders_in_natural_order(tmp_path):
    write_images(tmp_path, ("class 10", "class 9", "a"))
    reader = open_reader(tmp_path)
    assert class_names(reader) == ["a", "class 9", "class 10"]
    samples = ImageSet(reader, to_tensor)
    assert len(samples) == 12
    for index in range(12):
        assert class_names(reader)[samples[index][1]] in samples.name(index)


def test_files_that_are_no_images_are_counted(tmp_path):
    write_images(tmp_path)
    (tmp_path / "red" / "notes.txt").write_text("three reds")
    (tmp_path / "README").write_text("colours")
    Image.new("RGB", (8, 8)).save(tmp_path / "red" / "also.WEBP", "webp")
    reader = open_reader(tmp_path)
    assert len(reader) == 13
    assert reader.left_out == 2


def as_tar(folder, path, inside=""):
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*.png")):
            tar.add(file, f"{inside}{file.relative_to(folder)}")


def as_shards(folder, target, shards=2):
    target.mkdir()
    files = sorted(folder.rglob("*.png"))
    for number in range(shards):
        with tarfile.open(target / f"{number:04d}.tar", "w") as tar:
            for index, file in list(enumerate(files))[number::shards]:
                label = str(CLASSES.index(file.parent.name)).encode()
                for name, content in ((f"{index:06d}.png", file.read_bytes()), (f"{index:06d}.cls", label)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (target / "classes.txt").write_text("\n".join(CLASSES) + "\n")


def pixels_by_class(reader):
    """What a reader gives, whatever its order."""
    samples = ImageSet(reader, to_tensor)
    names = class_names(reader)
    found = [samples[index] for index in range(len(samples))]
    return sorted((names[label], image.numpy().tobytes()) for image, label in found)


def test_every_reader_gives_the_same_images(tmp_path):
    folder = write_images(tmp_path / "folder")
    expected = pixels_by_class(open_reader(folder))
    assert len(expected) == 12
    as_tar(folder, tmp_path / "whole.tar")
    assert pixels_by_class(open_reader(tmp_path / "whole.tar", "tar")) == expected
    (tmp_path / "tars").mkdir()
    for name in CLASSES:
        as_tar(folder / name, tmp_path / "tars" / f"{name}.tar")
    assert pixels_by_class(open_reader(tmp_path / "tars", "tar")) == expected
    as_shards(folder, tmp_path / "shards")
    assert pixels_by_class(open_reader(tmp_path / "shards", "wds")) == expected


def test_hugging_face_data_sets_by_the_name_of_their_split(tmp_path, monkeypatch):
    """timm's reader, with a stand-in for the package behind it."""
    folder = write_images(tmp_path)
    files = sorted(folder.rglob("*.png"))

    class Split(list):
        info = types.SimpleNamespace(
            features={"label": types.SimpleNamespace(names=list(CLASSES))}, splits=None
        )

        def cast_column(self, *_):
            return self

    def load_dataset(name, split, **_):
        assert (name, split) == ("me/colours", "validation")
        return Split(
            {"image": {"bytes": f.read_bytes(), "path": f.name}, "label": CLASSES.index(f.parent.name)}
            for f in files
        )

    fake = types.ModuleType("datasets")
    fake.load_dataset, fake.Image = load_dataset, lambda decode: None
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    reader = open_reader(Path("validation"), "hfds/me/colours")
    assert pixels_by_class(reader) == pixels_by_class(open_reader(folder))
    with pytest.raises(DataError, match="hfds/me/colours, split gone: cannot be opened"):
        open_reader(Path("gone"), "hfds/me/colours")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds")
    with pytest.raises(DataError, match="pip install datasets"):
        open_reader(Path("validation"), "hfds/me/colours")


def test_broken_shards_are_refused(tmp_path):
    as_shards(write_images(tmp_path / "folder"), tmp_path / "shards")
    (tmp_path / "shards" / "classes.txt").write_text("blue\ngreen\n")
    with pytest.raises(DataError, match=r"has label 2, outside 0 to 1"):
        open_reader(tmp_path / "shards", "wds")
    (tmp_path / "shards" / "classes.txt").write_text("blue\ngreen\nblue\n")
    with pytest.raises(DataError, match=r"a name stands on two lines"):
        open_reader(tmp_path / "shards", "wds")
    with tarfile.open(tmp_path / "lone.tar", "w") as tar:
        tar.add(tmp_path / "folder" / "red" / "0.png", "7.png")
    with pytest.raises(DataError, match=r"7 lacks its label"):
        open_reader(tmp_path / "lone.tar", "wds")
    (tmp_path / "none.tar").write_bytes(b"no tar at all")
    with pytest.raises(DataError, match=r"none\.tar: is no shard"):
        open_reader(tmp_path / "none.tar", "wds")
    with pytest.raises(DataError, match=r"none\.tar: no tar of class folders"):
        open_reader(tmp_path / "none.tar", "tar")


def test_folders_that_cannot_be_learnt_from_are_refused(tmp_path):
    folder = write_images(tmp_path / "data")
    (folder / "yellow").mkdir()
    with pytest.raises(DataError, match="yellow: a class folder without images"):
        open_reader(folder)
    (folder / "yellow").rmdir()
    Image.new("RGB", (8, 8)).save(folder / "stray.png")
    with pytest.raises(DataError, match="1 images lie outside the class folders"):
        open_reader(folder)
    with pytest.raises(DataError, match=r"1 class \(red\) is nothing to tell apart"):
        open_reader(write_images(tmp_path / "one", ["red"]))
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="no images in class folders"):
        open_reader(tmp_path / "void")
    with pytest.raises(DataError, match="no such file or folder"):
        open_reader(tmp_path / "gone")
    with pytest.raises(DataError, match="no reader 'zip'"):
        open_reader(folder, "zip")


def test_train_and_val_must_have_the_same_classes(tmp_path):
    with pytest.raises(DataError, match=r"same classes: 3 and 2; only in .*train: blue; only in .*val: none"):
        data_of(tmp_path, val_classes=CLASSES[1:])


# ---- pictures of all kinds


@pytest.mark.parametrize("train", [True, False])
def test_unusual_pictures_become_samples(tmp_path, train):
    write_images(tmp_path / "train")
    write_images(tmp_path / "val")
    odd = tmp_path / ("train" if train else "val") / "blue"
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(odd / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 256).save(odd / "grey16.png")
    Image.new("CMYK", (9, 7), (0, 255, 255, 0)).save(odd / "cmyk.jpg")
    Image.new("P", (9, 7)).save(odd / "palette.png", transparency=0)
    Image.new("1", (9, 7), 1).save(odd / "bits.png")
    Image.new("RGB", (1, 1), "red").save(odd / "pixel.png")
    for name, size in (("wide", (30_000, 10)), ("tall", (10, 30_000))):
        strip = Image.new("RGB", size, "red")
        middle = tuple(side // 2 - 5 for side in size)
        strip.paste("blue", (*middle, *(at + 10 for at in middle)))
        strip.save(odd / f"{name}.png")
    data = ImageDataModule(tmp_path / "train", tmp_path / "val", image_size=32, rand_augment="rand-m10-n2")
    samples = data.train_set if train else data.val_set
    by_name = {samples.name(index).rpartition("/")[2]: index for index in range(len(samples))}
    for index in by_name.values():
        image, label = samples[(0, index) if train else index]
        assert image.shape == (3, 32, 32)
        assert torch.isfinite(image).all()
        assert label == 0 or "blue" not in samples.name(index)

    def stored(name):
        return np.asarray(samples.picture(by_name[name])[0])

    np.testing.assert_array_equal(stored("grey.png"), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(stored("grey16.png"), stored("grey.png"))
    assert stored("cmyk.jpg")[3, 3, 0] > 200  # no cyan, all magenta and yellow: red
    assert stored("cmyk.jpg")[3, 3, 1:].max() < 60
    for name, shape in (("wide.png", (10, 160, 3)), ("tall.png", (160, 10, 3))):
        assert stored(name).shape == shape
        assert tuple(stored(name)[shape[0] // 2, shape[1] // 2]) == (0, 0, 255)  # its middle is kept


def test_a_broken_picture_is_named(tmp_path, monkeypatch):
    data = data_of(tmp_path)
    victim = tmp_path / "train" / "red" / "2.png"
    victim.write_bytes(victim.read_bytes()[:100])
    index = next(i for i in range(len(data.train_set)) if data.train_set.name(i) == str(victim))
    with pytest.raises(DataError, match=r"red/2\.png: cannot be decoded"):
        data.train_set[0, index]
    victim.unlink()
    with pytest.raises(DataError, match=r"red/2\.png: cannot be read"):
        data.train_set[0, index]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"red/1\.png: too large to decode"):
        read_image(tmp_path / "train" / "red" / "1.png", "red/1.png")


def test_broken_pictures_are_replaced_if_asked_for(tmp_path, capfd):
    for name, allowed in (("few", 1), ("none", 0)):
        data = data_of(tmp_path / name, skip_broken=allowed)
        (tmp_path / name / "train" / "red" / "2.png").write_bytes(b"broken")
        if allowed:
            assert sum(len(labels) for _, labels in data.train_dataloader()) == 12
            assert "2.png: cannot be decoded" in capfd.readouterr().err
        else:
            with pytest.raises(DataError, match=r"red/2\.png: cannot be decoded"):
                list(data.train_dataloader())


# ---- what is done to them


def test_evaluation_is_resize_centre_crop_normalise(tmp_path):
    """Against torchvision's own transforms: short side to 32 / 0.875, bicubic."""
    data = data_of(tmp_path)
    by_hand = v2.Compose(
        [
            v2.Resize(36, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    for index in range(len(data.val_set)):
        with Image.open(data.val_set.name(index)) as picture:
            torch.testing.assert_close(data.val_set[index][0], by_hand(picture))


@pytest.mark.parametrize("wrong", [{"rand_augment": "rand-x9"}, {"interpolation": "cubic"}])
def test_augmentation_that_timm_does_not_know_is_refused(tmp_path, wrong):
    with pytest.raises(DataError, match=f"{next(iter(wrong.values()))}.*rand-m10-n2 and bicubic"):
        data_of(tmp_path, **wrong)


WILD = {"rand_augment": "rand-m10-n2-mstd0.5", "color_jitter": 0.4, "random_erasing": 0.5}


def test_a_training_sample_depends_on_seed_epoch_and_index_alone(tmp_path, monkeypatch):
    data = data_of(tmp_path, **WILD)
    first = [data.train_set[0, index][0] for index in range(12)]
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    again = [data.train_set[0, index][0] for index in reversed(range(12))][::-1]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    other_epoch = [data.train_set[1, index][0] for index in range(12)]
    assert not any(torch.equal(one, two) for one, two in zip(first, other_epoch, strict=True))
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(data.train_set[0, 0][0], first[0])


def test_a_training_sample_leaves_the_global_generators_alone(tmp_path):
    data = data_of(tmp_path, **WILD)

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    data.train_set[0, 0]
    assert states() == before


def test_augmentation_is_timms(tmp_path):
    """The same as timm's transform fed from generators seeded by hand."""
    data = data_of(tmp_path, **WILD)
    transform = create_transform(
        32, is_training=True, auto_augment=WILD["rand_augment"], color_jitter=0.4, re_prob=0.5,
        re_mode="pixel", interpolation="bicubic",
    )  # fmt: skip
    picture, _ = data.train_set.picture(5)
    seed = int(torch.randint(2**62, (), generator=generator(0, 3, 5)))
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
    assert torch.equal(data.train_set[3, 5][0], transform(picture))


def test_workers_prepare_the_same_batches(tmp_path):
    alone, helped = data_of(tmp_path, **WILD), data_of(tmp_path, num_workers=2, **WILD)
    for one, two in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


# ---- the embedded data set


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
    made = make_images(tmp_path / "made", 25, 12, authors_files, progress=False)
    assert made["made"]
    images = read_idx(authors_files / "train-images-idx3-ubyte.gz")
    reader = open_reader(tmp_path / "made" / "train")
    assert class_names(reader) == sorted(NAMES)
    assert len(reader) == 25
    assert len(open_reader(tmp_path / "made" / "val")) == 12
    for index in (0, 24):  # label = index % 10
        file = tmp_path / "made" / "train" / NAMES[index % 10] / f"{index:05d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(file)), images[index])
    assert not make_images(tmp_path / "made", 25, 12, authors_files, progress=False)["made"]


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
    recipe = Path(__file__).parents[2] / "recipes" / "quickstart_classify.yaml"
    assert main(["fit", "--config", f"{recipe}", *(f"--{k}={v}" for k, v in options.items())]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 2


def test_make_images_refuses(authors_files, tmp_path):
    make_images(tmp_path / "made", 25, 12, authors_files, progress=False)
    with pytest.raises(DataError, match="not empty and not the images of these settings"):
        make_images(tmp_path / "made", 26, 12, authors_files, progress=False)
    next((tmp_path / "made").glob("val/*/*.png")).unlink()
    with pytest.raises(DataError, match="not empty"):
        make_images(tmp_path / "made", 25, 12, authors_files, progress=False)
    with pytest.raises(DataError, match="30 train images"):
        make_images(tmp_path / "more", 31, 12, authors_files, progress=False)
    with pytest.raises(DataError, match="needs train >= 1"):
        make_images(tmp_path / "more", 0, 12, authors_files, progress=False)
    (authors_files / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="no gzipped IDX file"):
        make_images(tmp_path / "more", 25, 12, authors_files, progress=False)
    assert not (tmp_path / "more").exists()  # nothing half-made


def test_without_debian_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("botnet.classification.fashion.INSTALLED", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="dataset-fashion-mnist, which could not be fetched"):
        make_images(tmp_path / "made", progress=False)
