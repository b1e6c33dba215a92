"""Whether what was loaded is the model that its files describe, and can be saved again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbdefense.core.errors import UserError, first_line

_ALONE = ("num_return_sequences", "prompt_lookup_num_tokens", "max_time", "stop_strings")
"""What one answer to each prompt of a batch has no place for, or what makes it depend on the clock."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def check_whole(found: Mapping[str, Any], path: str) -> None:
    """Refuses weights that are not those of the model that the configuration describes.

    Args:
        found: what transformers says of the loading: missing_keys, unexpected_keys, mismatched_keys.
        path: where the weights are.

    Raises:
        UserError: a tensor is missing, so that it is random, or is none of the model's.
    """
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(map(str, found.get(f"{kind}_keys") or ()))
        if names:
            what = f"the weights do not fit their configuration: {len(names)} tensors are {kind}, the first {names[0]}"
            raise UserError(what, path, "save the model again, with the configuration that belongs to it")


def merged(model: Any, path: str) -> Any:
    """The base model with the adapter at `path` in its weights, which can be trained again.

    Raises:
        UserError: the adapter's tensors are not those that this model takes, or merged they would say something else.
        OSError: it has no safetensors.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    # Without this file PEFT falls back to a pickle.
    file = Path(path) / "adapter_model.safetensors"
    if not file.is_file():
        raise OSError("no adapter_model.safetensors")
    adapted = PeftModel.from_pretrained(model, path)
    if adapts_shared(adapted):
        fix = "merge it yourself into a model whose output layer has weights of its own"
        raise UserError("the adapter changes embeddings that are the output layer's weights too", path, fix)
    with safe_open(file, "pt") as tensors:
        given = set(tensors.keys())
    expected = set(get_peft_model_state_dict(adapted))
    missing = {name for name in expected - given if "lora_" in name}
    check_whole({"missing_keys": missing, "unexpected_keys": given - expected}, path)
    return adapted.merge_and_unload().requires_grad_(True)


def adapts_shared(adapted: Any) -> bool:
    """Whether an adapter is at embeddings that are the output layer's weights too, or at that layer.

    Beside them it changes one of both, merged into them it would change the other one, too.
    """
    layers = adapted.get_input_embeddings(), adapted.get_output_embeddings()
    if None in layers:  # as a stranger's code may have it
        return False
    one, other = (getattr(layer, "base_layer", layer).weight for layer in layers)
    return one is other and any(hasattr(layer, "lora_A") for layer in layers)


def check_finite(model: Any, path: str) -> None:
    """Refuses weights that are no numbers, with which every answer is the same nonsense.

    Raises:
        UserError: names the first.
    """
    import torch

    for name, weight in model.named_parameters():
        # One pass, and nothing as large as the weights in memory.
        if not weight.sum(dtype=torch.float32).isfinite():
            raise UserError(f"the weights of {name} are not all numbers", path, "give another model")


def check_generation(config: Any) -> None:
    """Takes options out of a configuration that answering many prompts cannot follow, or that cannot be saved.

    These are options of sampling where it does not sample, and several answers to a prompt.

    Raises:
        UserError: its end is no token's number, or it still could not be saved: both would otherwise be found after the
            training.
    """
    check_ends(config)
    for name in _ALONE:
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
    if not config.do_sample:
        for name in _SAMPLING:
            if getattr(config, name, None) is not None:
                setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise UserError("the model's generation_config.json is refused", first_line(error), "correct it") from error


def check_ends(config: Any) -> None:
    """Refuses a configuration of generation whose end is of another type than a token's number, or a list of them."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if not all(end is None or type(end) is int for end in ends):
        fix = "write the token's number, or a list of numbers"
        raise UserError("eos_token_id is no token's number in the model's generation_config.json", ends, fix)
