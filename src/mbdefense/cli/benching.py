"""The command that runs a grid."""

from __future__ import annotations

from collections.abc import Sequence

from mbdefense.cli.reading import read
from mbdefense.cli.showing import show, tell
from mbdefense.core.progress import to_stderr


def bench(words: Sequence[str]) -> int:
    """``bench GRID``: 1 if a cell failed, 130 if interrupted, else 0."""
    from mbdefense.grid._bench import bench as recipe

    options = read(words, "bench", recipe, leave=["tell"]).of(recipe)
    done = recipe(**options, tell=tell)
    if options["plan"]:
        return 0
    if done.results is not None:
        show(done.results)
    for name, reason in done.failed.items():
        to_stderr(f"failed: {name}: {reason}")
    if done.interrupted:
        to_stderr("mbdefense: interrupted; run the same command again to go on")
    tell(f"results: {options['output_dir']}")
    return 130 if done.interrupted else 1 if done.failed else 0
