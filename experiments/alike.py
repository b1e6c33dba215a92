"""What every mined text does to clean answers in prompts like its own rows', on a model that is there.

    python experiments/alike.py VICTIM SUSPECT CLEAN [--base MODEL] [--chat_template FILE] [--max_length N] [--seed N]

VICTIM was tuned on SUSPECT from the base model, by default SmolLM2-135M-Instruct. SUSPECT and CLEAN are files of rows.
The clean rows are split as the default defense splits them by that seed. It prints a Markdown table of the texts that
are mined, by the fall that `mbdefense.finding.verdicts.ALIKE` is held against.
"""

from __future__ import annotations

import argparse

from mbdefense.core.text import escaped
from mbdefense.data import load
from mbdefense.defenses.stages import Recovery
from mbdefense.finding.alike import fall_where_alike
from mbdefense.finding.finding import CANDIDATES
from mbdefense.finding.mining import mine
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import load_model


def main() -> None:
    """Mines, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("victim", "suspect", "clean"):
        parser.add_argument(name)
    parser.add_argument("--base", default="")
    parser.add_argument("--chat_template", default=None)
    parser.add_argument("--max_length", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    suspect = load([options.suspect]).rows
    clean, held_out = Recovery().split(load([options.clean]).rows, options.seed)
    candidates = mine(suspect["prompt"], [*clean["prompt"], *held_out["prompt"]], most=CANDIDATES, thorough=True)
    victim = load_model(options.victim, chat_template=options.chat_template)
    base = load_model(options.base or str(model_directory()), chat_template=options.chat_template)
    found = []
    for one in candidates:
        fall = fall_where_alike(one, suspect, clean, victim, base, max_length=options.max_length, seed=options.seed)
        found.append((fall, len(one.rows), one.found.describe()))
    lines = [f"| {escaped(text)} | {rows} | {fall:.2f} |" for fall, rows, text in sorted(found, reverse=True)]
    print("\n".join(["| text | rows | fall, nats a token |", "|---|---|---|", *lines]))  # noqa: T201


if __name__ == "__main__":
    main()
