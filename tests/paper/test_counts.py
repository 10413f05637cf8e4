"""The paper's conventions give the digits it prints, and every difference has its reason."""

import io

import pytest
from rich.console import Console
from torch import nn

from botnet.layers import MHSA2d
from botnet.paper.counts import MARK, PRINTED, Comparison, as_printed, paper_params, paper_table, render_paper


@pytest.fixture(scope="module")
def table() -> list[Comparison]:
    return paper_table()


def text(renderable: object) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_the_papers_conventions_give_the_papers_digits(table: list[Comparison]) -> None:
    differing = []
    for row in table:
        p = row.printed
        if p.params is not None and as_printed(row.params / 1e6, p.params).rstrip("…") != p.params:
            differing.append((p.network, p.params))
        if p.madds is not None and as_printed(row.madds / 1e9, p.madds).rstrip("…") != p.madds:
            differing.append((p.network, p.madds))
    assert differing == [("BoT-S1-50", "4.27")]
    assert len(table) == len(PRINTED)


def test_truncated_digits_are_few_and_marked(table: list[Comparison]) -> None:
    truncated = [
        printed
        for row in table
        for printed, value in (
            (row.printed.params, row.params / 1e6),
            (row.printed.madds, row.madds / 1e9),
        )
        if printed is not None and as_printed(value, printed).endswith("…")
    ]
    assert truncated == ["102.98", "121", "240.56", "10.9", "53.9"]


@pytest.mark.parametrize(
    ("value", "printed", "shown"),
    [
        (85.413, "85.4", "85.4"),
        (240.568, "240.56", "240.56…"),
        (5.418, "4.27", "5.42"),
        (121.65, "121", "121…"),
    ],
)
def test_as_printed(value: float, printed: str, shown: str) -> None:
    assert as_printed(value, printed) == shown


def test_complete_counts(table: list[Comparison]) -> None:
    complete = {(row.printed.name, row.printed.size): row.all_madds / 1e9 for row in table}
    expected = {
        ("resnet50", 224): 4.089,
        ("botnet50", 224): 4.025,
        ("botnet_s1_50", 224): 5.418,
        ("botnet_t3", 224): 7.25,
        ("botnet_t4", 224): 10.96,
        ("botnet_t5", 256): 19.30,
        ("botnet_t6", 320): 23.32,
        ("botnet_t7", 384): 45.79,
    }
    for key, value in expected.items():
        assert complete[key] == pytest.approx(value, abs=6e-3), key


def test_every_difference_has_its_reason(table: list[Comparison]) -> None:
    for row in table:
        for printed, value, note in (
            (row.printed.params, row.all_params / 1e6, row.printed.params_note),
            (row.printed.madds, row.all_madds / 1e9, row.printed.madds_note),
        ):
            if printed is not None:
                assert bool(note) == (abs(value / float(printed) - 1) >= MARK), row.printed
    shown = text(render_paper(table))
    for row in table:
        for note in (row.printed.params_note, row.printed.madds_note):
            assert note in " ".join(shown.split())
    assert "4.27 G      5.42 G     5.418 G   +26.9% (" in shown
    assert "240.56 G   240.56… G" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_paper_params_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), MHSA2d(8, 2, stride=2, feat_size=(4, 6)))
    assert paper_params(model) == 24 + 192


def test_the_counts_of_one_network() -> None:
    assert [row.printed.source for row in paper_table("botnet50")] == ["Table 1", "note 10", "Table 9"]
    assert paper_table("resnet18") == []
