"""Writing instances files."""

import tracemalloc

from botnet.layouts.coco import write_instances
from botnet.layouts.samples import Object, Sample


def test_objects_are_not_held_in_memory(tmp_path):
    box = Object(0, (1, 2, 3, 4))
    images = (Sample(tmp_path / "a.png", f"{n}.png", 20, 40, [box] * 1000) for n in range(30))
    tracemalloc.start()
    counts, _ = write_instances(tmp_path / "a.json", ["a"], images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts == {"images": 30, "objects": 30_000}
    assert (tmp_path / "a.json").stat().st_size > 5 * peak
