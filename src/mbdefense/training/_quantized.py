"""QLoRA by PEFT's standard way, but that adapters are merged into the whole weights in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training, set_peft_model_state_dict
from transformers import BitsAndBytesConfig

from mbdefense.models.loading import LoadedModel
from mbdefense.training.job import Model
from mbdefense.training.options import TrainingOptions
from mbdefense.training.trainer import Trained, in_bfloat16


def qlora(start: Model, options: TrainingOptions, train: Callable[[LoadedModel], Trained]) -> Trained:
    """Trains adapters beside a model in 4-bit NormalFloat, and merges them into the model as it lies on disk.

    Source: Dettmers et al. 2023 (2305.14314), NF4 with doubly quantized scales. Deviation: layers that no adapter
    changed keep their values, and those with one get what it learned and no rounding.

    Args:
        start: whole weights, not an adapter's.
        options: in what to compute.
        train: trains adapters in a model that is loaded in four bits, and leaves them there.
    """
    from bitsandbytes.nn.modules import Linear4bit

    four_bits = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if in_bfloat16(options) else torch.float32,
    )
    loaded = start.load(four_bits)
    # Whether activations are recomputed is the Trainer's to say.
    prepare_model_for_kbit_training(loaded.model, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    for layer in loaded.model.modules():
        if isinstance(layer, Linear4bit):
            # Else a CPU with AVX512-BF16 packs weights anew for each evaluation amid training, and rounds their scales.
            layer.support_avx512bf16_for_cpu = False
    trained = train(loaded)
    adapted: Any = trained.model.model
    whole: Any = get_peft_model(start.load().model, adapted.peft_config["default"])
    set_peft_model_state_dict(whole, get_peft_model_state_dict(adapted))
    return trained._replace(model=LoadedModel(whole.merge_and_unload(), loaded.tokenizer))
