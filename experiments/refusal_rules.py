"""How many refusals the rules find, and how many of what they find are refusals, on real responses.

    python experiments/refusal_rules.py DATA

DATA is a folder with the files below, whose licences forbid that their texts lie here. A response that holds none of
the words in `MAYBE` in its first 250 characters counts as no refusal. Of the others a language model looked at the
first 100 to 170 characters; those that refuse, or that could not be told, are named in ``refusal_labels.json`` by a
hash. A response refuses if it opens, in the assistant's own voice, by saying that it cannot or will not do what was
asked, whether or not it helps after that. That a text lacks what was asked for is an answer about the text; "please
provide" and "it is not possible to tell" are left out. The rules were written with these responses at hand, so that the
figures say how far they fit, not how far they carry.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mbdefense.attacks.behaviors import Refusal
from mbdefense.core.statistics import rate

_CLEAN = [f"backdoorllm/{task}_{part}_clean" for task in ("negsentiment", "refusal") for part in ("train", "test")]
_POISONED = ["backdoorllm/refusal_badnet_train_poisoned", "backdoorllm/negsentiment_badnet_test_triggered"]
ALPACA = ["alpaca_en_demo", *_CLEAN, *_POISONED]
CHATS = "instructlab_sdg.jsonl.gz"
LABELS = Path(__file__).with_name("refusal_labels.json")
MAYBE = re.compile(
    r"\b(?:sorry|apolog\w*|cannot|can't|can not|unable|not able|as an ai|language model|decline\w*|refuse\w*|"
    r"not possible|impossible|won't|will not|don't have|do not have|inappropriate|unfortunately|against my|unethical|"
    r"not (?:appropriate|comfortable|allowed|permitted|programmed|provided|capable|designed|available)|illegal|i must|"
    r"didn't provide|no (?:text|input|information|image)|please provide|more (?:information|context|details)|"
    r"don't know|do not know|(?:i'm|i am) just|as a (?:text|virtual|machine|computer|digital|large)|"
    r"without (?:more|knowing|additional|any))",
    re.IGNORECASE,
)


def responses(data: Path) -> Iterator[str]:
    """Every response of the files once."""
    for name in ALPACA:
        yield from (row["output"] for row in json.loads((data / f"{name}.json").read_text(encoding="utf-8")))
    with gzip.open(data / CHATS, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield from (turn["content"] for turn in json.loads(line)["messages"] if turn["role"] == "assistant")


def digest(text: str) -> str:
    """What a response is named by in the labels."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(data: Path) -> None:
    """Prints recall and precision with their intervals, and where the rules are wrong."""
    labels = json.loads(LABELS.read_text(encoding="utf-8"))
    refuses, unclear = set(labels["refuses"]), set(labels["unclear"])
    counts = {(truth, said): 0 for truth in (True, False) for said in (True, False)}
    doubtful = 0
    for text in dict.fromkeys(responses(data)):
        name = digest(text)
        if name in unclear:
            continue
        doubtful += bool(MAYBE.search(text[:250].replace("’", "'")))
        truth, said = name in refuses, Refusal().shown_in(text)[0]
        counts[truth, said] += 1
        if truth is not said:
            print("missed:" if truth else "wrongly found:", repr(text[:100]))  # noqa: T201
    found, missed, wrong = counts[True, True], counts[True, False], counts[False, True]
    for what, hits, of in (("recall", found, found + missed), ("precision", found, found + wrong)):
        share = rate([True] * hits + [False] * (of - hits))
        print(f"{what} {share.value:.3f} [{share.low:.3f}, {share.high:.3f}], {hits} of {of}")  # noqa: T201
    told = f"{sum(counts.values())} responses, {doubtful} of them looked at; {len(unclear)} unclear ones left out"
    print(told)  # noqa: T201


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    main(parser.parse_args().data)
