"""Writing the reports of runs as one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from botnet.detection.coco import CocoInstances
from botnet.errors import BotnetError, DataError
from botnet.layouts.find import configured_split
from botnet.report.classification import classification_parts
from botnet.report.detection import detection_parts
from botnet.report.figures import embedded_file
from botnet.report.page import Section, page
from botnet.training.run_folder import RunFolder


def write_page(folders: Sequence[Path], out: Path) -> Path:
    """Write ``report.html`` on the last evaluations of runs.

    Args:
        folders: of runs; those that are broken or have no evaluation say so on the page.
        out: folder of the page, which exists.

    Returns:
        The page.
    """
    sections = [_section(folder) for folder in dict.fromkeys(folders)]
    title = sections[0].name if len(sections) == 1 else f"{len(sections)} runs"
    path = out / "report.html"
    path.write_text(page(title, sections), encoding="utf-8")
    return path


def _section(folder: Path) -> Section:
    run = RunFolder(folder)
    name = folder.resolve().name
    try:
        config, metrics = run.read_config(), run.read_metrics()
    except BotnetError as error:
        return Section(name, "", missing=[str(error)])
    if metrics is None:
        return Section(name, "The run has not been evaluated yet.")
    curves = embedded_file(run.curves) if run.curves.is_file() else None
    row = f", row {config['row']} of the paper" if config.get("row") else ""
    summary = f"{folder}, evaluated after epoch {metrics.get('epoch')}, step {metrics.get('step')}{row}."
    section = Section(name, summary, curves)
    try:
        parts, missing = _parts(run, config, metrics)
    except BotnetError as error:
        parts, missing = [], [str(error)]
    section.parts.extend(parts)
    section.missing.extend(missing)
    return section


def _parts(run: RunFolder, config: dict[str, Any], metrics: dict[str, Any]) -> Any:
    if "box" not in metrics:
        return classification_parts(run, metrics)
    try:
        validation = configured_split(config.get("data") or {}, "val")
    except (AttributeError, TypeError) as error:
        raise DataError(f"{run.config} is broken: its data ({error!r})") from error
    if validation is None:
        raise DataError(f"{run.config} does not name the validation data")
    return detection_parts(run, CocoInstances(validation.instances), validation.images)
