"""Fetch the four files of Fashion-MNIST into a folder, the source of `botnet make-images`.

They come from Debian's package dataset-fashion-mnist: the installed one, or one that is downloaded by apt-get
and unpacked here, which needs no root.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from botnet.folders import new_folder

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("usr/share/datasets/fashion-mnist")  # in /, or in the unpacked package
FILES = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def fetch(folder: Path) -> None:
    """Put the files into a folder, unless they are there."""
    if all((folder / name).is_file() for name in FILES):
        return
    with new_folder(folder) as files, tempfile.TemporaryDirectory() as scratch:
        root = Path("/")
        if not (root / INSTALLED).is_dir():
            root = unpack_package(Path(scratch))
        for name in FILES:
            shutil.copy(root / INSTALLED / name, files)


def unpack_package(scratch: Path) -> Path:
    """Download and unpack Debian's package; returns the folder that stands for /."""
    missing = (
        f"Debian's package {PACKAGE} could not be downloaded; install it (apt-get update; apt-get install "
        f"{PACKAGE}), or download {', '.join(FILES)} from https://github.com/zalandoresearch/fashion-mnist"
    )
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        sys.exit(missing)
    download = ["apt-get", "download", PACKAGE]
    print(f"downloading Debian's package {PACKAGE}, 31 MB", flush=True)
    status = subprocess.run(download, cwd=scratch, capture_output=True).returncode
    if status and os.geteuid() == 0:  # a new container has no list of packages yet
        subprocess.run(["apt-get", "update"], capture_output=True)
        status = subprocess.run(download, cwd=scratch, capture_output=True).returncode
    packages = list(scratch.glob("*.deb"))
    if status or not packages:
        sys.exit(missing)
    subprocess.run(["dpkg-deb", "--extract", str(packages[0]), str(scratch / "package")], check=True)
    return scratch / "package"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    fetch(Path(sys.argv[1]))
