"""Run lengths that are nearly right: refused, or read as the format is defined."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from botnet.masks import compress_mask, decode_mask, encode_mask
from tests.support.fuzz import cases

HEIGHT, WIDTH = 5, 7
CHARACTERS = "".join(map(chr, range(48, 112)))  # of COCO's strings


def runs_of(text):
    """The run lengths in COCO's string, from the definition of the format; None where it breaks off."""
    runs, value, place = [], 0, 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 31) << 5 * place
        place += 1
        if not code & 32:
            if code & 16:
                value -= 1 << 5 * place
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = place = 0
    return None if place else runs


def pixels_of(runs):
    """The mask with these run lengths; None where there is none."""
    if runs is None or any(run < 0 for run in runs) or sum(runs) != HEIGHT * WIDTH:
        return None
    return np.repeat(np.arange(len(runs)) % 2, runs).reshape(WIDTH, HEIGHT).T


def check(segmentation, expected):
    try:
        found = decode_mask(segmentation, HEIGHT, WIDTH)
    except ValueError:
        assert expected is None
        return
    assert expected is not None
    assert np.array_equal(found, expected)


RUNS = st.lists(st.integers(0, 12), max_size=8)
ANY_RUNS = st.lists(st.integers(-3, 40) | st.sampled_from([2**31, 2**32, 2**40, 2**63, -(2**31)]), max_size=6)


@cases(40)
@given(runs=ANY_RUNS | RUNS.map(lambda runs: [*runs, max(HEIGHT * WIDTH - sum(runs), 0)]))
def test_lists_of_run_lengths(runs):
    check({"size": [HEIGHT, WIDTH], "counts": runs}, pixels_of(runs))


@cases(40)
@given(
    text=st.text(CHARACTERS, max_size=8)
    | st.text(max_size=5)
    | st.tuples(st.integers(0, 2 ** (HEIGHT * WIDTH) - 1), st.integers(0, 9), st.text(CHARACTERS, max_size=2))
)
@example(text="S11o0")
def test_strings_of_run_lengths(text):
    if not isinstance(text, str):  # a sound string with characters replaced
        bits, at, by = text
        mask = np.array([bits >> i & 1 for i in range(HEIGHT * WIDTH)], np.uint8).reshape(HEIGHT, WIDTH)
        sound = encode_mask(mask)["counts"]
        text = sound[:at] + by + sound[at + len(by) :]
    known = all(character in CHARACTERS for character in text)
    check({"size": [HEIGHT, WIDTH], "counts": text}, pixels_of(runs_of(text)) if known else None)


@cases(10)
@given(size=st.lists(st.integers(-1, 9), max_size=3))
def test_sizes(size):
    try:
        compress_mask({"size": size, "counts": [HEIGHT * WIDTH]}, HEIGHT, WIDTH)
    except ValueError:
        assert size != [HEIGHT, WIDTH]
        return
    assert size == [HEIGHT, WIDTH]
