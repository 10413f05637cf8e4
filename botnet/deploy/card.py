"""The card of a published model: what it is, what it was measured at, and how to use it."""

from collections.abc import Mapping, Sequence
from typing import Any

from botnet import __version__
from botnet.training.checkpoint_file import TaskCheckpoint

MOST_CLASSES = 50  # that the card lists
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
EXAMPLE = """```python
import botnet  # pip install bottleneck-transformers

model = botnet.load("hf-hub:{repo_id}")
{found} = model.predict("photo.jpg")
```"""


def model_card(
    checkpoint: TaskCheckpoint,
    metrics: Mapping[str, Any] | None,
    pictures: Sequence[str],
    license: str,
    repo_id: str,
) -> str:
    """The Markdown of a model card, with the hub's metadata at its head.

    Args:
        checkpoint: the model.
        metrics: the run's ``metrics.json``; None if there is none.
        pictures: files beside the card.
        license: of the model.
        repo_id: name on the hub.
    """
    from huggingface_hub import ModelCardData

    detects = checkpoint.kind == "detector"
    masks = detects and checkpoint.spec.get("masks", True)
    task = "image-segmentation" if masks else "object-detection" if detects else "image-classification"
    data = ModelCardData(
        license=license, library_name="botnet", pipeline_tag=task, tags=["botnet", "bottleneck-transformer"]
    )
    return (
        "\n\n".join(
            [
                f"---\n{data.to_yaml()}\n---",
                f"# {repo_id.rpartition('/')[2]}",
                _what(checkpoint, masks),
                EXAMPLE.format(repo_id=repo_id, found="detections" if detects else "classes"),
                "## Measured",
                _measured(metrics, checkpoint.contents.get("global_step")),
                *(f"![{name}]({name})" for name in pictures),
                "## Classes",
                _classes(checkpoint.metadata["class_names"]),
                f"Written by botnet {__version__}. The complete recipe of a run is in `recipe.yaml`.",
            ]
        )
        + "\n"
    )


def _what(checkpoint: TaskCheckpoint, masks: bool) -> str:
    spec, metadata = checkpoint.spec, checkpoint.metadata
    if checkpoint.kind == "classifier":
        return f"A classifier, `{spec['name']}`, at {metadata['evaluation']['image_size']} px."
    kind = "Mask R-CNN" if masks else "Faster R-CNN"
    return (
        f"{kind} on `{spec['backbone']}` ([Bottleneck Transformers](https://arxiv.org/abs/2101.11605)), "
        f"on a canvas of {metadata['canvas']} px."
    )


def _measured(metrics: Mapping[str, Any] | None, step: int | None) -> str:
    """What the run measured on its own validation images, as a table.

    Args:
        metrics: of the run's last evaluation.
        step: of the weights.
    """
    if metrics is None:
        return "Nothing: the model was not published from a run with an evaluation."
    after = f"On the validation images of the run, after epoch {metrics['epoch']}, step {metrics['step']}."
    if step not in (None, metrics["step"]):
        after += f" The weights are those of step {step}, the best validation of the run."
    kinds = [kind for kind in ("box", "mask") if kind in metrics]
    if kinds:
        rows = [
            f"| {kind} | " + " | ".join(_number(metrics[kind][name]) for name in NUMBERS) + " |"
            for kind in kinds
        ]
        table = ["| | " + " | ".join(NUMBERS) + " |", "|---" * (len(NUMBERS) + 1) + "|", *rows]
    else:
        table = ["| top-1 % | top-5 % |", "|---|---|", f"| {metrics['top1']:.2f} | {metrics['top5']:.2f} |"]
    return "\n".join([after, "", *table])


def _number(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else "-"


def _classes(names: Sequence[str]) -> str:
    more = f", and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    return f"{len(names)}: " + ", ".join(names[:MOST_CLASSES]) + more
