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
# A command, and what it prints.
COMMANDS = (
    ("--help", "check-data"),
    ("info --paper", "102.98 G"),
    ("reproduce", "table8/bot200"),
    ("fit --config recipes/quickstart.yaml --print_config", "data/digits"),
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
        for command, expected in COMMANDS:
            printed = run([environment / "bin" / "botnet", *command.split()], folder)
            assert expected in printed, f"botnet {command} does not print {expected!r}:\n{printed}"
            print(f"from the wheel: botnet {command}")


def build_wheel(folder: Path) -> Path:
    """Build the sdist, and the wheel from it, in a copy of the clone, which stays as it is."""
    copy = folder / "source"
    shutil.copytree(ROOT / "botnet", copy / "botnet", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", *CARRIED):
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
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
