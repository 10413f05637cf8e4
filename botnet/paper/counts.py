"""The parameters and multiply-adds that the paper prints, beside the same networks counted here."""

from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from torch import nn

from botnet.models.complexity import COMPLETE, build_on_meta, multiply_adds, total
from botnet.models.surgery import STAGES

NO_FC = COMPLETE - {"fc"}
NO_QKV = COMPLETE - {"qkv"}
DENSE_POSITION = NO_FC - {"position"} | {"dense position"}

MARK = 0.005  # relative difference from which on the reason is given


@dataclass(frozen=True)
class Printed:
    """A count that the paper prints, and the convention that gives it.

    Args:
        network: the paper's name.
        source: where it is printed.
        name: the name in timm.
        size: side of the image in pixels.
        params: millions, as printed; None if not printed.
        madds: billions, as printed; None if not printed.
        kinds: the products that the paper's figure contains.
        first_stride: count with the stride in a block's first 1x1 and not in its 3x3.
        se_in_c5: count the squeeze-and-excitation that c5 would have if its blocks were convolutional,
            in parameters and in multiply-adds.
        params_note, madds_note: why the complete count differs.
    """

    network: str
    source: str
    name: str
    size: int
    params: str | None
    madds: str | None
    kinds: frozenset[str]
    first_stride: bool = False
    se_in_c5: bool = False
    params_note: str = ""
    madds_note: str = ""


SE_NOTE = "printed with the squeeze-and-excitation in c5 that its attention blocks do not have"

# fmt: off
PRINTED = (
    Printed("R50", "Table 1", "resnet50", 1024, "25.5", "85.4", NO_FC),
    Printed("BoT50", "Table 1", "botnet50", 1024, "20.8", "102.98", NO_FC),
    Printed("BoT50", "note 10", "botnet50", 1024, None, "121", DENSE_POSITION,
            madds_note="121 counts the product with the positions for every pair of cells, once per axis"),
    Printed("R101", "note 10", "resnet101", 1024, None, "162.99", NO_FC),
    Printed("R152", "note 10", "resnet152", 1024, None, "240.56", NO_FC),
    Printed("R50", "Table 9", "resnet50", 224, "25.5", "3.86", COMPLETE, first_stride=True,
            madds_note="3.86 has the stride in the first 1x1 of a block; here, as for 85.4, in the 3x3"),
    Printed("BoT50", "Table 9", "botnet50", 224, "20.8", "3.79", NO_QKV,
            madds_note="3.79 leaves out the projections to queries, keys and values"),
    Printed("BoT-S1-50", "Table 9", "botnet_s1_50", 224, "20.8", "4.27", COMPLETE,
            madds_note="no convention is known that gives 4.27; recounted completely"),
    Printed("T3", "appendix", "botnet_t3", 224, "33.5", "7.3", COMPLETE, se_in_c5=True, params_note=SE_NOTE,
            madds_note="7.3 includes that squeeze-and-excitation, too, and is rounded"),
    Printed("T4", "appendix", "botnet_t4", 224, "54.7", "10.9", COMPLETE, se_in_c5=True, params_note=SE_NOTE,
            madds_note="10.9 is truncated, not rounded"),
    Printed("T5", "appendix", "botnet_t5", 256, "75.1", "19.3", COMPLETE, se_in_c5=True, params_note=SE_NOTE),
    Printed("T6", "appendix", "botnet_t6", 320, "53.9", "23.3", COMPLETE, se_in_c5=True, params_note=SE_NOTE),
    Printed("T7", "appendix", "botnet_t7", 384, "75.1", "45.8", COMPLETE, se_in_c5=True, params_note=SE_NOTE),
    Printed("SENet-50", "appendix", "senet_s0", 224, "28.0", "4.09", COMPLETE),
    Printed("SENet-101", "appendix", "senet_s1", 224, "49.2", "7.8", COMPLETE),
    Printed("SENet-152", "appendix", "senet_s3", 288, "66.6", "19.04", COMPLETE),
    Printed("SENet-350", "appendix", "senet_s4", 320, "115.2", "52.9", COMPLETE),
)
# fmt: on


@dataclass(frozen=True)
class Comparison:
    """A printed count beside the same network counted here.

    Args:
        printed: as in the paper.
        params, madds: counted as the paper counts.
        all_params, all_madds: the complete counts.
    """

    printed: Printed
    params: int
    madds: int
    all_params: int
    all_madds: int


def paper_params(model: nn.Module) -> int:
    """Parameters as the paper counts them: convolutions, projections and classifier.

    Without normalisation, position tables, and the biases of squeeze-and-excitation.
    """
    convs = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    return convs + sum(p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters())


def paper_table(name: str | None = None) -> list[Comparison]:
    """Every count that the paper prints, or those of one network, beside the same network counted here."""
    return [compare(row) for row in PRINTED if name in (None, row.name)]


def compare(row: Printed) -> Comparison:
    """Count the network of a printed row, completely and by the convention of the row."""
    size = (row.size, row.size)
    model = build_on_meta(row.name, size)
    counts = multiply_adds(model, size)
    all_madds = total(counts, COMPLETE)
    if row.first_stride:
        for stage in STAGES.values():
            first: Any = model.get_submodule(f"{stage}.0")
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
        counts = multiply_adds(model, size)
    # Two 1x1 on a map of one cell: as many multiply-adds as weights.
    c5: Any = model.get_submodule("layer4")
    se = sum(2 * block.conv3.out_channels**2 // 16 for block in c5) if row.se_in_c5 else 0
    return Comparison(
        row,
        params=paper_params(model) + se,
        madds=total(counts, row.kinds) + se,
        all_params=sum(p.numel() for p in model.parameters()),
        all_madds=all_madds,
    )


def render_paper(rows: list[Comparison]) -> Group:
    """Printed counts beside the same by the paper's convention and complete, and why they differ."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="Counts the paper prints, and ours")
    table.add_column("network")
    table.add_column("printed in")
    for column in ("px", "printed", "recounted", "complete", "diff."):
        table.add_column(column, justify="right")
    notes: list[str] = []
    for row in rows:
        p = row.printed
        for printed, recounted, complete, unit, note in (
            (p.params, row.params / 1e6, row.all_params / 1e6, "M", p.params_note),
            (p.madds, row.madds / 1e9, row.all_madds / 1e9, "G", p.madds_note),
        ):
            if printed is None:
                continue
            difference = complete / float(printed) - 1
            mark = "    "
            if abs(difference) >= MARK:
                if note not in notes:
                    notes.append(note)
                mark = f" [bold]({notes.index(note) + 1})[/]"
            table.add_row(
                p.network,
                p.source,
                str(p.size),
                f"{printed} {unit}",
                f"{as_printed(recounted, printed)} {unit}",
                f"{complete:.3f} {unit}",
                f"{difference:+.1%}{mark}",
            )
    return Group(
        table,
        "M: million parameters. G: billion multiply-adds for one square image of that side.",
        "recounted: as the paper counts, to the printed digits; … where these are truncated, not rounded.",
        f"diff.: of the complete count from the printed one; from {MARK:.1%} on with the reason.",
        *(f"({number}) {note}." for number, note in enumerate(notes, 1)),
    )


def as_printed(value: float, printed: str) -> str:
    """A value with the decimals of a printed one: rounded, or truncated (with …) if only that agrees."""
    decimals = len(printed.partition(".")[2])
    rounded = f"{value:.{decimals}f}"
    truncated = f"{int(value * 10**decimals) / 10**decimals:.{decimals}f}"
    return f"{truncated}…" if rounded != printed == truncated else rounded
