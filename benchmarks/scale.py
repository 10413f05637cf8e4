"""Data sets at the size of COCO and ImageNet: time, peak memory and what each process keeps.

An instances file of the size of COCO's training set is made of repeated real records; a tree of class folders
and shards of the size of ImageNet are made of empty images; all in a temporary folder. Each measurement has a
process of its own.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

IMAGES, ANNOTATIONS = 118_287, 860_001  # of COCO's instances_train2017
VALIDATED, DETECTIONS = 5_000, 100  # images of its validation, detections in each
CLASSES, FILES = 1_000, 1_281_167  # of ImageNet's training set
SHARD = 10_000  # samples
LOOKED_UP = 2_000  # images whose annotations a worker reads


# ---- making data


def make_instances(source: Path, target: Path, fraction: float) -> None:
    """Write an instances file of repeated real records."""
    real = json.loads(source.read_text())
    place = {image["id"]: i for i, image in enumerate(real["images"])}
    annotations = sorted(real["annotations"], key=lambda annotation: place[annotation["image_id"]])
    count, period = int(IMAGES * fraction), len(real["images"])

    def images() -> Iterator[dict[str, Any]]:
        for i in range(count):
            yield real["images"][i % period] | {"id": i + 1, "file_name": f"{i + 1:012d}.jpg"}

    def objects() -> Iterator[dict[str, Any]]:
        for i in range(int(ANNOTATIONS * fraction)):
            turn, index = divmod(i, len(annotations))
            image = (turn * period + place[annotations[index]["image_id"]]) % count + 1
            yield annotations[index] | {"id": i + 1, "image_id": image}

    with target.open("w") as file:
        file.write(f'{{"categories": {json.dumps(real["categories"])}')
        for key, records in (("images", images()), ("annotations", objects())):
            file.write(f', "{key}": [')
            for i, record in enumerate(records):
                file.write((", " if i else "") + json.dumps(record))
            file.write("]")
        file.write("}")


def make_folders(root: Path, count: int) -> None:
    """Empty images in class folders."""
    for label in range(CLASSES):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for i in range(label, count, CLASSES):
            os.close(os.open(folder / f"{folder.name}_{i}.JPEG", os.O_CREAT | os.O_WRONLY))


def make_shards(root: Path, count: int) -> None:
    """WebDataset shards of empty images."""
    root.mkdir()
    for first in range(0, count, SHARD):
        with tarfile.open(root / f"{first // SHARD:05d}.tar", "w") as shard:
            for i in range(first, min(first + SHARD, count)):
                shard.addfile(tarfile.TarInfo(f"{i:08d}.jpg"))
                label = str(i % CLASSES).encode()
                info = tarfile.TarInfo(f"{i:08d}.cls")
                info.size = len(label)
                shard.addfile(info, io.BytesIO(label))


# ---- measurements: each returns what it has made, which is kept


def instances_of(root: Path) -> Any:
    from botnet.detection.coco import CocoInstances

    return CocoInstances(root / "instances.json")


def folders_of(root: Path) -> Any:
    from botnet.classification.readers import open_reader

    return open_reader(root / "folders")


def shards_of(root: Path) -> Any:
    from botnet.classification.readers import open_reader

    return open_reader(root / "shards", "wds")


def read_pycocotools(root: Path) -> Any:
    from pycocotools.coco import COCO

    return timed(lambda: COCO(root / "instances.json"))


def scored(root: Path) -> Iterator[tuple[list[dict[str, Any]], list[Any]]]:
    """Objects and detections of images, as COCO's records; the detections are objects with moved boxes."""
    from botnet.detection.coco import CocoInstances

    instances, random = CocoInstances(root / "few.json"), np.random.default_rng(0)
    real = [instances.annotations_of(image.id) for image in instances.images]
    real = [annotations for annotations in real if annotations]
    for i in range(VALIDATED):
        annotations = real[i % len(real)]
        objects: list[dict[str, Any]] = [
            {
                "image_id": i + 1,
                "category_id": annotation.category_id,
                "bbox": list(annotation.bbox),
                "segmentation": instances.mask_of(annotation),
                "iscrowd": int(annotation.iscrowd),
                "area": annotation.area,
            }
            for annotation in annotations
        ]
        found: list[Any] = []
        for score in sorted(random.random(DETECTIONS).tolist(), reverse=True):
            record = {**objects[random.integers(len(objects))], "score": score}
            moved = np.asarray(record["bbox"]) + random.normal(0, 4, 4)
            found.append(record | {"bbox": np.maximum(moved, [-9e9, -9e9, 2, 2]).tolist()})
        yield objects, found


def score(root: Path) -> Any:
    import torch
    from torchvision.ops import box_convert

    from botnet.detection.metric import CocoMetric
    from botnet.detection.results import Truth

    samples = []
    for objects, found in scored(root):
        boxes = torch.tensor([record["bbox"] for record in objects])
        truth = Truth(
            boxes=box_convert(boxes, "xywh", "xyxy"),
            labels=torch.tensor([record["category_id"] for record in objects]),
            masks=[record["segmentation"] for record in objects],
            iscrowd=torch.tensor([bool(record["iscrowd"]) for record in objects]),
            area=torch.tensor([record["area"] for record in objects]),
        )
        samples.append((found, truth))

    def run() -> Any:
        labels = range(1, 91)
        metric = CocoMetric([str(label) for label in labels], labels)
        for found, truth in samples:
            metric.update(found, truth)
        return metric.report()

    return timed(run)


def score_pycocotools(root: Path) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    samples = list(scored(root))
    few = json.loads((root / "few.json").read_text())

    def run() -> None:
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [
                dict(zip(("height", "width"), objects[0]["segmentation"]["size"], strict=True))
                | {"id": i + 1}
                for i, (objects, _) in enumerate(samples)
            ],
            "categories": few["categories"],
            "annotations": [record for objects, _ in samples for record in objects],
        }
        for number, record in enumerate(truth.dataset["annotations"], 1):
            record["id"] = number
        truth.createIndex()
        for task, other in (("bbox", "segmentation"), ("segm", "bbox")):
            found = [
                {k: v for k, v in record.items() if k != other} for _, found in samples for record in found
            ]
            evaluation = COCOeval(truth, truth.loadRes(found), task)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()

    return timed(run)


def timed(function: Callable[[], Any]) -> Any:
    """Call a function and print seconds, peak memory in GB, and the memory in GB that its value takes."""
    before, wall, cpu = private_memory(), time.perf_counter(), time.process_time()
    sys.stdout = sys.stderr  # pycocotools prints
    value = function()
    sys.stdout = sys.__stdout__
    figures = {
        "seconds": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "kept": private_memory() - before,
    }
    print(json.dumps(figures))
    return value


def workers(data: Any, method: str) -> None:
    """Memory of a worker that looks up samples, above that of one that only imports what it needs."""
    context: Any = multiprocessing.get_context(method)
    memory, module = [], type(data).__module__
    for sent in (None, data):
        queue = context.SimpleQueue()
        worker = context.Process(target=look_up, args=(module, sent, queue))
        worker.start()
        memory.append(queue.get())
        worker.join()
    print(json.dumps({"kept": memory[1] - memory[0]}))


def look_up(module: str, data: Any, queue: Any) -> None:
    """Read annotations of images, or names of files, at random."""
    import_module(module)
    images = getattr(data, "images", data)
    for index in np.random.default_rng(0).integers(len(images), size=LOOKED_UP).tolist() if data else ():
        if images is data:
            data.filename(index)
        else:
            data.annotations_of(images[index].id)
    queue.put(private_memory())


def private_memory() -> float:
    """GB that no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e6


CASES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "reading and checking": ("coco", lambda root: timed(lambda: instances_of(root))),
    "reading a second time": ("coco", lambda root: timed(lambda: instances_of(root))),
    "reading with pycocotools": ("coco", read_pycocotools),
    "a worker by fork": ("coco", lambda root: workers(instances_of(root), "fork")),
    "a worker by forkserver": ("coco", lambda root: workers(instances_of(root), "forkserver")),
    "a worker by spawn": ("coco", lambda root: workers(instances_of(root), "spawn")),
    "scoring boxes and masks": ("score", score),
    "scoring with pycocotools": ("score", score_pycocotools),
    "listing class folders": ("imagenet", lambda root: timed(lambda: folders_of(root))),
    "a worker by fork, folders": ("imagenet", lambda root: workers(folders_of(root), "fork")),
    "a worker by spawn, folders": ("imagenet", lambda root: workers(folders_of(root), "spawn")),
    "listing shards": ("imagenet", lambda root: timed(lambda: shards_of(root))),
    "a worker by fork, shards": ("imagenet", lambda root: workers(shards_of(root), "fork")),
    "a worker by spawn, shards": ("imagenet", lambda root: workers(shards_of(root), "spawn")),
}


IMPORTS = {
    "coco": "botnet.detection.coco",
    "score": "botnet.detection.metric",
    "imagenet": "botnet.classification.readers",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("coco", type=Path, help="folder with an instances_train.json of real records")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the sizes of COCO and ImageNet")
    parser.add_argument("--only", nargs="*", default=["coco", "score", "imagenet"])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        kind, case = CASES[args.case]
        # What is imported is not timed, but the peak holds it (torch alone: 0.7 GB): only what is needed.
        import_module(IMPORTS[kind])
        case(args.coco)
        return
    table = Table("what", "seconds", "CPU seconds", "peak GB", "kept GB")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if "coco" in args.only:
            make_instances(args.coco / "instances_train.json", root / "instances.json", args.fraction)
        if "imagenet" in args.only:
            make_folders(root / "folders", int(FILES * args.fraction))
            make_shards(root / "shards", int(FILES * args.fraction))
        (root / "few.json").write_bytes((args.coco / "instances_train.json").read_bytes())
        environment = os.environ | {"XDG_CACHE_HOME": str(root / "cache")}
        for name, (kind, _) in CASES.items():
            if kind in args.only:
                command = [sys.executable, __file__, str(root), "--case", name]
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                figures = json.loads(done.stdout)
                cells = (figures.get(key) for key in ("seconds", "cpu", "peak", "kept"))
                table.add_row(name, *("" if cell is None else f"{cell:.2f}" for cell in cells))
                print(name, figures, flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
