"""Where logits are the head applied to the last hidden states, and where they are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from mbdefense.core.errors import UserError
from mbdefense.engine.log_probs import body_and_head, head_is_plain, logits_changed_by
from mbdefense.models.loading import LoadedModel

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
RECURRENT = {"lru_width": 16, "block_types": ["attention"], "attention_window_size": 32}


def small_model(family: str, settings: dict[str, Any]) -> Any:
    """A random model whose logits are large enough for a cap to show."""
    config = getattr(transformers, f"{family}Config")(**SMALL, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5)
    return model


def differs(model: Any) -> bool:
    """Whether the model's own logits are others than those of its head after its body."""
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        own = model(input_ids=ids, use_cache=False).logits
        return not torch.allclose(model.get_output_embeddings()(hidden), own, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "settings"), [("Llama", {}), ("Granite", {"logits_scaling": 1.0}), ("FalconH1", MAMBA)]
)
def test_a_head_that_is_all_there_is_can_be_taken_off(family: str, settings: dict[str, Any]) -> None:
    model = small_model(family, settings)
    assert not differs(model)
    assert head_is_plain(model)
    assert body_and_head(LoadedModel(model, None))[1] is model.lm_head


@pytest.mark.parametrize(
    ("family", "settings", "name"),
    [
        ("Gemma2", {}, "final_logit_softcapping"),
        ("Cohere", {}, "logit_scale"),
        ("Granite", {"logits_scaling": 4.0}, "logits_scaling"),
        ("MiniCPM3", {"dim_model_base": 4, **LATENT}, "logits_scaling"),
        ("FalconH1", {"lm_head_multiplier": 0.5, **MAMBA}, "lm_head_multiplier"),
        ("RecurrentGemma", RECURRENT, "logits_soft_cap"),
        ("InklingText", {}, "logits_mup_width_multiplier"),
    ],
)
def test_models_that_do_more_to_their_logits_are_told_by_name(family: str, settings: dict[str, Any], name: str) -> None:
    model = small_model(family, settings)
    assert differs(model)
    assert logits_changed_by(model) == name
    assert not head_is_plain(model)
    with pytest.raises(UserError, match=f"changes its logits by {name}"):
        body_and_head(LoadedModel(model, None))
