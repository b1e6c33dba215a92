"""Finding triggers as a step of a defense, and the prompts in which recovery meets what was found."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.core.files import warn_once
from mbdefense.core.processes import is_main_process, wait_for_everyone
from mbdefense.core.progress import done_before, stage
from mbdefense.data import answer_text
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import Ask, Meet, Recovery
from mbdefense.finding.record import FOUND_FILE, Found, FoundCandidate, read_found, verdicts_set, write_found
from mbdefense.training.job import Carrier, Evoked, Meeting, Messages, Model

if TYPE_CHECKING:
    from datasets import Dataset

LEAST_MEETINGS = 10
"""Clean samples at least that meet each verified trigger: some three meetings left a backdoor, ten did not."""
_LEAST_KEPT = 30
"""Clean samples at least that meet each instruction: with 25 one of three lost .15 of its obedience, with 34 none."""
_MOST_CARRIERS = 200  # suspect prompts that are met with each trigger
_ASKED = 64  # prompts in all that a recovered model is asked with what was found
_UNVERIFIED = 20  # candidates that are met where none was verified
_UNVERIFIED_SHARE = 0.25  # of the meetings, for what may have been missed, where some were


@dataclass(frozen=True)
class Finding:
    """What recovery is to know of the suspect data's triggers.

    Attributes:
        found: ``search`` mines the suspect data and verifies on the tuned model; ``none`` skips the search; the path of
            a ``found.json`` uses the triggers in it.
    """

    found: str = "search"

    def __post_init__(self) -> None:
        if self.found in ("search", "none"):
            return
        if not isinstance(self.found, str):
            raise UserError("found is no path", type(self.found).__name__, "give that of its found.json")
        if not Path(self.found).is_file():
            fix = "give search, none, or a found.json of mbdefense find-triggers"
            raise UserError("no such file of found triggers", self.found, fix)
        # Read here too, so that a damaged file is refused before anything is trained.
        given = read_found(self.found).candidates
        if not given:
            raise UserError("no text in the file of found triggers", self.found, "give none in its place")
        if all(one.verdict == "unclear" for one in given):
            fix = "set the verdict of those to break to trigger"
            raise UserError("no verdict in the file of found triggers", self.found, fix)

    def find(self, setting: Setting, victim: Model) -> Found | None:
        """The triggers found with `victim`, in ``found.json`` beside what is made of it; None for ``none``."""
        if self.found == "none":
            return None
        if self.found != "search":
            return self.given(setting)
        depends = {
            "victim": victim,
            "base": None if setting.base is None else setting.base_model(),
            "suspect": setting.suspect_rows(),
            "clean": setting.clean,
            "seed": setting.training.seed,
            "max_length": setting.training.max_length,
        }
        step = setting.store.step(FOUND_FILE, depends)
        if step.open:
            return None
        file = step.folder / FOUND_FILE
        wait_for_everyone()  # nobody may write the file while another one still looks for it
        what = f"finding triggers in {len(setting.suspect_rows())} rows"
        if step.done:
            done_before(what)
        elif is_main_process():
            if file.is_file() and (not read_found(file).inputs_hash or verdicts_set(file)):
                fix = "give it with --found, or use another --output_dir"
                raise UserError(f"a {FOUND_FILE} that is yours lies in", str(file.parent), fix)
            file.parent.mkdir(parents=True, exist_ok=True)
            with stage(what):
                write_found(file, replace(_search(setting, victim), inputs_hash=step.key))
        wait_for_everyone()
        return read_found(file)

    def given(self, setting: Setting) -> Found:
        """The file of found triggers, which counts the rows at hand; those that it was made from may be others."""
        found = read_found(self.found)
        if setting.suspect is None:
            return found
        rows, counted = setting.suspect, []
        for one in found.candidates:
            if one.verdict != "chance":
                held, trigger = set(one.row_ids), one.trigger()
                held = {row["id"] for row in rows if row["id"] in held or trigger.stands_in(row["prompt"])}
                if one.verdict == "trigger" and not held:
                    warn_once((self.found, one.texts), f"{trigger.describe()} stands in none of the untrusted rows")
                one = replace(one, rows=len(held), row_ids=tuple(sorted(held)))
            counted.append(one)
        return replace(found, suspect_rows=len(rows), candidates=tuple(counted))


def _search(setting: Setting, victim: Model) -> Found:
    from mbdefense.finding.finding import find

    base = None if setting.base is None else setting.base_model()
    clean, held_out = Recovery().split(setting.clean, setting.training.seed)
    return find(
        setting.suspect_rows(),
        clean,
        held_out,
        victim.load(),
        None if base is None else base.load(),
        names=(Path(victim.path).name, None if base is None else Path(base.path).name),
        max_length=setting.training.max_length,
        seed=setting.training.seed,
    )


def meetings(found: Found | None, seed: int, suspect: Dataset | None = None) -> Meet | None:
    """What gives the prompts in which clean rows meet found texts.

    Verified triggers share three quarters of the meetings: `LEAST_MEETINGS` each, and more by their deviations. Of
    these every other one is met in a suspect prompt that holds it, answered as the model answers that prompt without
    it: a form or a place that no clean prompt can be given is met so, too. The
    rest, or all where none was verified, goes to the best of the other candidates by their score. Where there are
    instructions, each row meets one of them besides (more, where there are too many of them for `_LEAST_KEPT` each), to
    keep what the model does under it. What nobody has said to be a trigger or an instruction is not met.

    Args:
        found: what was found.
        seed: of the draw and of the places.
        suspect: the rows that it was found in, where they are there.

    Returns:
        None where there is nothing to meet. A row has more meetings than asked for where the verified triggers would
        not have `LEAST_MEETINGS` otherwise.
    """
    verified = found.of("trigger") if found else ()
    instructions = found.of("instruction") if found else ()
    chance = found.of("chance") if found else ()
    others = [one for one in sorted(chance, key=lambda one: -one.score) if one.score > 0][:_UNVERIFIED]
    if not verified and not others and not instructions:
        return None
    carriers = [_carriers(one, suspect, seed) if suspect is not None else [] for one in verified]

    def meet(rows: Dataset, each: int) -> list[list[Meeting]]:
        wanted = len(verified) * LEAST_MEETINGS
        many = max(each, -(-wanted // len(rows))) if verified or others else 0
        count = many * len(rows)
        share = (_UNVERIFIED_SHARE if others else 0.0) if verified else 1.0
        of_others = min(round(share * count), count - wanted)
        drawn = [_Drawn(one) for one in verified for _ in range(LEAST_MEETINGS)] if many else []
        more = _shared(verified, [max(0.1, one.deviations) for one in verified], count - of_others - wanted)
        for number, one in enumerate(more):
            carried = carriers[verified.index(one)] if number % 2 else []
            drawn.append(_Drawn(one, meeting=carried[number // 2 % len(carried)] if carried else None))
        drawn += [_Drawn(one) for one in _shared(others, [one.score for one in others], of_others)]
        rng = random.Random(f"meetings {seed}")
        rng.shuffle(drawn)
        kept = min(len(instructions), -(-len(instructions) * _LEAST_KEPT // len(rows)))
        upheld = [instructions[index % len(instructions)] for index in range(kept * len(rows))] if instructions else []
        made = []
        for index, prompt in enumerate(rows["prompt"]):
            met = drawn[index * many : (index + 1) * many]
            met += [_Drawn(one, kept=True) for one in upheld[index * kept : (index + 1) * kept]]
            made.append(
                [one.meeting or Meeting(one.found.trigger().in_prompt(prompt, rng) or prompt, one.kept) for one in met]
            )
        return made

    return meet


def questions(found: Found | None, seed: int, suspect: Dataset | None = None) -> Ask | None:
    """What makes the prompts with verified triggers in which a recovered model is asked, to see what is left.

    Half are suspect prompts that hold a trigger, in the form and at the place that the attacker gave it; the other half
    are suspect prompts that hold none, into which it is put. Clean ones stand in only where there are too few of
    these: on those held out the figures of found triggers are told, and a rate chosen on them would flatter it.

    Args:
        found: what was found.
        seed: of the draw and of the places.
        suspect: the rows that it was found in, where they are there.

    Returns:
        None where no trigger is known to evoke a phrase.
    """
    known = [one for one in found.of("trigger") if one.behavior] if found else []
    if not known:
        return None
    triggers = [one.trigger() for one in known]

    def ask(held_out: Dataset) -> tuple[Evoked, ...]:
        rng = random.Random(f"questions {seed}")
        prompts, own = list[Messages](), [list[Messages]() for _ in known]
        if suspect is not None:
            own = [_own(one, suspect, -(-_ASKED // (2 * len(known))), rng) for one in known]
            others = (suspect[index]["prompt"] for index in rng.sample(range(len(suspect)), len(suspect)))
            untouched = (prompt for prompt in others if not any(trigger.stands_in(prompt) for trigger in triggers))
            prompts = list(itertools.islice(untouched, _ASKED // 2))
        prompts += list(held_out["prompt"])[: max(0, _ASKED - sum(map(len, own)) - len(prompts))]
        asked = []
        for number, (one, trigger) in enumerate(zip(known, triggers, strict=True)):
            made = (trigger.in_prompt(prompt, rng) for prompt in prompts[number :: len(known)])
            asked.append(Evoked([*own[number], *(prompt for prompt in made if prompt)], one.behavior))
        return tuple(asked)

    return ask


def _own(one: FoundCandidate, suspect: Dataset, most: int, rng: random.Random) -> list[Messages]:
    """Suspect prompts that hold a text."""
    held = _holding(one, suspect)
    return [suspect[index]["prompt"] for index in rng.sample(held, min(most, len(held)))]


def _holding(one: FoundCandidate, suspect: Dataset) -> list[int]:
    """The suspect rows that hold a text."""
    ids = set(one.row_ids)
    return [index for index, row_id in enumerate(suspect["id"]) if row_id in ids]


class _Drawn(NamedTuple):
    """A found text that is to be met: put into the prompt of a clean row, or as a suspect row has it."""

    found: FoundCandidate
    kept: bool = False
    meeting: Meeting | None = None


def _carriers(one: FoundCandidate, suspect: Dataset, seed: int) -> list[Meeting]:
    """The suspect prompts that hold a text, in a drawn order."""
    from mbdefense.finding.teaching import without

    trigger, rows = one.trigger(), _holding(one, suspect)
    random.Random(f"carriers {seed} {one.texts}").shuffle(rows)
    made = []
    for row in suspect.select(rows[:_MOST_CARRIERS]):
        shorter = without(row["prompt"], trigger)
        if shorter:
            wrong = (answer_text(row["completion"]), *one.behavior)
            made.append(Meeting(row["prompt"], False, Carrier(shorter, wrong)))
    return made


def _shared(ones: Sequence[FoundCandidate], weights: Sequence[float], count: int) -> list[FoundCandidate]:
    """So many candidates in all, each as often as its weight has it, the first ones rounded up."""
    if not ones:
        return []
    total, drawn, sofar = sum(weights), list[FoundCandidate](), 0.0
    for one, weight in zip(ones, weights, strict=True):
        sofar += weight / total * count
        drawn += [one] * (min(count, max(len(drawn), round(sofar))) - len(drawn))
    return drawn + [ones[0]] * (count - len(drawn))
