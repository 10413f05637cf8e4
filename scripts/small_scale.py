"""Compare BoT-S1 with its ResNet on Fashion-MNIST, with several seeds each: `make small-scale`.

Prints a Markdown table. Finished runs are skipped, so that an interrupted measurement can be resumed.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from fetch_fashion_mnist import fetch
from quickstart import botnet

NETWORKS = {"resnet_tiny": "ResNet", "botnet_s1_tiny": "BoT-S1"}


def train(network: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Accuracy and seconds of one run, which is trained unless it is finished."""
    run = args.runs / f"{args.train}-images-{args.epochs}-epochs" / f"{network}-{seed}"
    record = run / "record.json"
    if not record.is_file():
        started = time.monotonic()
        botnet(
            "fit", "--config", "recipes/quickstart_classify.yaml", "--seed_everything", str(seed),
            "--model.model", network, "--trainer.default_root_dir", str(run),
            "--data.train", str(args.data / "train"),
            "--data.val", str(args.data / "val"),
            "--trainer.max_epochs", str(args.epochs),
            "--trainer.check_val_every_n_epoch", str(args.epochs),
        )  # fmt: skip
        metrics = json.loads((run / "metrics.json").read_text())
        record.write_text(json.dumps({"top1": metrics["top1"], "seconds": time.monotonic() - started}))
    return json.loads(record.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=12_000, help="training images (12000)")
    parser.add_argument("--val", type=int, default=10_000, help="held-out images (10000)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/small_scale"))
    args = parser.parse_args()
    args.data = Path(f"data/fashion-{args.train}-{args.val}")
    source = Path("data/fashion-mnist")
    fetch(source)
    options = ("--source", str(source), "--train", str(args.train), "--val", str(args.val))
    botnet("make-images", str(args.data), *options)

    import timm

    from botnet.models.complexity import multiply_adds, total

    results: dict[str, list[dict[str, float]]] = {name: [] for name in NETWORKS}
    for seed in range(args.seeds):
        for name in NETWORKS:  # alternating, so that a slower machine slows both
            results[name].append(train(name, seed, args))
    print(f"{args.train} training and {args.val} held-out images, {args.epochs} epochs, {args.seeds} seeds\n")
    print("| network | parameters | multiply-adds | top-1, mean ± std | each seed | seconds a run |")
    print("|---|---|---|---|---|---|")
    for name, runs in results.items():
        model = timm.create_model(name, num_classes=10, img_size=64)
        params = sum(p.numel() for p in model.parameters())
        madds = total(multiply_adds(model, (64, 64)))
        top1 = [run["top1"] for run in runs]
        spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
        print(
            f"| {NETWORKS[name]} ({name}) | {params / 1e6:.2f} M "
            f"| {madds / 1e6:.0f} M | {statistics.mean(top1):.2f} ± {spread:.2f} "
            f"| {', '.join(f'{value:.2f}' for value in top1)} "
            f"| {statistics.mean(run['seconds'] for run in runs):.0f} |"
        )


if __name__ == "__main__":
    main()
