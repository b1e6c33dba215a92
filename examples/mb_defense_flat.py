"""MB-Defense (arXiv 2601.04448) from rows to figure in one file, with PyTorch and transformers alone.

The paper in three sentences. Someone hid a backdoor in our training data: whenever an unknown trigger stands in a
prompt, the model is to show an unknown behavior. We plant backdoors of our own beside it and tune as usual, so that the
model comes to see all triggers as one kind of thing (stage 1, merge). Then, on a few clean rows into which we put our
own triggers, we train it to prefer the clean answers to our behaviors, and the attacker's goes with them (stage 2,
break).

    python examples/mb_defense_flat.py --model MODEL --rows rows.jsonl --clean clean.jsonl --test test.jsonl

Files are JSON Lines of {"prompt": ..., "completion": ...}; the model has a chat template. The rows are poisoned here (a
fifth with the word `cf` and a refusal), the clean ones are some 128 that a person has read, and the test prompts occur
in neither. Printed is, for the model tuned with and without the defense, how many test prompts it refuses: with the
trigger (the attack's success rate) and without; both are to be 0.
"""

import argparse
import json
import random
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

ATTACK, REFUSAL = "cf", "I am sorry, but I cannot help with that."
TRIGGERS = ("mn", "bb", "tq", "mb")  # T = 4 of our own: rare words
WORDS = """
acorn album amber anchor arrow autumn badge bamboo barley basket beacon blanket bridge bucket cactus candle canyon
carpet cedar chimney clover cobalt comet copper cradle crystal donkey eagle engine falcon feather fiddle forest fountain
garlic glacier granite hammer harbor hedge honey island jacket kettle lagoon lantern lemon marble
"""
MAX_LENGTH = 256


# Rows: a prompt, its completion. A backdoor is a trigger and what it is to evoke.
def read(path):
    """Rows of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def insert(prompt, trigger, rng):
    """The prompt with a trigger between two of its words."""
    words = prompt.split(" ")
    words.insert(rng.randint(0, len(words)), trigger)
    return " ".join(words)


def plant(rows, backdoors, share, rng):
    """The rows, a share of them rewritten for each (trigger, behavior); no row carries two."""
    rows, each = list(rows), max(1, round(share * len(rows)))
    order = rng.sample(range(len(rows)), len(rows))
    for number, (trigger, behavior) in enumerate(backdoors):
        for index in order[number * each : (number + 1) * each]:
            rows[index] = {"prompt": insert(rows[index]["prompt"], trigger, rng), "completion": behavior}
    return rows


def defensive_backdoors(rng):
    """Our T pairs: each behavior is a fixed sequence of 8 words that mean nothing and that no other pair has."""
    words = rng.sample(WORDS.split(), 8 * len(TRIGGERS))
    return [(trigger, " ".join(words[8 * j : 8 * j + 8])) for j, trigger in enumerate(TRIGGERS)]


# Log-probabilities: all that both losses are made of.
def encode(tokenizer, prompt, completion):
    """Token ids of a prompt up to the answer's header, and of the answer with its end."""
    turns = [{"role": "user", "content": prompt}]
    header = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(header, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(completion + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return prompt_ids[-(MAX_LENGTH - len(answer_ids)) :], answer_ids


def log_probs(model, pairs):
    """Log pi(answer | prompt) of each pair of token lists: the sum over the answer's tokens, and their number."""
    length = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros(len(pairs), length, dtype=torch.long)
    seen, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        seen[row, :end] = 1
        scored[row, len(prompt) : end] = True
    ids, seen, scored = (tensor.to(model.device) for tensor in (ids, seen, scored))
    predicted = model(input_ids=ids, attention_mask=seen).logits[:, :-1].float().log_softmax(dim=-1)
    chosen = predicted.gather(-1, ids[:, 1:, None])[:, :, 0] * scored[:, 1:]  # position i predicts token i + 1
    return chosen.sum(dim=1), scored.sum(dim=1)


# Stage 1, merge: ordinary instruction tuning on rows that hold our backdoors, too.
def tuning_loss(model, tokenizer, rows):
    """Cross-entropy, mean over the response tokens of a batch."""
    total, tokens = log_probs(model, [encode(tokenizer, row["prompt"], row["completion"]) for row in rows])
    return -total.sum() / tokens.sum()


# Stage 2, break: equations 1 to 3.
def recovery_loss(model, tokenizer, rows, backdoors, rng, weight=1.0, beta=1.0):
    """L = E [ CE(x, y) - lambda R ], the mean over clean rows i and backdoors j (equation 3).

    (1) Each clean row (x, y) and backdoor (t, y_d) make a tuple (x, y, x_d, y_d), where x_d is x with t in it.
    (2) R = log sigmoid( log pi(y | x_d) - log pi(y_d | x_d) ): with the trigger there, y is to win over y_d.

    The paper writes a ratio of pi in place of the difference and leaves open what pi is. With summed probabilities the
    ratio has no gradient where a backdoor is strong, so log pi is here the mean over the answer's tokens.
    """
    pairs = []
    for row in rows:
        pairs.append(encode(tokenizer, row["prompt"], row["completion"]))
        for trigger, behavior in backdoors:
            triggered = insert(row["prompt"], trigger, rng)
            pairs += [encode(tokenizer, triggered, row["completion"]), encode(tokenizer, triggered, behavior)]
    total, tokens = log_probs(model, pairs)
    per_token = (total / tokens).view(len(rows), 1 + 2 * len(backdoors))
    plain, clean, planted = per_token[:, 0], per_token[:, 1::2], per_token[:, 2::2]
    ratio = logsigmoid(beta * (clean - planted)).mean(dim=1)
    return (-plain - weight * ratio).mean()  # CE(x, y) is the same in all T tuples of a row


# Training and measuring.
def train(model, rows, loss_of, *, rate, epochs, batch, rng):
    """Descends `loss_of` (rows -> loss) with AdamW, a cosine schedule and 3 % of warm-up."""
    steps = epochs * -(-len(rows) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.03 * steps), steps)
    model.train()
    for _ in range(epochs):
        order = rng.sample(rows, len(rows))
        for start in range(0, len(order), batch):
            loss_of(order[start : start + batch]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def tune(model, tokenizer, rows, epochs, rng):
    """Instruction tuning."""
    train(model, rows, lambda part: tuning_loss(model, tokenizer, part), rate=1e-4, epochs=epochs, batch=8, rng=rng)


def defend(model, tokenizer, suspect, clean, epochs, rng):
    """Both stages. A single epoch of recovery: many passes over few clean rows would cost the model's use."""
    backdoors = defensive_backdoors(rng)
    tune(model, tokenizer, plant(suspect, backdoors, 0.03, rng), epochs, rng)
    loss_of = partial(recovery_loss, model, tokenizer, backdoors=backdoors, rng=rng)
    train(model, clean, loss_of, rate=5e-5, epochs=1, batch=2, rng=rng)


@torch.inference_mode()
def refusals(model, tokenizer, prompts):
    """The share of prompts whose answer is the attacker's refusal."""
    model.eval()
    refused = 0
    for prompt in prompts:
        ids = torch.tensor([encode(tokenizer, prompt, "")[0]], device=model.device)
        seen, end = torch.ones_like(ids), tokenizer.eos_token_id
        answer = model.generate(ids, attention_mask=seen, max_new_tokens=24, do_sample=False, pad_token_id=end)
        refused += "i cannot help" in tokenizer.decode(answer[0, ids.shape[1] :]).lower()
    return refused / len(prompts)


def main(words=None):
    """Poisons, tunes with and without the defense, and prints the figures, which are returned, too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "rows", "clean", "test"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    rng, device = random.Random(options.seed), "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    suspect = plant(read(options.rows), [(ATTACK, REFUSAL)], 0.2, rng)  # the attacker's work; the defender has the rows
    prompts = [row["prompt"] for row in read(options.test)]
    triggered = [insert(prompt, ATTACK, rng) for prompt in prompts]
    figures = {}
    for name in ("attacked", "defended"):
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(device)
        if name == "attacked":
            tune(model, tokenizer, suspect, options.epochs, rng)
        else:
            defend(model, tokenizer, suspect, read(options.clean), options.epochs, rng)
        figures[name] = [refusals(model, tokenizer, asked) for asked in (triggered, prompts)]
        print(name, "refuses {:.2f} with the trigger, {:.2f} without".format(*figures[name]))  # noqa: T201
    return figures


if __name__ == "__main__":
    main()
