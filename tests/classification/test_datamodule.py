"""Images in classes: pictures of all kinds, what is done to them, what chance does."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from botnet.classification import ImageDataModule
from botnet.classification.images import read_image
from botnet.errors import ConfigError, DataError
from botnet.training.seeding import generator
from tests.support.classification import CLASSES, write_images


def data_of(tmp_path, train_classes=CLASSES, val_classes=CLASSES, **options):
    write_images(tmp_path / "train", train_classes)
    write_images(tmp_path / "val", val_classes, count=3, seed=1)
    settings = {"image_size": 32, "batch_size": 4, "val_batch_size": 4, "num_workers": 0} | options
    return ImageDataModule(tmp_path / "train", tmp_path / "val", **settings)


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
        return np.asarray(samples.load(by_name[name])[0])

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


def test_broken_pictures_are_replaced_if_requested(tmp_path, log):
    for name, allowed in (("few", 1), ("none", 0)):
        data = data_of(tmp_path / name, skip_broken=allowed)
        (tmp_path / name / "train" / "red" / "2.png").write_bytes(b"broken")
        if allowed:
            assert sum(len(labels) for _, labels in data.train_dataloader()) == 12
            assert "2.png: cannot be decoded" in log.text
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"rand_augment": "rand-x9"},
        {"rand_augment": "rand-n2.5-m9"},
        {"interpolation": "cubic"},
        {"interpolation": "random"},  # timm's training draws one of two, but a validation cannot
    ],
)
def test_augmentation_that_timm_does_not_know_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}: '{next(iter(wrong.values()))}' is "):
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
    picture, _ = data.train_set.load(5)
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
