"""Where figures come from: time, code, packages, machine, seeds and options."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from mbdefense import __version__
from mbdefense.records._standards import ids

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def provenance(config: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Where results come from: time, code, packages, machine, seeds and ``config``, all as JSON values.

    ``standards`` says which parts of public standards each figure bears on, by their ids on a day.
    ``commit`` is the one of the package's own source tree, with "+dirty" if that differs from it; None if the package
    was not run from a checkout. What JSON cannot hold in ``config`` is written as text.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(Path(__file__).resolve().parents[1]),
        "packages": {"mbdefense": __version__, **{name: _version(name) for name in PACKAGES}},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "gpus": _gpus(),
        "seeds": list(seeds),
        "config": json.loads(json.dumps(dict(config), default=str)),
        "standards": ids(),
    }


def _processor() -> str | None:
    """The processor's name; `platform` does not know it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or None


def _gpus() -> list[str]:
    """The GPUs' names, where torch was in use and sees some."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(directory: Path) -> str | None:
    # An installed package can lie inside somebody else's checkout (a .venv there); only tracked source counts.
    if _git(directory, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head, changes = _git(directory, "rev-parse", "HEAD"), _git(directory, "status", "--porcelain", "--", ".")
    return None if head is None else head + ("" if changes == "" else "+dirty")


def _git(directory: Path, *arguments: str) -> str | None:
    """What git says; None if it is absent, fails, or takes longer than 10 seconds."""
    program = shutil.which("git")
    if program is None:
        return None
    # Run from a git hook, GIT_DIR would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = [program, "--no-optional-locks", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
