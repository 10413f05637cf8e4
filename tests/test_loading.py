"""botnet.load: every form of a trained model."""

import numpy as np
import pytest

import botnet
from botnet.classification.checkpoint import create_classifier
from botnet.classification.image_classifier import ImageClassifier
from botnet.cli import main
from botnet.deploy.hub import save_published
from botnet.detection.detector import Detector
from botnet.errors import CheckpointError, ConfigError
from botnet.training.checkpoint_file import write_file
from tests.support.classification import picture
from tests.support.detection import write_detector
from tests.support.recipes import write_recipe

EVALUATION = {
    "image_size": 64,
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0, 0, 0),
    "std": (1, 1, 1),
}


@pytest.fixture
def image(tmp_path):
    picture(0, (60, 40)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def run(tmp_path):
    """A run with a best and a last checkpoint of other weights."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    write_detector(folder / "best.ckpt")
    (folder / "last.ckpt").write_bytes(b"not to be read")
    return folder.parent


def write_classifier(path):
    model = create_classifier("botnet_s1_tiny", 3, 64)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    spec = {"name": "botnet_s1_tiny", "num_classes": 3, "image_size": 64}
    about = {"class_names": ["zebra", "ant", "bee"], "evaluation": EVALUATION, "classifier": spec}
    write_file({"state_dict": state, "botnet": about}, path)
    return path


def test_a_run_its_checkpoint_and_its_published_folder_answer_alike(run, image, tmp_path):
    save_published(run, tmp_path / "published", "mit")
    expected = None
    for source in (run, run / "checkpoints" / "best.ckpt", tmp_path / "published", str(run)):
        model = botnet.load(source)
        assert isinstance(model, Detector)
        assert model.task == "detector"
        found = model.predict(image, threshold=0.0)
        expected = found if expected is None else expected
        assert len(found) > 0
        assert np.array_equal(found.xyxy, expected.xyxy)
        assert np.array_equal(found["category_id"], expected["category_id"])


@pytest.mark.long
def test_names_and_ids_are_those_of_the_training_data(made, tmp_path):
    """A category 0, gaps, and a file that lists them in another order."""
    made.data["categories"] = [{"id": 90, "name": "cat"}, {"id": 0, "name": "ant"}, {"id": 7, "name": "dog"}]
    names = {90: "cat", 0: "ant", 7: "dog"}
    for annotation, category in zip(made.data["annotations"], (0, 7), strict=True):
        annotation["category_id"] = category
    made.annotation(category_id=90)
    files = {f"{split}_instances": str(made.write()) for split in ("train", "val")}
    files |= {f"{split}_images": str(made.folder) for split in ("train", "val")}
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path, run, **files, batch_size=2, val_batch_size=2)
    assert main(["fit", "--config", str(recipe), "--trainer.max_epochs", "1"]) == 0
    model = botnet.load(run)
    dataset = made.dataset()
    (_, target), annotations = dataset[0], dataset.instances.annotations_of(7)
    labels = target["labels"].numpy()  # what the network learns to give
    # As many boxes as the truth has, each with its label.
    found = {"boxes": target["boxes"].numpy(), "scores": np.ones(3, np.float32), "labels": labels}
    model.run = lambda prepared: [found]
    answer = model.predict(made.folder / "a.png")
    assert sorted(answer["category_id"].tolist()) == [0, 7, 90]
    assert answer["category_id"].tolist() == [annotation.category_id for annotation in annotations]
    assert answer["class_name"].tolist() == [names[category] for category in answer["category_id"]]
    assert [record["category_id"] for record in botnet.to_coco(answer, 7)] == answer["category_id"].tolist()


def test_a_classifier_answers_with_its_classes(image, tmp_path):
    model = botnet.load(write_classifier(tmp_path / "x.ckpt"))
    assert isinstance(model, ImageClassifier)
    assert (model.task, model.class_names) == ("classifier", ["zebra", "ant", "bee"])
    found = model.predict(image)
    assert sorted(found.class_id.tolist()) == [0, 1, 2]
    assert found.confidence.sum() == pytest.approx(1)
    assert (np.diff(found.confidence) <= 0).all()
    both = model.predict([image, image], batch_size=2)
    assert np.allclose(both[1].confidence, found.confidence, atol=1e-6)
    assert found.get_top_k(1)[0].tolist() == [found.class_id[0]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.ckpt", "no such checkpoint"),
        ("photo.png", "cannot be read as data"),
        (".", "holds neither a run"),
    ],
)
def test_what_is_no_model_is_refused(source, message, image, monkeypatch):
    monkeypatch.chdir(image.parent)
    with pytest.raises(CheckpointError, match=message):
        botnet.load(source)


def test_an_unknown_device_is_refused(run):
    with pytest.raises(ConfigError, match="gpux"):
        botnet.load(run, device="gpux")
