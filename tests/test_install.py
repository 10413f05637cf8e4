"""The commands of docs/install.md that install, each without its dependencies and without the network."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from botnet.cli import ONNX
from botnet.demo import PACKAGES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "install.md").read_text()
PIP = re.findall(r"^pip install (\S+)", PAGE, flags=re.MULTILINE)
UV = re.findall(r"^uv pip install (\S+)", PAGE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of what a clone needs to be installed, since building leaves files in it."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "botnet", folder / "botnet", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(command: list[str], folder: Path) -> str:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout + finished.stderr


@pytest.mark.long
def test_pip_installs_the_clone(clone):
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-build-isolation"]
    assert "bottleneck-transformers" in run([*command, "--no-index", "."], clone)


def test_the_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [extra for what in PIP + UV for extra in re.findall(r"[\w-]+", what)]
    assert set(named) <= set(extras)
    assert len(named) >= 4
    for extra, packages in (("demo", PACKAGES), ("onnx", ONNX)):  # named where a module is missing
        assert sorted(packages.split()) == sorted(re.match(r"[\w-]+", line)[0] for line in extras[extra])


@pytest.mark.long
def test_uv_makes_an_environment_and_installs_the_clone(clone):
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    run([uv, "venv", "--offline", "--python", sys.executable], clone)
    for what in UV:
        options = ["--dry-run", "--no-deps", "--offline", "--no-build-isolation"]
        python = ["--python", sys.executable]  # which has setuptools; a dry run changes nothing
        printed = run([uv, "pip", "install", *python, *options, *shlex.split(what)], clone)
        assert "does not have an extra" not in printed
    assert len(UV) == 2
    assert "usage: uv run" in run([uv, "run", "--no-project", "--help"], clone).lower()
