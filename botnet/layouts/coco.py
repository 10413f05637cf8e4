"""Writing COCO instances files one image at a time."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from botnet.errors import DataError
from botnet.layouts.samples import Object, Sample
from botnet.masks import compress_mask, mask_area


def write_instances(
    path: Path, names: list[str], samples: Iterable[Sample]
) -> tuple[dict[str, int], list[Sample]]:
    """Write an instances file; only the images are held in memory, not the objects.

    Args:
        path: the file.
        names: of the classes; the category ids count from 1.
        samples: the images.

    Returns:
        The numbers of ``images`` and ``objects``, and the images without their objects.

    Raises:
        DataError: two image files have the same name.
    """
    images: list[Sample] = []
    files: dict[str, Path] = {}
    written = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"annotations": [')
        for image_id, sample in enumerate(samples, 1):
            other = files.setdefault(sample.name, sample.file)
            if other != sample.file:  # the same image twice is how some list it for more weight
                raise DataError(
                    f"{sample.file} and {other} would both be {sample.name} in {path.name}; rename one"
                )
            for item in sample.objects:
                record = {"id": written + 1, "image_id": image_id} | _annotation(item, sample)
                file.write((",\n" if written else "\n") + json.dumps(record))
                written += 1
            images.append(Sample(sample.file, sample.name, sample.height, sample.width))
        records = [
            {"id": number, "file_name": image.name, "height": image.height, "width": image.width}
            for number, image in enumerate(images, 1)
        ]
        categories = [{"id": index, "name": name} for index, name in enumerate(names, 1)]
        tables = {"images": records, "categories": categories}
        file.write("],\n" + json.dumps(tables, ensure_ascii=False)[1:] + "\n")
    return {"images": len(images), "objects": written}, images


def _annotation(item: Object, sample: Sample) -> dict[str, Any]:
    record: dict[str, Any] = {
        "category_id": item.label + 1,
        "bbox": list(item.box),
        "iscrowd": int(item.crowd),
        "area": item.box[2] * item.box[3],
    }
    if item.segmentation is not None:
        record["segmentation"] = item.segmentation
        record["area"] = mask_area(compress_mask(item.segmentation, sample.height, sample.width))
    return record
