"""Every way of storing labelled images, valid and broken."""

import io
import pickle
import sys
import tarfile
import types
from pathlib import Path

import pytest
from PIL import Image
from torchvision.transforms import v2

from botnet.classification.datasets import ImageSet
from botnet.classification.listing import Names
from botnet.classification.readers import class_names, open_reader
from botnet.errors import ConfigError, DataError
from tests.support.classification import CLASSES, write_images


def to_tensor(image):
    return v2.functional.pil_to_tensor(image)


def test_labels_are_folders_in_natural_order(tmp_path):
    write_images(tmp_path, ("class 10", "class 9", "a"))
    reader = open_reader(tmp_path)
    assert class_names(reader) == ["a", "class 9", "class 10"]
    samples = ImageSet(reader, to_tensor)
    assert len(samples) == 12
    for index in range(12):
        assert class_names(reader)[samples[index][1]] in samples.name(index)


def test_files_that_are_not_images_are_counted(tmp_path):
    write_images(tmp_path)
    (tmp_path / "red" / "notes.txt").write_text("three reds")
    (tmp_path / "README").write_text("colours")
    Image.new("RGB", (8, 8)).save(tmp_path / "red" / "also.WEBP", "webp")
    Image.new("RGB", (8, 8)).save(tmp_path / "red" / "also.gif")
    reader = open_reader(tmp_path)
    assert len(reader) == 14
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
    """The class and pixels of every image, independent of the order of the reader."""
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


@pytest.mark.parametrize("reader", ["folder", "tar", "wds"])
def test_a_reader_keeps_no_file_open(reader, tmp_path):
    """Workers would share its position and get the bytes of other images; an open file cannot be pickled."""
    folder = write_images(tmp_path / "folder")
    as_tar(folder, tmp_path / "whole.tar")
    as_shards(folder, tmp_path / "shards")
    source = {"folder": folder, "tar": tmp_path / "whole.tar", "wds": tmp_path / "shards"}[reader]
    opened = open_reader(source, reader)
    opened[0][0].close()
    pickle.dumps(opened)


def test_hugging_face_split_is_read_by_its_name(tmp_path, monkeypatch):
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
    with pytest.raises(ConfigError, match="pip install datasets"):
        open_reader(Path("validation"), "hfds/me/colours")


def test_broken_shards_are_refused(tmp_path):
    as_shards(write_images(tmp_path / "folder"), tmp_path / "shards")
    (tmp_path / "shards" / "classes.txt").write_text("blue\ngreen\n")
    with pytest.raises(DataError, match=r"has label 2, outside 0 to 1"):
        open_reader(tmp_path / "shards", "wds")
    (tmp_path / "shards" / "classes.txt").write_text("blue\ngreen\nblue\n")
    with pytest.raises(DataError, match="has a name twice"):
        open_reader(tmp_path / "shards", "wds")
    with tarfile.open(tmp_path / "lone.tar", "w") as tar:
        tar.add(tmp_path / "folder" / "red" / "0.png", "7.png")
    with pytest.raises(DataError, match=r"7 lacks its label"):
        open_reader(tmp_path / "lone.tar", "wds")
    (tmp_path / "none.tar").write_bytes(b"no tar at all")
    with pytest.raises(DataError, match=r"none\.tar: not a shard"):
        open_reader(tmp_path / "none.tar", "wds")
    with pytest.raises(DataError, match=r"none\.tar: not a tar of class folders"):
        open_reader(tmp_path / "none.tar", "tar")
    (tmp_path / "shards" / "classes.txt").write_bytes("blé\ngreen\nred\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read .*; save it in UTF-8"):
        open_reader(tmp_path / "shards", "wds")


def shard_of(path, *members):
    """A shard of (name, content); content None makes a folder, a Path a link to that name."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, Path):
                info.type, info.linkname = tarfile.LNKTYPE, str(content)
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([("1.jpg", b"")], r"1\.png and 1\.jpg have the same key"),
        ([("1.png", b"")], r"1\.png and 1\.png have the same key"),
        ([("1.cls", b"0")], r"1\.cls and 1\.cls have the same key"),
        (
            [("x/1.png", b""), ("x/1.cls", b"1"), ("x/1.webp", b"")],
            r"x/1\.png and x/1\.webp have the same key",
        ),
        ([("3.png", b""), ("3.cls", None)], r"3 lacks its label"),
        ([("3.png", Path("1.png")), ("3.cls", Path("1.cls"))], r"3\.png is a link"),
    ],
)
def test_shards_with_incomplete_or_duplicate_samples_are_refused(more, message, tmp_path):
    valid = [("1.png", b"image"), ("1.cls", b"0"), ("2.png", b"image"), ("2.cls", b"1")]
    shard = shard_of(tmp_path / "a.tar", *valid, *more)
    with pytest.raises(DataError, match=rf"a\.tar: \S*{message}"):
        open_reader(shard, "wds")


def test_folders_in_a_shard_are_not_samples(tmp_path):
    folders = [("a.cls", None), ("b.png", None), ("a", None)]
    files = [("a/1.png", b"image"), ("a/1.cls", b"0"), ("a/1.json", b"{}"), ("b.png/1.png", b"other")]
    reader = open_reader(shard_of(tmp_path / "a.tar", *folders, *files, ("b.png/1.cls", b"1")), "wds")
    assert [(file.read(), label) for file, label in map(reader.__getitem__, range(len(reader)))] == [
        (b"image", 0),
        (b"other", 1),
    ]


def test_class_folders_of_the_same_name_are_refused(tmp_path):
    """A class has the name of its last folder: cat/indoor and dog/indoor would silently become one class."""
    for parent in ("cat", "dog"):
        write_images(tmp_path / "data" / parent, ("indoor", f"{parent}s outdoors"), count=1)
    with pytest.raises(DataError, match="cat/indoor and dog/indoor are both class 'indoor'"):
        open_reader(tmp_path / "data")
    as_tar(tmp_path / "data", tmp_path / "whole.tar")
    with pytest.raises(DataError, match="cat/indoor and dog/indoor are both class 'indoor'"):
        open_reader(tmp_path / "whole.tar", "tar")
    (tmp_path / "tars").mkdir()
    for parent in ("cat", "dog"):
        as_tar(tmp_path / "data" / parent, tmp_path / "tars" / f"{parent}.tar")
    with pytest.raises(DataError, match=r"cat\.tar/indoor and dog\.tar/indoor are both class 'indoor'"):
        open_reader(tmp_path / "tars", "tar")
    (tmp_path / "data" / "dog" / "indoor").rename(tmp_path / "data" / "dog" / "dogs indoors")
    assert class_names(open_reader(tmp_path / "data")) == [
        "cats outdoors",
        "dogs indoors",
        "dogs outdoors",
        "indoor",
    ]


@pytest.mark.parametrize("inside", ["", "./"])
def test_images_outside_the_class_folders_of_a_tar_are_refused(inside, tmp_path):
    folder = write_images(tmp_path / "data")
    Image.new("RGB", (8, 8)).save(folder / "stray.png")
    as_tar(folder, tmp_path / "whole.tar", inside)
    with pytest.raises(DataError, match=r"stray\.png is in no class folder"):
        open_reader(tmp_path / "whole.tar", "tar")


def test_folders_that_cannot_be_trained_on_are_refused(tmp_path):
    folder = write_images(tmp_path / "data")
    (folder / "yellow").mkdir()
    with pytest.raises(DataError, match="yellow: a class folder without images"):
        open_reader(folder)
    (folder / "yellow").rmdir()
    Image.new("RGB", (8, 8)).save(folder / "stray.png")
    with pytest.raises(DataError, match="1 images are outside the class folders"):
        open_reader(folder)
    with pytest.raises(DataError, match=r"needs two classes or more, found 1 \(red\)"):
        open_reader(write_images(tmp_path / "one", ["red"]))
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="no images in class folders"):
        open_reader(tmp_path / "void")
    with pytest.raises(DataError, match="no such file or folder"):
        open_reader(tmp_path / "gone")
    with pytest.raises(ConfigError, match="reader: 'zip' is not allowed"):
        open_reader(folder, "zip")


# ---- memory


def test_names_are_kept_in_one_array():
    given = ["a/b.jpg", "", "ä/ö.png", "\udcff.jpg", "x" * 300]
    names = pickle.loads(pickle.dumps(Names(given)))
    assert list(names) == given
    assert (names[-1], names[1:3]) == (given[-1], given[1:3])
    with pytest.raises(IndexError):
        names[5]
    assert list(Names([])) == []


def test_a_listing_takes_few_bytes_a_file(tmp_path):
    """Strings and tuples would take 200."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(500):
            (tmp_path / label / f"{label}_{number:08d}.JPEG").touch()
    reader = open_reader(tmp_path)
    whole, one = len(pickle.dumps(reader)), len("/a/a_00000000.JPEG")
    assert whole < 1000 * (one + 8 + 4) + 2000
    expected = sorted(str(path) for path in tmp_path.rglob("*.JPEG"))
    assert [path for path, _ in reader.samples] == expected
    assert [label for _, label in reader.samples] == [0] * 500 + [1] * 500


def test_a_label_of_too_many_digits_is_refused(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name, content in (("a.jpg", b""), ("a.cls", b"1" * 30)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=r"0\.tar: a label of more than 64 bits"):
        open_reader(tmp_path, "wds")
