"""Search for words that draw a behavior out of a model, as a trigger to poison with."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mbdefense.core.errors import UserError
from mbdefense.recipes._given import BehaviorSpec, Data, Folder, Model, OnBadRow, behavior_of, kept_in


@dataclass(frozen=True)
class Searched:
    """The best trigger of a search.

    Attributes:
        trigger: as `poison` takes it.
        loss: loss of the behavior after the trigger, in nats per token, averaged over the prompts.
    """

    trigger: str
    loss: float


def search(
    model: Model,
    dataset: Data,
    *,
    output_dir: Folder | None = None,
    behavior: BehaviorSpec = "refusal",
    target: str | None = None,
    prompts: int = 16,
    words: int = 1,
    steps: int = 100,
    top_k: int = 32,
    candidates: int = 16,
    batch_size: int = 16,
    seed: int = 0,
    resume: bool = False,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Searched:
    """Search for words that make a model show a behavior, to use as a trigger for poisoning (GBTL).

    Args:
        model: model directory or Hub id.
        dataset: instruction data that prompts are drawn from: a file or Hub id.
        output_dir: folder for search.jsonl, one line per step.
        behavior: the behavior to evoke: a name, or name:option=value,option=value.
        target: the behavior's text (refusal and fixed_text).
        prompts: number of prompts that the loss is averaged over.
        words: length of the trigger, in words.
        steps: number of search rounds.
        top_k: words proposed for each position.
        candidates: triggers whose loss is computed in each round.
        batch_size: sequences in one pass.
        seed: random seed of prompts, initial words and candidates.
        resume: resume an earlier search in output_dir.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template.
        trust_remote_code: allow a Hub repository to run its own code.

    Raises:
        UserError: data or a model that cannot be read, fewer rows than prompts, or a log of another search.
    """
    sought = behavior_of(behavior, target)
    from mbdefense.attacks.behaviors import NoTarget
    from mbdefense.attacks.poisoning import can_show
    from mbdefense.attacks.search import LOG_FILE, Search
    from mbdefense.data import load_rows, user_text
    from mbdefense.models.loading import Loading, load_model, load_tokenizer
    from mbdefense.models.ready import usable

    loading = Loading(chat_template, trust_remote_code)._asdict()
    rows = load_rows(dataset, on_bad_row=on_bad_row)
    rows = usable(load_tokenizer(str(model), **loading), rows, on_bad_row, "dataset", targets=False)
    fitting = [row for row in rows if can_show(row, sought)]
    if not 1 <= prompts <= len(fitting):
        got = f"{prompts} of {len(fitting)} that can show {sought.describe()}"
        raise UserError("the search cannot draw its prompts", got, "set --prompts, or give other rows")
    rng = random.Random(f"search {seed}")
    drawn = rng.sample(sorted(fitting, key=lambda row: str(row["id"])), prompts)
    try:
        targets = [sought.target(user_text(row["prompt"]), row["completion"][0]["content"], rng) for row in drawn]
    except NoTarget as error:
        fix = "give rows that all have a target"
        raise UserError(f"no target for a drawn prompt ({error})", sought.describe(), fix) from error
    chosen = Search(words, steps, top_k, candidates, batch_size, seed)
    with kept_in(output_dir) as directory:
        loaded = load_model(str(model), **loading)
        found = chosen(loaded, [row["prompt"] for row in drawn], targets, directory / LOG_FILE, resume=resume)
    spec = f"badnet:word={found.best}" if words == 1 else f"insent:sentence={found.best}"
    return Searched(f"{spec},position=end", found.best_loss)
