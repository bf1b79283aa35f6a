"""Real text on a machine without a network: the Python sources that are installed on it, as a folder for `prepare`."""

import hashlib
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from data.readers import is_utf8


def roots() -> list[Path]:
    """The standard library, and where packages are installed."""
    paths = sysconfig.get_paths()
    found = [Path(paths[name]) for name in ("stdlib", "purelib", "platlib")] + [Path(torch.__file__).parents[1]]
    return list(dict.fromkeys(path.resolve() for path in found if path.is_dir()))


def collect(target: Path, folders: list[Path]) -> None:
    """Copy every .py file under `folders` to `target`, each content once, unless that has been done.

    Empty files and those that are not UTF-8, which `prepare` refuses, are left out. `target` is there whole or not at
    all.
    """
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    seen: set[bytes] = set()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes() if path.is_file() else b""
            digest = hashlib.sha256(content).digest()
            if not content or digest in seen or not is_utf8(content):
                continue
            seen.add(digest)
            copy = partial / folder.name / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            os.utime(copy, (0, 0))  # a large corpus is told from others by its files' times too
    os.replace(partial, target)
