"""The command that runs a grid."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mbdefense.cli.reading import read
from mbdefense.cli.showing import show


def bench(words: Sequence[str]) -> int:
    """``bench GRID``: 1 if a cell failed, 130 if interrupted, else 0."""
    from mbdefense.grid._bench import bench as recipe

    options = read(words, "bench", recipe, leave=["console"]).of(recipe)
    from rich.console import Console

    done = recipe(**options, console=Console())
    if options["plan"]:
        return 0
    if done.results is not None:
        show(done.results)
    for name, reason in done.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)  # noqa: T201
    if done.interrupted:
        print("mbdefense: interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
    print(f"results: {options['output_dir']}")  # noqa: T201
    return 130 if done.interrupted else 1 if done.failed else 0
