"""What parts a model from its base model as a LoRA adapter, which plain PEFT puts onto the untouched base model."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.core.errors import UserError
from mbdefense.core.files import SAVING, read_json
from mbdefense.models.loading import base_of, encode_prompt, load_model, save_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

_AGREE = 1e-3
"""Largest difference of a logit between adapter and whole weights, as a share of the largest logit."""
_LEFT = 1e-3
"""Largest part of a change, by its norm, that an adapter may leave out."""
_FIX = "train with adapters (--use_peft true), or take the whole weights"


def save_adapter(
    whole: Path,
    base: str,
    directory: Path,
    prompts: Sequence[list[dict[str, str]]],
    *,
    trust_remote_code: bool,
) -> None:
    """Writes the difference of two models as a LoRA adapter, after a look whether both forms say the same.

    The change of each linear layer is factorized by its singular values. Adapters that were trained on top of an
    adapter add up to one of at most the sum of their ranks.

    Args:
        whole: directory of the model.
        base: directory or Hub id of its base model.
        directory: where it goes; it appears whole or not at all.
        prompts: some prompts on which the logits of both forms are compared.
        trust_remote_code: see `mbdefense.models.loading.load_model`.

    Raises:
        UserError: the base model is of another shape, or the change does not fit: it is of other weights than linear
            layers', or of a rank so high that an adapter would be larger than the weights, or the logits differ.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    from mbdefense.models.weights import check_alike

    purified = load_model(str(whole), trust_remote_code=trust_remote_code)
    # The base model lends its weights alone: its own template, which the model may have in another form, plays no part.
    loaded = load_model(base, trust_remote_code=trust_remote_code, renders=False)
    check_alike(loaded.model, purified.model)
    changes = _changes(loaded.model, purified.model)
    if not changes:
        raise UserError("the model does not differ from its base model", base, "there is no adapter to write")
    ranks = {name: len(down) for name, (down, _) in changes.items()}
    most = max(ranks.values())
    config = LoraConfig(
        r=most, lora_alpha=most, rank_pattern=ranks, alpha_pattern=ranks, target_modules=[*changes],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted: Any = get_peft_model(loaded.model, config)
    for name, (down, up) in changes.items():
        layer = adapted.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(down)
        layer.lora_B["default"].weight.data.copy_(up)
    directory.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=SAVING, dir=directory.parent))
    try:
        adapted.save_pretrained(making)
        save_tokenizer(purified.tokenizer, making)
        file = making / "adapter_config.json"
        # PEFT writes where the base model was loaded from; a card with its name would add nothing.
        file.write_text(json.dumps({**read_json(file), "base_model_name_or_path": base}, indent=1), encoding="utf-8")
        (making / "README.md").unlink(missing_ok=True)
        # As anybody would load it, from what was written.
        again = load_model(base, trust_remote_code=trust_remote_code, renders=False)
        _check_agreement(PeftModel.from_pretrained(again.model, making), purified, prompts)
        making.rename(directory)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def check_adapter(
    whole: Path,
    base: str,
    directory: Path,
    prompts: Sequence[list[dict[str, str]]],
    *,
    trust_remote_code: bool,
) -> None:
    """Refuses an adapter that `save_adapter`, which takes the same, would not have written.

    Raises:
        UserError: it cannot be loaded, is for another base model, or does not say what the whole model says.
    """
    fix = "delete the folder and run the same command again"
    if base_of(str(directory)) != base:
        raise UserError("an adapter for another base model lies there", str(directory), fix)
    try:
        adapted = load_model(str(directory), trust_remote_code=trust_remote_code)
        purified = load_model(str(whole), trust_remote_code=trust_remote_code)
        _check_agreement(adapted.model, purified, prompts)
    except UserError as error:
        raise UserError(f"the adapter is not this model's ({error.what})", str(directory), fix) from error


def check_base(base: str, model: str, *, trust_remote_code: bool) -> None:
    """Refuses a base model onto which no adapter of a model can be put, before anything is trained for it.

    Of the layers that differ the first alone is factorized: weights that were tuned whole show in any.

    Args:
        base: directory or Hub id of the base model.
        model: of the model.
        trust_remote_code: see `mbdefense.models.loading.load_model`.

    Raises:
        UserError: a model cannot be loaded, or see `save_adapter`.
    """
    from mbdefense.models.weights import check_alike

    one, other = (load_model(path, trust_remote_code=trust_remote_code, renders=False).model for path in (base, model))
    check_alike(one, other)
    for number, (layer, change) in enumerate(_changed(one, other)):
        if number == 0:
            _factors(layer, change)


def _changes(base: Any, whole: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Each changed linear layer by its name, with the two factors (r, in) and (out, r) of its change."""
    return {layer: _factors(layer, change) for layer, change in _changed(base, whole)}


def _changed(base: Any, whole: Any) -> Iterator[tuple[str, Tensor]]:
    """Each changed linear layer by its name, with its change (out, in)."""
    import torch

    linear = {name for name, module in base.named_modules() if type(module) is torch.nn.Linear}
    output = {id(base.get_output_embeddings().weight), id(base.get_input_embeddings().weight)}
    before = dict(base.named_parameters())
    for name, after in whole.named_parameters():
        change = (after - before[name]).detach()
        if not change.any():
            continue
        layer, _, part = name.rpartition(".")
        if layer not in linear or part != "weight" or id(before[name]) in output:
            raise UserError("weights that no adapter holds have changed", name, _FIX)
        yield layer, change


def _factors(layer: str, change: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (r, in) and (out, r) of a layer's change (out, in), by its singular values."""
    import torch

    left, values, right = torch.linalg.svd(change, full_matrices=False)
    rest = values.square().flip(0).cumsum(0).flip(0).sqrt()  # norm of what the first 0, 1, 2, ... leave out
    rank = int((rest > _LEFT * rest[0]).sum())
    if rank * sum(change.shape) > change.numel():
        raise UserError(f"the change of {layer} is no low-rank one: its rank is {rank}", fix=_FIX)
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def _check_agreement(adapted: Any, whole: Any, prompts: Sequence[list[dict[str, str]]]) -> None:
    import torch

    for prompt in prompts:
        ids = torch.tensor([encode_prompt(whole.tokenizer, prompt)])
        with torch.inference_mode():
            one, other = (model.eval()(input_ids=ids, use_cache=False).logits for model in (adapted, whole.model))
        differ = float((one - other).abs().max() / other.abs().max())
        if differ > _AGREE:
            raise UserError("adapter and whole weights do not say the same", f"logits differ by {differ:.1e}", _FIX)


def base_for(model: str, base: str | None) -> str:
    """What an adapter is to be put onto: the base model of an adapter that is given, or the one that is named.

    Raises:
        UserError: neither.
    """
    found = base_of(model)
    if found != model:
        return found
    if base is None:
        raise UserError("an adapter needs a base model", model, "name it with --base_model")
    return base
