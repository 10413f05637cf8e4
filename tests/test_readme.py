"""What the README says one can type, works."""

import re
from pathlib import Path

from botnet.training.recipes import RECIPES

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape == (2, 10)
    assert set(names["losses"]) == {"rpn_score", "rpn_box", "class", "box", "mask"}
    assert "masks" in names["detections"][0]


def test_every_file_it_names_exists():
    named = re.findall(r"(?:^|[\s`(])((?:recipes|botnet|tests|docs|benchmarks)/[\w/.-]+)", README)
    assert len(named) > 3
    homes = (Path(__file__).parents[1], RECIPES.parent)  # the package has the recipes
    missing = [name for name in named if not any((home / name).exists() for home in homes)]
    assert not missing
