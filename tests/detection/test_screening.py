"""Screening many annotations at once finds what the rules find one by one."""

from collections import Counter

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from botnet.detection.records import AnnotationRecord, AnnotationRules, Category, ImageRecord, Tables
from botnet.detection.screening import Screening

SQUARE = [1, 1, 9, 1, 9, 9]
# Coordinates in and around an image of 30 x 20, polygons of all lengths, lists too deep and too flat.
coordinates = st.sampled_from([0, 1, 9.5, 20, 29, 30, 30.4, 33, -0.2, -5, 1e300, 2**70])
polygons = st.lists(st.lists(coordinates, max_size=9), max_size=3)
odd = st.recursive(st.sampled_from([1, None, True, "a", {}, SQUARE]), lambda of: st.lists(of, max_size=6))
whole = st.sampled_from([None, [SQUARE], {"size": [20, 30], "counts": [600]}])


def annotation(number: int, segmentation: object) -> AnnotationRecord:
    text = msgspec.Raw(msgspec.json.encode(segmentation))
    return AnnotationRecord(
        id=number,
        image_id=1,
        category_id=1,
        bbox=(1.0, 1.0, 8.0, 8.0),
        segmentation=text,
        iscrowd=0,
        area=32.0,
    )


@given(st.lists(st.one_of(polygons, odd, whole), min_size=1, max_size=6))
# As many numbers as the lists of the last level have places, but not in them.
@example([[[[], [], [], [], [], []]], [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, [12, 13]]]])
@example([[SQUARE, 5]])
@example([[SQUARE], [[*SQUARE, [2, 2]]]])
def test_screening_says_what_the_rules_say(segmentations):
    records = [annotation(i, segmentation) for i, segmentation in enumerate(segmentations, 1)]
    tables = Tables([ImageRecord(1, "a.png", 20, 30)], [Category(1, "thing")], records)
    rules = AnnotationRules(tables)
    singly = [rules.check(record, i, False) for i, record in enumerate(records)]
    screening = Screening(tables)
    assert list(screening) == singly
    for (used, problems), sound, unmasked, length, segmentation in zip(
        singly, screening.sound, screening.unmasked, screening.lengths, segmentations, strict=True
    ):
        assert not (sound and problems)
        assert unmasked == (segmentation is None)
        assert length == len(msgspec.json.encode(segmentation))
        assert sound <= (used is not None)


def test_sound_polygons_and_run_lengths_are_not_looked_at_singly():
    segmentations = [[SQUARE], [SQUARE, SQUARE], None, {"size": [20, 30], "counts": [600]}] * 600
    records = [annotation(i, segmentation) for i, segmentation in enumerate(segmentations)]
    screening = Screening(Tables([ImageRecord(1, "a.png", 20, 30)], [Category(1, "thing")], records))
    assert Counter(screening.sound.tolist()) == {True: len(records)}


@pytest.mark.parametrize("number", range(4))
def test_one_broken_segmentation_is_told_from_its_neighbours(number):
    segmentations = [[SQUARE]] * 4
    segmentations[number] = [[1, 2]]
    records = [annotation(i, segmentation) for i, segmentation in enumerate(segmentations)]
    screening = Screening(Tables([ImageRecord(1, "a.png", 20, 30)], [Category(1, "thing")], records))
    assert screening.sound.tolist() == [i != number for i in range(4)]
