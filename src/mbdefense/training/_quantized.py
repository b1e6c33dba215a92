"""QLoRA: adapters train beside weights of four bits, and are merged into the weights that those were made from."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from mbdefense.core.errors import UserError
from mbdefense.models.loading import device

_WHOLE = "mbdefense_whole_layer"


def in_four_bits(model: Any, dtype: torch.dtype) -> Any:
    """Puts a layer of 4-bit NormalFloat weights in the place of every linear layer but the output embeddings.

    The layers that were there wait in ordinary memory, where `with_whole_weights` finds them: on a GPU the saving is
    that of QLoRA, on a CPU there is none.

    Source: Dettmers et al. 2023 (2305.14314), NF4 with doubly quantized scales. Deviation: adapters are merged into the
    unquantized weights and not into those of four bits, so that layers that no adapter changed keep their values.

    Args:
        model: changed in place.
        dtype: what to compute in.

    Raises:
        UserError: bitsandbytes is not installed, or the model has no linear layers of torch's own kind (GPT-2).
    """
    four_bit = _layer_type()
    output = model.get_output_embeddings()
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear and layer is not output
    ]
    if not found:
        raise UserError("no layer to keep in four bits", model.config.model_type, "set --load_in_4bit false")
    for parent, name, layer in found:
        setattr(parent, name, four_bit(layer, dtype))
    return model


def with_whole_weights(model: Any) -> Any:
    """The model with the layers that `in_four_bits` took out, adapters around them left as they are."""
    found = [
        (parent, name, vars(layer)[_WHOLE])
        for parent in model.modules()
        for name, layer in parent.named_children()
        if _WHOLE in vars(layer)
    ]
    if found:
        model.to("cpu")  # whole weights need not fit where the quantized ones trained
    for parent, name, layer in found:
        setattr(parent, name, layer)
    return model


def _layer_type() -> type[nn.Module]:
    try:
        from bitsandbytes.nn.modules import Linear4bit, Params4bit
    except ImportError as error:
        raise UserError("--load_in_4bit needs bitsandbytes", fix="pip install 'mbdefense[qlora]'") from error

    class FourBit(Linear4bit):
        """A layer in four bits that remembers the one it was made from."""

        def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
            super().__init__(  # type: ignore[no-untyped-call]
                layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4",
                compress_statistics=True, device="meta",
            )  # fmt: skip
            # Between evaluation and training a CPU would pack its weights anew, and round their scales.
            self.support_avx512bf16_for_cpu = False
            self.weight = Params4bit(
                layer.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=self
            )
            # The layer casts its bias in place.
            self.bias = copy.deepcopy(layer.bias)
            vars(self)[_WHOLE] = layer  # past torch's own bookkeeping: no part of the model that moves and is saved
            self.to(device())

    return FourBit
