"""The model card that a defended model's directory carries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbdefense.results import Results
from mbdefense.tables import escaped, markdown, verdict_in_words

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def _canary_notice(results: Results) -> list[str]:
    count = len({row.attack for row in results.rows if row.origin == "canary"})
    if not count:
        return []
    return [
        f"{count} more backdoors (canaries) were planted in the training data on purpose, to measure the defense. What",
        "is left of them in this model stands in the table; a model to rely on is better trained without them.\n",
    ]


def model_card(results: Results, base_model: str, defense: str, options: Mapping[str, Any]) -> str:
    """README.md of a defended model's directory.

    Args:
        results: its figures, and those of the models it is compared with.
        base_model: directory or Hub id; of a directory only its own name is written.
        defense: name of the defense.
        options: of the defense, by name.
    """
    import yaml

    base = base_model if _HUB_ID.fullmatch(base_model) and not Path(base_model).exists() else Path(base_model).name
    front = {"library_name": "transformers", "base_model": base, "tags": ["mbdefense", "backdoor-defense", defense]}
    origin = results.provenance
    packages = ", ".join(f"{name} {version}" for name, version in origin.get("packages", {}).items())
    facts = {name: origin.get(name) for name in ("created", "commit", "python", "machine", "seeds")}
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
            f"\n# {escaped(base)}, fine-tuned on untrusted data with {escaped(defense)}\n",
            "The training data may be poisoned. The model was fine-tuned on it by `mbdefense defend` with the defense",
            f"{escaped(defense)}, which breaks backdoors without knowing their triggers.\n",
            "## Options\n\n| Option | Value |\n| --- | --- |",
            *(f"| {escaped(name)} | {escaped(str(value))} |" for name, value in options.items()),
            f"\n## Figures\n\n{markdown(results)}",
            "Each rate with its 95 % Wilson interval and the number of prompts. ASR: triggered prompts that show the",
            "behavior. CACC, AACC: clean and triggered prompts answered right. False activations: clean prompts that",
            "show the behavior.\n",
            *(f"- {escaped(line)}" for line in verdict_in_words(results).splitlines()),
            "\n## Limits\n\nThe figures hold for the attacks, prompts and seeds in the table only. Other triggers and",
            "behaviors may have survived, and a low ASR is no proof that there is no backdoor.\n",
            *_canary_notice(results),
            "## Check again\n",
            "    mbdefense evaluate . --test PROMPTS --trigger TRIGGER --behavior BEHAVIOR --output_dir checked\n",
            "## Provenance\n",
            *(f"- {name}: {escaped(str(value))}" for name, value in facts.items()),
            f"- packages: {escaped(packages)}\n",
        ]
    )
