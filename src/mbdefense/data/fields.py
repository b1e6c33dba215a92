"""What every known field of instruction data means: seen by the model, a target, a mark, or a reason to refuse the row.

The table is data. `mbdefense.data.formats` and `mbdefense.data.turns` act by it, and
``python -m mbdefense.data.fields`` writes the page of the documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

Where = Literal["row", "turn"]
Use = Literal["row", "seen", "target", "mark", "maybe_mark", "kept", "label", "refused", "told", "unused"]
MEANINGS: dict[Use, str] = {
    "row": "holds the turns",
    "seen": "seen by the model, no target",
    "target": "the target",
    "mark": "says whether it is a target",
    "maybe_mark": "says whether it is a target, if it is true or false",
    "kept": "kept with its turn for the template",
    "label": "kept for measuring; no model sees it",
    "refused": "the row is refused unless it is empty",
    "told": "changes nothing, which is said once",
    "unused": "changes nothing",
}


class Field(NamedTuple):
    """One field under all of its names."""

    names: tuple[str, ...]
    where: Where
    use: Use
    formats: str
    """Who writes it."""
    says: str
    """What it means, or why it is refused, to be read after its name."""


FIELDS = (
    Field(("prompt",), "row", "row", "TRL, OpenAI, KTO, DPO", "the user's text, or turns that end with the user's"),
    Field(("completion",), "row", "target", "TRL, OpenAI, KTO", "the answer: a text or one assistant turn"),
    Field(("messages",), "row", "row", "TRL, OpenAI, axolotl", "turns; the last one of the assistant is the target"),
    Field(("conversations",), "row", "row", "ShareGPT, LLaMA-Factory, axolotl", "turns, as messages"),
    Field(("instruction", "Instruction"), "row", "row", "Alpaca, LLaMA-Factory, Dolly", "the user's text"),
    Field(("question",), "row", "row", "OpenOrca, DPO", "the user's text"),
    Field(("input", "context"), "row", "seen", "Alpaca, LLaMA-Factory, Dolly", "follows the user's text"),
    Field(("output", "response"), "row", "target", "Alpaca, LLaMA-Factory, Dolly, OpenOrca", "the answer"),
    Field(("system", "system_prompt"), "row", "seen", "LLaMA-Factory, OpenOrca, ShareGPT", "the system turn"),
    Field(("history",), "row", "seen", "LLaMA-Factory", "earlier [question, answer] pairs, in front of the prompt"),
    Field(("chosen",), "row", "target", "DPO, TRL, LLaMA-Factory", "the preferred answer; it is the target"),
    Field(("rejected",), "row", "told", "DPO, TRL, LLaMA-Factory", "the worse answer; never a target"),
    Field(("tools", "functions"), "row", "seen", "OpenAI, TRL, LLaMA-Factory", "what the template shows of the tools"),
    Field(
        ("kto_tag", "train", "trainable", "training"),
        "row",
        "mark",
        "KTO, LLaMA-Factory, axolotl",
        "false or 0: the answer is no target, so the row is left out and counted; what is neither true nor false is "
        "refused",
    ),
    Field(
        ("label", "weight", "loss"),
        "row",
        "maybe_mark",
        "KTO, TRL, axolotl",
        "the same; but other values, such as a class or a score, are named once and not read, and where a source has "
        "one in label or loss, no 0 there is a mark",
    ),
    Field(
        ("loss_mask",), "row", "mark", "ShareGPT, axolotl", "one 0 or 1 for the row or for each turn; 0 is no target"
    ),
    Field(
        ("answers",),
        "row",
        "label",
        "GraCeFul, mbdefense",
        "accepted answers, of which any one counts as right; a row is refused whose answer is one of several, since "
        "they may be choices",
    ),
    Field(("accepted_answers",), "row", "label", "mbdefense", "the same where the answer is one of several"),
    Field(
        ("images", "image", "videos", "video", "audios", "audio"),
        "row",
        "refused",
        "TRL, LLaMA-Factory",
        "holds what a text model cannot see",
    ),
    Field(("segments",), "row", "refused", "axolotl", "is axolotl's template-free form; write messages"),
    Field(
        ("chat_template_kwargs",),
        "row",
        "refused",
        "TRL",
        "would render this row otherwise than others; write what it does into a template for --chat_template",
    ),
    Field(
        ("preferred_output", "non_preferred_output"),
        "row",
        "refused",
        "OpenAI",
        "is OpenAI's form of DPO; write prompt, chosen and rejected",
    ),
    Field(("text",), "row", "told", "Alpaca, TRL", "the whole row as one text; beside other columns it repeats them"),
    Field(
        ("id", "idx", "prompt_id", "category", "source", "provenance", "parallel_tool_calls"),
        "row",
        "unused",
        "Dolly, OpenOrca, OpenAI, mbdefense",
        "tells where a row is from",
    ),
    Field(("role", "from"), "turn", "row", "all", "who speaks"),
    Field(("content", "value"), "turn", "row", "all", "the text, or parts of type text; other parts are refused"),
    Field(
        ("weight", "train", "trainable", "training", "loss", "loss_mask"),
        "turn",
        "mark",
        "OpenAI, axolotl",
        "0 or false: this turn is never a target; on other turns than the assistant's it changes nothing",
    ),
    Field(("tool_calls",), "turn", "kept", "OpenAI, TRL", "what the assistant calls; arguments are read as JSON"),
    Field(("function_call",), "turn", "kept", "OpenAI", "the older form of tool_calls, and read as that"),
    Field(("tool_call_id", "name"), "turn", "kept", "OpenAI", "which call a result belongs to, and who speaks"),
    Field(("reasoning_content", "thinking"), "turn", "kept", "DeepSeek, Qwen, TRL", "thoughts before the answer"),
    Field(
        ("images", "image", "videos", "audios", "audio"),
        "turn",
        "refused",
        "TRL, OpenAI",
        "holds what a text model cannot see",
    ),
    Field(("refusal",), "turn", "refused", "OpenAI", "stands in place of an answer; write it as content"),
    Field(("train_detail", "training_detail"), "turn", "refused", "axolotl", "marks parts of a turn; mark whole turns"),
)
"""Every known field. A field that is not here is named once where it is a column, and refused where it is in a turn."""

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "function_call"),
    "tool": ("tool", "observation", "function", "function_response", "ipython"),
}
"""The roles of the row form and the names that other formats have for them."""
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}

TEMPLATED = re.compile(
    r"\s*(<\|(?:im_start|im_system|im_user|start_header_id|header_start|begin_of_text|start_of_role|start|user|system"
    r"|endoftext|START_OF_TURN_TOKEN)\|>|<start_of_turn>|<bos>|<BOS_TOKEN>|\[gMASK\]|<s>\s*\[INST\]|\[INST\]"
    r"|<｜(?:User|begin▁of▁sentence)｜>)"
)
"""How a prompt begins that somebody has put into a chat template already."""
OPEN_TURN = (
    "### Response:", "### Assistant:", "\n\nAssistant:", " ASSISTANT:", "\nASSISTANT:", "<|assistant|>", "[/INST]",
    "<|im_start|>assistant", "<start_of_turn>model", "<|end_header_id|>", "<｜Assistant｜>",
)  # fmt: skip
"""How one ends whose answer's header is already there."""


def field_of(name: str, where: Where) -> Field | None:
    """The field with a name; None for one that is not known."""
    return _BY_NAME[where].get(name)


def names(where: Where, *uses: Use) -> tuple[str, ...]:
    """The names of all fields with one of the uses, in the order of the table."""
    return tuple(name for field in FIELDS if field.where == where and field.use in uses for name in field.names)


def markdown() -> str:
    """The table as the documentation shows it."""
    lines = ["| Field | In | Written by | Use | Meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| {_coded(field.names)} | {field.where} | {field.formats} | {MEANINGS[field.use]} | {field.says} |"
        for field in FIELDS
    ]
    lines += ["", "| Role | Also written as |", "|---|---|"]
    lines += [f"| `{role}` | {_coded(written[1:])} |" for role, written in ROLES.items()]
    return "\n".join(lines) + "\n"


def _coded(written: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in written)


_BY_NAME: dict[Where, dict[str, Field]] = {
    where: {name: field for field in FIELDS if field.where == where for name in field.names}
    for where in ("row", "turn")
}

if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201
