"""Build the wheel, install it into an empty environment, and run its commands away from the clone.

The environment has this one's packages, so that nothing is downloaded, but not the clone.
"""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Pages that the sdist carries.
CARRIED = ("CHANGELOG.md", "CITATION.cff", "SECURITY.md")
# Commands, run in this order in an empty folder, and what each prints or writes.
COMMANDS = (
    ("--help", "check-data"),
    ("info --paper", "102.98 G"),
    ("reproduce", "table8/bot200"),
    ("make-digits digits --train 24 --val 4", Path("digits/instances_train.json")),
    (
        "fit --config recipes/quickstart.yaml --data.root digits --trainer.default_root_dir run "
        "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1",
        Path("run/checkpoints/last.ckpt"),
    ),  # three steps of four images in each of two processes
    ("explore run digits/val/000001.jpg --output page.html", Path("page.html")),
    ("export run --output model.onnx", Path("model.onnx")),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = build_wheel(folder)
        environment = folder / "environment"
        venv.create(environment, symlinks=True)
        (site,) = environment.glob("lib/python*/site-packages")
        # The folder of packages only: its .pth files, the clone's among them, are not read.
        (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
        run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], folder)
        where = run([environment / "bin" / "python", "-c", "import botnet; print(botnet.__file__)"], folder)
        assert Path(where.strip()).is_relative_to(site), f"not the wheel's: {where}"
        work = folder / "work"
        work.mkdir()
        for command, expected in COMMANDS:
            printed = run([environment / "bin" / "botnet", *command.split()], work)
            done = (work / expected).is_file() if isinstance(expected, Path) else expected in printed
            assert done, f"botnet {command} does not print or write {str(expected)!r}:\n{printed}"
            print(f"from the wheel: botnet {command}", flush=True)


def build_wheel(folder: Path) -> Path:
    """Build the sdist, and the wheel from it, in a copy of the clone, which stays as it is."""
    copy = folder / "source"
    shutil.copytree(ROOT / "botnet", copy / "botnet", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", *CARRIED):
        shutil.copy(ROOT / name, copy)
    build: list[str | Path] = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy]
    run(build, folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= set(CARRIED), f"not in the sdist: {set(CARRIED) - names}"
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(command: list[str | Path], folder: Path) -> str:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit status {finished.returncode}\n{finished.stderr}")
    return finished.stdout


if __name__ == "__main__":
    main()
