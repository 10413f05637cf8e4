"""What a report counts, on a set small enough to count by hand."""

import numpy as np
import pytest

from botnet.report.scores import score

CROWD = {"size": [100, 100], "counts": [0, 8000, 2000]}
TRUTH = {
    "images": [{"id": i, "width": 100, "height": 100, "file_name": f"{i}.jpg"} for i in (1, 2, 3)],
    "categories": [{"id": 3, "name": "b"}, {"id": 1, "name": "a"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [50, 50, 20, 20], "area": 400, "iscrowd": 0},
        {
            "id": 3,
            "image_id": 2,
            "category_id": 1,
            "bbox": [0, 0, 80, 100],
            "area": 8000,
            "iscrowd": 1,
            "segmentation": CROWD,
        },
        {"id": 4, "image_id": 2, "category_id": 3, "bbox": [50, 50, 20, 20], "area": 400, "iscrowd": 0},
    ],
}
FOUND = [
    {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9},  # right
    {"image_id": 1, "category_id": 1, "bbox": [50, 50, 20, 20], "score": 0.8},  # of the other class
    {"image_id": 2, "category_id": 1, "bbox": [5, 5, 30, 30], "score": 0.95},  # in the crowd
    {"image_id": 2, "category_id": 1, "bbox": [85, 5, 10, 10], "score": 0.6},  # nothing there
    {"image_id": 2, "category_id": 3, "bbox": [50, 50, 20, 20], "score": 0.5},  # right
    {"image_id": 3, "category_id": 3, "bbox": [5, 5, 30, 30], "score": 0.1},  # nothing there
]


@pytest.fixture(scope="module")
def scores():
    return score(TRUTH, FOUND, "box")


def test_precision_and_recall_at_every_score(scores):
    counted = [(o.score, o.precision, o.recall) for o in scores.operations]
    expected = [
        (0.9, 1, 1 / 3),
        (0.8, 1 / 2, 1 / 3),
        (0.6, 1 / 3, 1 / 3),
        (0.5, 2 / 4, 2 / 3),
        (0.1, 2 / 5, 2 / 3),
    ]
    assert np.allclose(counted, expected)  # the detection in the crowd is none of them
    assert scores.best == scores.operations[3]
    assert scores.best.f1 == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))


def test_confusion_counts_crowds_neither_as_found_nor_as_missed(scores):
    assert scores.confusion.tolist() == [
        [1, 0, 0],  # a: found
        [1, 1, 0],  # b: one taken for a, one found
        [1, 0, 0],  # background: taken for a
    ]


def test_classes_are_in_the_order_of_their_ids_without_crowds(scores):
    assert [(c.name, c.objects) for c in scores.classes] == [("a", 1), ("b", 2)]
    assert scores.classes[0].ap50 == pytest.approx(1)
    assert scores.precisions.shape == (2, 101)


def test_the_worst_images_come_first(scores):
    assert [(i.image_id, i.right, i.wrong, i.missed) for i in scores.images] == [
        (1, 1, 1, 1),
        (2, 1, 1, 0),
        (3, 0, 0, 0),
    ]
    assert scores.images[-1].f1 == 1


def test_nothing_found():
    scores = score(TRUTH, [], "box")
    assert scores.best is None
    assert scores.operations == []
    assert scores.confusion.tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 0]]
    assert scores.numbers["AP"] == 0
