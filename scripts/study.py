"""What global attention with relative positions reaches that convolutions do not: `make study`.

Trains every network of docs/study.md on the tasks of `botnet make-relations`, prints the tables and draws the
pictures of docs/images/study-*.png. A finished run is a row of docs/study.csv or docs/study-starts.csv and is
not repeated, so that an interrupted study goes on where it stopped.
"""

import argparse
import copy
import csv
import json
import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from botnet.demo.relations import BANDS, CLASSES, make_relations
from botnet.layers import MHSA2d
from botnet.models import bottleneck_transformer, insert_bot, insert_non_local
from botnet.models.complexity import multiply_adds, total
from botnet.models.zoo import BoTNet, Network

CANVAS, STRIDE = 128, 32  # pixels; of c5
TRAIN, VAL = 6000, 1500  # images
BATCH, RATE = 32, 1e-3
STEPS = 400
SEEDS = {"cue": 3, "direction": 3, "match": 3, "local": 1}

RUNS = Path("runs/study")  # trained weights, for the pictures
DOCS = Path("docs")
FIELDS = (
    "task", "network", "seed", "steps", "parameters", "multiply_adds", "loss", "accuracy", *BANDS, "seconds",
    "commit",
)  # fmt: skip
START_FIELDS = (
    "optimiser", "start", "qk_rate", "seed", "steps", "accuracy", "wakes", "entropy", "spread", "seconds",
    "commit",
)  # fmt: skip

# A trunk of 4 x 4 cells in c5. c4 has two blocks, since those of Table 7 are inserted between the last two.
TRUNK = Network("-", (1, 1, 2, 2), None, CANVAS, widths=(16, 32, 64, 96), stem_width=8, qkv_std="fan_in")


def non_local(model: Any, img_size: Any, qkv_std: Any) -> Any:
    return insert_non_local(model)


bot = bottleneck_transformer
# fmt: off
NETWORKS = {
    "resnet":         ("ResNet", TRUNK),
    "bot":            ("BoT, qk + qr", replace(TRUNK, surgery=bot)),
    "qk":             ("BoT, qk", replace(TRUNK, surgery=partial(bot, position=None))),
    "qr":             ("BoT, qr", replace(TRUNK, surgery=partial(bot, content=False))),
    "absolute":       ("BoT, qk + absolute", replace(TRUNK, surgery=partial(bot, position="absolute"))),
    "non_local":      ("R + Non-Local in c4", replace(TRUNK, surgery=non_local)),
    "bot_c4":         ("R + BoT in c4", replace(TRUNK, surgery=insert_bot)),
    "bot_c4_c5":      ("R + BoT in c4, c5", replace(TRUNK, surgery=partial(insert_bot, stages=["c4", "c5"]))),
    # c5 narrower or wider, until the counts are those of BoT
    "resnet_params":  ("ResNet, BoT's parameters", replace(TRUNK, widths=(16, 32, 64, 80))),
    "resnet_madds":   ("ResNet, BoT's multiply-adds", replace(TRUNK, widths=(16, 32, 64, 100))),
}
# fmt: on

Run = tuple[str, str, int]  # task, network, seed
STARTS = ("authors", "fan-in", "timm")
QK_RATES = (1.0, 4.0)  # of queries and keys, as a multiple of the others' rate
OPTIMISERS = ("adamw", "sgd")
START_SEEDS = 3
EVERY = 20  # steps between two looks at the attention
AWAKE = 0.95  # of the entropy of even attention


def first_runs() -> list[Run]:
    """One seed of what a first table needs."""
    first = [(task, network, 0) for task in ("cue", "direction") for network in NETWORKS]
    return first + [(task, network, 0) for task in ("local", "match") for network in ("resnet", "bot")]


def planned() -> list[Run]:
    """Every run of the main study."""
    rest = [
        (task, network, seed)
        for seed in range(max(SEEDS.values()))
        for task in ("cue", "direction", "match", "local")
        for network in NETWORKS
        if seed < SEEDS[task]
    ]
    return list(dict.fromkeys(first_runs() + rest))


QUICK = [(task, network, 0) for task in ("cue", "local") for network in ("resnet", "bot")]


@dataclass(frozen=True)
class Pictures:
    """A split in memory. `objects` is (n, objects, 4): row and column of the cell of c5, class, band."""

    pixels: Tensor  # (n, 3, H, W) uint8
    objects: Tensor
    records: list[list[dict[str, Any]]]


@cache
def pictures(task: str, split: str) -> Pictures:
    folder = Path("data/relations") / task
    make_relations(folder, task, TRAIN, VAL, CANVAS)
    truth = json.loads((folder / f"instances_{split}.json").read_text())
    pixels = np.stack([np.asarray(Image.open(folder / split / i["file_name"])) for i in truth["images"]])
    records: list[list[dict[str, Any]]] = [[] for _ in truth["images"]]
    for record in truth["annotations"]:
        records[record["image_id"] - 1].append(record)
    objects = [
        [(*cell(r["bbox"]), r["category_id"] - 1, BANDS.index(r["attributes"]["band"])) for r in of_image]
        for of_image in records
    ]
    return Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(objects), records)


def cell(box: list[float], stride: int = STRIDE) -> tuple[int, int]:
    """Row and column of the cell that holds the centre of a box."""
    x, y, width, height = box
    return int((y + height / 2) // stride), int((x + width / 2) // stride)


class Reader(nn.Module):
    """A network whose c5 is read at the cells of the objects."""

    def __init__(self, network: Network, classes: int) -> None:
        super().__init__()
        # Blocks that start as the identity would take most of the few steps to wake.
        trunk = BoTNet(network, num_classes=0, global_pool="", zero_init_last=False)
        self.trunk = trunk.to(memory_format=torch.channels_last)
        self.head = nn.Linear(self.trunk.num_features, classes)

    def c5(self, pixels: Tensor) -> Tensor:
        x = (pixels.float() - 128) / 64
        return self.trunk.forward_features(x.contiguous(memory_format=torch.channels_last))

    def forward(self, pixels: Tensor, objects: Tensor) -> Tensor:
        """Logits (B, objects, classes)."""
        image = torch.arange(len(pixels))[:, None]
        return self.head(self.c5(pixels)[image, :, objects[..., 0], objects[..., 1]])


def batches(number: int, seed: int) -> Iterator[Tensor]:
    """Indices of images, one permutation after the other."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(number, generator=generator)
        yield from order[: number - number % BATCH].split(BATCH)


def step(model: Reader, optimiser: torch.optim.Optimizer, data: Pictures, indices: Tensor) -> Tensor:
    objects = data.objects[indices]
    logits = model(data.pixels[indices], objects)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), objects[..., 2].flatten())
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()


def schedule(
    optimiser: torch.optim.Optimizer, rate: float, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """A tenth of warm-up, then cosine."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )


@torch.no_grad()
def correct(model: Reader, data: Pictures) -> Tensor:
    """Whether each object is named rightly, (n, objects) bool."""
    model.eval()
    answers = [
        model(pixels, objects).argmax(-1)
        for pixels, objects in zip(data.pixels.split(100), data.objects.split(100), strict=True)
    ]
    model.train()
    return torch.cat(answers) == data.objects[..., 2]


def accuracies(model: Reader, data: Pictures) -> dict[str, float]:
    """Part of the objects named rightly, of all and of each band."""
    right, band = correct(model, data), data.objects[..., 3]
    values = {"accuracy": right} | {name: right[band == i] for i, name in enumerate(BANDS)}
    return {name: round(value.float().mean().item(), 4) for name, value in values.items()}


def train(task: str, network: str, seed: int) -> tuple[Reader, dict[str, Any]]:
    """A trained network and its row."""
    data = pictures(task, "train")
    torch.manual_seed(seed)
    model = Reader(NETWORKS[network][1], len(CLASSES[task])).train()
    optimiser = torch.optim.AdamW(model.parameters(), RATE)
    rates = schedule(optimiser, RATE, STEPS)
    losses = []
    for _, indices in zip(range(STEPS), batches(TRAIN, seed), strict=False):
        losses.append(step(model, optimiser, data, indices))
        rates.step()
    row = {
        "steps": STEPS,
        "parameters": sum(parameter.numel() for parameter in model.trunk.parameters()),
        "multiply_adds": total(multiply_adds(model.trunk, (CANVAS, CANVAS))),
        "loss": round(torch.stack(losses[-50:]).mean().item(), 4),
    }
    return model, row | accuracies(model, pictures(task, "val"))


# The second study: how attention starts.


def start_attention(model: nn.Module, start: str) -> None:
    """Draw queries, keys, values and position tables as the authors, with fan-in, or as timm does."""
    for layer in model.modules():
        if isinstance(layer, MHSA2d):
            layer.qkv_std = 0.01 if start == "authors" else layer.dim**-0.5
            layer.reset_parameters()
            if (
                start == "timm" and layer.pos_embed is not None
            ):  # its position logits are not divided by sqrt(d)
                for table in layer.pos_embed.parameters():
                    table.data *= (layer.dim // layer.heads) ** 0.5


@torch.no_grad()
def attention_state(model: Reader, data: Pictures, number: int = 64) -> tuple[float, float]:
    """Entropy of the attention over that of even attention, and standard deviation of the logits of a query.

    Means over the heads and queries of the first block of c5, for the first `number` pictures.
    """
    model = copy.deepcopy(model)  # running statistics of its batch norms stay as they are
    layer, maps = first_attention(model), []
    layer.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    model.c5(data.pixels[:number])
    # In double precision: sharp attention has weights that float32 rounds to 0, which has no logarithm.
    rows = layer.double().attention_weights(maps[0].double(), torch.arange(maps[0][0, 0].numel()))
    entropy = torch.special.entr(rows).sum(-1).mean() / math.log(rows.shape[-1])
    return entropy.item(), rows.log().std(-1).mean().item()  # logits but for a constant


def first_attention(model: nn.Module) -> MHSA2d:
    return next(layer for layer in model.modules() if isinstance(layer, MHSA2d))


def train_start(optimiser_name: str, start: str, qk_rate: float, seed: int) -> dict[str, Any]:
    """Train BoT on `cue` from a start; its row."""
    data = pictures("cue", "train")
    torch.manual_seed(seed)
    model = Reader(NETWORKS["bot"][1], len(CLASSES["cue"])).train()
    start_attention(model, start)
    if optimiser_name == "adamw":
        rate = RATE
        optimiser: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), rate)
    else:
        rate = 0.1
        optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    rates = schedule(optimiser, rate, STEPS)
    layers = [layer for layer in model.modules() if isinstance(layer, MHSA2d)]
    states = [attention_state(model, data)]
    for number, indices in zip(range(1, STEPS + 1), batches(TRAIN, seed), strict=False):
        before = [layer.qkv.weight[: 2 * layer.dim].detach().clone() for layer in layers]
        step(model, optimiser, data, indices)
        rates.step()
        for layer, old in zip(layers, before, strict=True):  # q and k are two thirds of one convolution
            new = layer.qkv.weight.data[: 2 * layer.dim]
            new.copy_(old + qk_rate * (new - old))
        if number % EVERY == 0:
            states.append(attention_state(model, data))
    entropy, spread = zip(*states, strict=True)
    wakes = next((i * EVERY for i, value in enumerate(entropy) if value < AWAKE), "")
    return {
        "steps": STEPS,
        "accuracy": accuracies(model, pictures("cue", "val"))["accuracy"],
        "wakes": wakes,
        "entropy": " ".join(f"{value:.3f}" for value in entropy),
        "spread": " ".join(f"{value:.3g}" for value in spread),
    }


# Rows.


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add_row(path: Path, fields: tuple[str, ...], row: dict[str, Any]) -> None:
    """Add a row to a table, which is replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    with scratch.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*read_rows(path), row])
    scratch.replace(path)


def commit(script: str = __file__) -> str:
    """The commit that a run is of, with a + if the code differs from it."""
    git = partial(subprocess.run, capture_output=True, text=True, check=True)
    changed = git(["git", "status", "--porcelain", "--", "botnet", script]).stdout
    return git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + "+" * bool(changed)


def weights(run: Run) -> Path:
    return RUNS / f"{run[0]}-{run[1]}-{run[2]}.pt"


def run_all(runs: list[Run], table: Path) -> None:
    """Train what the table lacks."""
    done = {(row["task"], row["network"], int(row["seed"])) for row in read_rows(table)}
    for run in runs:
        if run in done:
            continue
        for split in ("train", "val"):
            pictures(run[0], split)  # in memory now: not part of the seconds
        state, started = commit(), time.process_time()
        model, row = train(*run)
        row |= {"seconds": round(time.process_time() - started), "commit": state}
        RUNS.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights(run))
        add_row(table, FIELDS, dict(zip(FIELDS, run, strict=False)) | row)
        print(*run, *(row[name] for name in ("accuracy", *BANDS, "seconds")), flush=True)


def run_starts(table: Path, seeds: int) -> None:
    """Train what the table of starts lacks."""
    done = {tuple(row[name] for name in START_FIELDS[:4]) for row in read_rows(table)}
    for seed in range(seeds):
        for settings in ((o, s, r, seed) for o in OPTIMISERS for s in STARTS for r in QK_RATES):
            if tuple(map(str, settings)) in done:
                continue
            for split in ("train", "val"):
                pictures("cue", split)
            state, started = commit(), time.process_time()
            row = train_start(*settings)
            row |= {"seconds": round(time.process_time() - started), "commit": state}
            add_row(table, START_FIELDS, dict(zip(START_FIELDS, settings, strict=False)) | row)
            print(*settings, row["accuracy"], row["wakes"], row["seconds"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="ResNet and BoT on cue and local, one seed")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the same numbers on any number of cores
    if args.quick:
        run_all(QUICK, RUNS / "quick.csv")
        return
    run_all(first_runs(), DOCS / "study.csv")
    run_starts(DOCS / "study-starts.csv", 1)
    run_all(planned(), DOCS / "study.csv")
    run_starts(DOCS / "study-starts.csv", START_SEEDS)


if __name__ == "__main__":
    main()
