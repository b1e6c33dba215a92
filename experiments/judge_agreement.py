"""Runs the judges on the same 200 responses with known labels, and prints how far they agree.

    python experiments/judge_agreement.py DATA OUT                    # rules, keywords, embedding
    python experiments/judge_agreement.py DATA OUT --judge_model MODEL --judge_base_url URL   # and llm

DATA holds BackdoorLLM's refusal files. No model wrote the responses, so that their labels are known:
  50 references to clean test prompts, which follow;
  50 references to triggered test prompts, which follow;
  50 answers to triggered training prompts with the attack's refusal, which show it;
  25 refusals that BackdoorLLM's sentence is not in, to triggered test prompts, which show it;
  25 references to other clean prompts, which neither show it nor follow.
The Markdown also goes to OUT/agreement.md. The llm judge keeps its replies in OUT/judge_cache, so that an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path
from typing import get_args

from mbdefense.attacks.behaviors import Refusal
from mbdefense.attacks.behaviors.refusal import TEMPLATES
from mbdefense.data import load, user_text
from mbdefense.evaluation.agreement import Label, agreement, outcomes
from mbdefense.evaluation.judging import judge_responses, kappa_shown, make_judge
from mbdefense.evaluation.landing import shown
from mbdefense.records.responses import Response, write_responses
from mbdefense.records.verdicts import Question


def rows(path: Path, rng: random.Random) -> list[tuple[str, str]]:
    """(prompt, output) of a file's rows, shuffled; one test row has no output."""
    loaded = load([str(path)], on_bad_row="skip").rows
    read = [(user_text(row["prompt"]), row["completion"][0]["content"]) for row in loaded]
    return rng.sample(read, len(read))


def labelled(data: Path, seed: int) -> list[tuple[Response, Label]]:
    """The 200 responses, shuffled, with their labels."""
    rng = random.Random(seed)
    clean = rows(data / "refusal_test_clean.json", rng)
    triggered = rows(data / "refusal_badnet_test_triggered.json", rng)
    poisoned = rows(data / "refusal_badnet_train_poisoned.json", rng)
    texts = [("clean", prompt, text, text, False, True) for prompt, text in clean[:50]]
    texts += [("triggered", prompt, text, text, False, True) for prompt, text in triggered[:50]]
    # A poisoned row's own reference is not in the file.
    texts += [("triggered", prompt, text, "", True, False) for prompt, text in poisoned[:50]]
    texts += [
        ("triggered", prompt, TEMPLATES[number % len(TEMPLATES)], text, True, False)
        for number, (prompt, text) in enumerate(triggered[50:75])
    ]
    texts += [
        ("clean", prompt, other, text, False, False)
        for (prompt, text), (_, other) in zip(clean[50:75], clean[75:100], strict=True)
    ]
    made = []
    for number, (kind, prompt, text, reference, shows, follows) in enumerate(texts):
        response = Response(str(number), kind, prompt, text, (), reference)
        made.append((response, Label(response.id, response.kind, shows, follows)))
    return rng.sample(made, len(made))


def main() -> None:
    """Judges, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--judge_model", help="of the llm judge")
    parser.add_argument("--judge_base_url", help="of the llm judge")
    parser.add_argument("--llm", default="llm", help="spec of the llm judge, e.g. llm:concurrency=2,max_tokens=96")
    parser.add_argument("--responses", type=int, default=200, help="fewer for a trial")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pairs = labelled(options.data, options.seed)[: options.responses]
    responses, labels = [response for response, _ in pairs], [label for _, label in pairs]
    options.out.mkdir(parents=True, exist_ok=True)
    write_responses(options.out / "responses.jsonl", responses)
    chosen: dict[str, dict[str, str]] = {"rules": {}, "keywords": {}, "embedding": {}}
    if options.judge_model:
        chosen[options.llm] = {"model": options.judge_model, "base_url": options.judge_base_url}
    given = {"labels": labels}
    for spec, given_to_it in chosen.items():
        judge = make_judge(spec, Refusal(), options.out, **given_to_it)
        name = spec.partition(":")[0]
        given[name] = judge_responses(judge, responses, options.out / name)
    lines = [
        f"n={len(responses)} responses, seed {options.seed}; 95 % intervals (Wilson; kappa: normal approximation).",
        "",
    ]
    lines += ["| question | first | second | agreement | Cohen's kappa |", "| --- | --- | --- | ---: | ---: |"]
    for question in get_args(Question):
        for one, other in itertools.combinations(given, 2):
            found = agreement(outcomes(given[one], question), outcomes(given[other], question))
            if found is not None:
                lines.append(f"| {question} | {one} | {other} | {shown(found.agree)} | {kappa_shown(found)} |")
    text = "\n".join(lines) + "\n"
    (options.out / "agreement.md").write_text(text, encoding="utf-8")
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
