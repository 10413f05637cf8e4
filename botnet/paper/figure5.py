"""Figure 5: reported accuracy against multiply-adds and against the training step measured here."""

import csv
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import matplotlib
import yaml

from botnet.errors import DataError
from botnet.folders import make_folder
from botnet.models.complexity import info
from botnet.paper.rows import rows

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

HERE = Path(__file__).parent
OURS = "Srinivas et al. 2021 (arXiv:2101.11605): main text and, quoted by later papers, appendix"
MARKERS = {
    "BoTNet": "o",
    "SENet": "s",
    "EfficientNet": "^",
    "EfficientNet with RandAugment": "v",
    "DeiT": "D",
    "ViT": "P",
}
Side = tuple[tuple[int, int], str, str]
# Places of a name beside its point, best first: offset in typographic points, alignment.
SIDES: list[Side] = [
    ((-4, 5), "right", "bottom"),
    ((4, -5), "left", "top"),
    ((7, 0), "left", "center"),
    ((-7, 0), "right", "center"),
    ((0, 7), "center", "bottom"),
    ((0, -7), "center", "top"),
    ((4, 5), "left", "bottom"),
    ((-4, -5), "right", "top"),
]


@dataclass(frozen=True)
class Network:
    """A point of Figure 5.

    Args:
        name, family: in the plot.
        network: its name in timm; None if it is not timed.
        image_size: side in pixels.
        top1: percent, as `source` reports it.
        source: of the accuracy, and of printed multiply-adds.
        printed_madds: billions; None if they are counted here.
        step_ms: of the paper's training step on TPU-v3, if known.
    """

    name: str
    family: str
    network: str | None
    image_size: int
    top1: float
    source: str
    printed_madds: float | None = None
    step_ms: float | None = None

    @cached_property
    def madds(self) -> float:
        """Billion multiply-adds for one image: counted for the paper's own networks, printed for others."""
        if self.printed_madds is not None:
            return self.printed_madds
        assert self.network is not None
        return info(self.network, (self.image_size, self.image_size)).madds / 1e9


@cache
def read_networks() -> list[Network]:
    """Every network of Figure 5: the scaled rows of ``paper.yaml``, and those of ``figure5.yaml``."""
    data = yaml.safe_load((HERE / "figure5.yaml").read_text())
    scaled = [row.facts for row in rows().values() if row.id.startswith("scaled/")]
    own = [
        Network(
            facts["name"],
            "SENet" if facts["name"].startswith("SENet") else "BoTNet",
            facts["network"],
            facts["image_size"],
            facts["top1"],
            OURS,
            step_ms=data["step_ms"].get(facts["name"]),
        )
        for facts in scaled
    ]
    others = [
        Network(
            facts["name"],
            family,
            facts["network"],
            facts["image_size"],
            facts["top1"],
            listed["source"],
            printed_madds=facts["madds"],
        )
        for family, listed in data["families"].items()
        for facts in listed["networks"]
    ]
    return [*own, *others]


def figure5(out: Path, measured: Path | None = None) -> list[Path]:
    """Draw Figure 5 and write its numbers.

    Args:
        out: folder for ``figure5_madds.png``, ``figure5.csv`` and, for each setting measured, one
            ``figure5_step_SETTING.png``.
        measured: ``family.json`` of ``make bench-family``; None draws no step times.

    Returns:
        The files written.

    Raises:
        DataError: `measured` is not such a file, or `out` cannot be made.
    """
    networks = read_networks()
    steps = {} if measured is None else read_steps(measured, networks)
    make_folder(out)
    madds = {network.name: network.madds for network in networks}
    label = "multiply-adds for one image, 10⁹: counted for BoTNet and SENet, as printed for the others"
    written = [_draw(networks, madds, label, out / "figure5_madds.png")]
    for setting, seconds in steps.items():
        label = f"training step measured here, ms an image ({setting})"
        name = re.sub(r"\W+", "_", setting)
        written.append(_draw(networks, seconds, label, out / f"figure5_step_{name}.png"))
    written.append(out / "figure5.csv")
    with written[-1].open("w", newline="") as file:
        csv.writer(file).writerows(_table(networks, {"G multiply-adds": madds, **steps}))
    return written


def read_steps(path: Path, networks: Sequence[Network]) -> dict[str, dict[str, float]]:
    """Measured milliseconds per image, by setting and by network.

    One network trained in several ways is measured once; all its points share the time.

    Raises:
        DataError: no such file, or not one of ``make bench-family``.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; make bench-family writes build/benchmarks/family.json")
    steps: dict[str, dict[str, float]] = {}
    try:
        for case in json.loads(path.read_text()).values():
            for name, seconds in case["seconds"].items():
                setting = steps.setdefault(case["setting"], {})
                setting[name] = 1e3 * statistics.median(seconds) / case["batch"]
    except (ValueError, KeyError, TypeError, AttributeError, statistics.StatisticsError) as error:
        raise DataError(f"{path}: not written by make bench-family ({error!r}); run it again") from error
    by_shape = {
        (n.network, n.image_size): n.name for n in reversed(networks)
    }  # the first of the list is measured
    return {
        setting: {
            n.name: times[known]
            for n in networks
            if n.network and (known := by_shape[n.network, n.image_size]) in times
        }
        for setting, times in steps.items()
    }


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names of the points (cost, accuracy) for which no other is both as cheap and as accurate, by cost.

    Of equal points the first is on the front.
    """
    front: list[str] = []
    for name in sorted(points, key=lambda n: (points[n][0], -points[n][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front


def _draw(networks: Sequence[Network], costs: dict[str, float], label: str, path: Path) -> Path:
    """Save a plot: for each family its points and its Pareto front, and the front of all."""
    shown = [network for network in networks if network.name in costs]
    points = {network.name: (costs[network.name], network.top1) for network in shown}
    figure, axes = plt.subplots(figsize=(9, 6.5), dpi=130, layout="constrained")
    front = [points[name] for name in pareto_front(points)]
    axes.plot(*zip(*front, strict=True), color="0.8", linewidth=7, solid_capstyle="round", zorder=0)
    axes.plot([], [], color="0.8", linewidth=7, label="Pareto front of all")
    for colour, (family, marker) in enumerate(MARKERS.items()):
        own = {network.name: points[network.name] for network in shown if network.family == family}
        if not own:
            continue
        axes.plot(*zip(*own.values(), strict=True), marker, color=f"C{colour}", label=family, markersize=7)
        best = [own[name] for name in pareto_front(own)]
        axes.plot(*zip(*best, strict=True), "-", color=f"C{colour}", linewidth=1.2)
    axes.set_xscale("log")
    axes.set(xlabel=label, ylabel="ImageNet top-1 accuracy (%), as the papers report it: not measured here")
    axes.grid(alpha=0.3, which="both")
    axes.margins(x=0.09)  # for the names at the right
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    colours = {network.name: f"C{[*MARKERS].index(network.family)}" for network in shown}
    _name_points(axes, points, colours)
    figure.savefig(path)
    plt.close(figure)
    return path


def _name_points(axes: Axes, points: dict[str, tuple[float, float]], colours: dict[str, str]) -> None:
    """Write each name beside its point, where it overlaps as few lines, points and names as possible."""
    figure = axes.figure
    figure.canvas.draw()  # computes the layout
    scale = figure.dpi / 72  # pixels a typographic point
    lines = [
        (line.get_transform().transform_path(line.get_path()), scale * line.get_linewidth() / 2)
        for line in axes.lines
        if line.get_linestyle() != "None"
    ]
    places = axes.transData.transform([*points.values()])
    taken = [Bbox([place, place]).padded(4 * scale) for place in places]  # the markers

    def overlaps(box: Bbox) -> int:
        outside = sum(not axes.bbox.contains(*corner) for corner in box.corners())
        crossed = sum(path.intersects_bbox(box.padded(width), filled=False) for path, width in lines)
        return int(box.count_overlaps(taken) + crossed + outside)

    for name, point in points.items():
        text = axes.annotate(name, point, (0, 0), textcoords="offset points", fontsize=8, color=colours[name])
        boxes: list[Bbox] = []
        for side in SIDES:
            _move(text, side)
            boxes.append(text.get_window_extent())
        best = min(range(len(SIDES)), key=lambda index: overlaps(boxes[index]))
        _move(text, SIDES[best])
        taken.append(boxes[best].padded(3 * scale))


def _move(text: Annotation, side: Side) -> None:
    position, horizontal, vertical = side
    text.set(position=position, ha=horizontal, va=vertical)


def _table(networks: Sequence[Network], costs: dict[str, dict[str, float]]) -> list[list[Any]]:
    """Rows of the CSV file: every number of the plots with its source, and the fronts of each network."""
    fronts = {
        what: pareto_front({n.name: (cost[n.name], n.top1) for n in networks if n.name in cost})
        for what, cost in costs.items()
    }
    titles = [
        title if what == "G multiply-adds" else f"ms an image, {title}"
        for what in costs
        for title in (what, f"{what}: on the Pareto front")
    ]
    header = ["family", "network", "pixels", "top-1 reported, %", "reported by", "paper step on TPU-v3, ms"]
    table: list[list[Any]] = [[*header, "M.Adds are", *titles]]
    for n in networks:
        row: list[Any] = [n.family, n.name, n.image_size, n.top1, n.source, n.step_ms]
        row.append("counted" if n.printed_madds is None else "printed")
        for what, cost in costs.items():
            known = n.name in cost
            row += [f"{cost[n.name]:.4g}", int(n.name in fronts[what])] if known else ["", ""]
        table.append(row)
    return table
