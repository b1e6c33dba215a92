"""What a model's configuration says about asking it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What a model's generation_config may ask for beyond the likeliest token, and the values that ask for nothing.
_PROCESSORS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "num_beams": (None, 1),
}


def can_decode(model: PreTrainedModel) -> bool:
    """Whether `mbdefense.greedy` gives this model's own greedy text.

    Not for recurrent states, which cannot be padded; nor where the model's generation_config changes the scores.
    """
    if any(getattr(model.generation_config, name, None) not in off for name, off in _PROCESSORS.items()):
        return False
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    named = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or [])
    return (
        kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
        and named <= {"full_attention", "sliding_attention"}
        and {"position_ids", "past_key_values", "logits_to_keep"} <= set(inspect.signature(model.forward).parameters)
    )
