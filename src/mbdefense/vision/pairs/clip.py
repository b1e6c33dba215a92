"""CLIP models: one interface to the small one of this package and to checkpoints of `transformers`."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn.functional import normalize

from mbdefense.core.errors import UserError, first_line
from mbdefense.core.files import SAVING, make_folder, read_json, write_json, write_sealed
from mbdefense.core.forms import Form, read_form
from mbdefense.core.progress import no_bars_of_transformers
from mbdefense.models._files import check_files
from mbdefense.models._whole import check_whole
from mbdefense.vision.pairs.network import MOST_WORDS, SmallClip, vocabulary_of
from mbdefense.vision.weights import load_weights, save_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLIP_FILE, PROCESSOR_FILE = "clip.json", "preprocessor_config.json"
"""The first is written last."""
LARGEST = 448
"""Pixels of a side of the largest images."""
_FIX = "give a folder that mbdefense pairs has written, or a CLIP checkpoint of transformers with safetensors"


class HubClip(nn.Module):
    """A CLIP checkpoint of `transformers`, with its tokenizer.

    Args:
        model: a `CLIPModel`.
        tokenizer: its own.
        mean: of its images' channels, which are taken off.
        std: by which they are divided.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.mean, self.std = model, tokenizer, tuple(mean), tuple(std)
        self.size = int(self._config.vision_config.image_size)

    @property
    def _config(self) -> Any:
        return self.model.config

    def images(self, pixels: Tensor) -> Tensor:
        """Embeddings (n, d) of length one of images (n, 3, size, size) in [0, 1]."""
        mean, std = (torch.tensor(values).view(3, 1, 1).to(pixels) for values in (self.mean, self.std))
        return normalize(self.model.get_image_features((pixels - mean) / std).pooler_output)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings (n, d) of length one of captions."""
        longest = int(self._config.text_config.max_position_embeddings)
        read = self.tokenizer(list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        mask = read.get("attention_mask")
        return normalize(self.model.get_text_features(read["input_ids"], attention_mask=mask).pooler_output)

    def scale(self) -> Tensor:
        """The inverse temperature, at most 100."""
        scale: Tensor = self.model.logit_scale
        return scale.exp().clamp(max=100)


Clip = SmallClip | HubClip


@dataclass(frozen=True)
class _Card(Form):
    """What stands in `CLIP_FILE`."""

    format: Literal[1]
    size: Annotated[int, Interval(ge=8, le=LARGEST)]
    vocabulary: tuple[str, ...]
    weights: str

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        return f"more than {MOST_WORDS} words" if len(self.vocabulary) > MOST_WORDS else ""


def new_clip(size: int, captions: Sequence[str], seed: int) -> SmallClip:
    """A small model with random weights, which knows the words of some captions.

    Raises:
        UserError: a size of images that it cannot have.
    """
    if not 8 <= size <= LARGEST:
        raise UserError(f"images of 8 to {LARGEST} pixels a side are taken", size, "give e.g. --size 32")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallClip(size, vocabulary_of(captions)).eval()


def save_clip(clip: Clip, folder: str | PathLike[str]) -> None:
    """Writes a model into a folder, in its own form; a checkpoint's files are whole before one is there.

    Raises:
        UserError: it cannot be written.
    """
    place = Path(folder)
    make_folder(place)
    if isinstance(clip, SmallClip):
        digest = save_weights(place, clip.state_dict())
        write_sealed(place / CLIP_FILE, asdict(_Card(1, clip.size, clip.vocabulary, digest)))
        return
    making = Path(tempfile.mkdtemp(prefix=SAVING, dir=place))
    try:
        clip.tokenizer.save_pretrained(making)
        write_json(making / PROCESSOR_FILE, {"image_mean": clip.mean, "image_std": clip.std, "size": clip.size})
        clip.model.save_pretrained(making)
        (place / CLIP_FILE).unlink(missing_ok=True)  # of a small model before, which would be loaded in its place
        for file in making.iterdir():
            file.replace(place / file.name)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def load_clip(folder: str | PathLike[str]) -> Clip:
    """What `save_clip` wrote, or a CLIP checkpoint of `transformers`.

    Raises:
        UserError: a file is missing, damaged or changed, or the folder holds another model.
    """
    place = Path(folder)
    if (place / CLIP_FILE).is_file():
        card = read_form(_Card, place / CLIP_FILE, fix=_FIX)
        clip = SmallClip(card.size, card.vocabulary)
        clip.load_state_dict(load_weights(place, card.weights, clip.state_dict(), _FIX))
        clip.eval()
        return clip
    if not (place / "config.json").is_file():
        raise UserError("no CLIP model in the folder", str(folder), _FIX)
    check_files(str(place))
    kind = read_json(place / "config.json", _FIX).get("model_type")
    if kind != "clip":
        raise UserError("another kind of model than CLIP", kind, _FIX)
    return _hub_clip(place)


def _hub_clip(place: Path) -> HubClip:
    from transformers import AutoTokenizer, CLIPModel

    model: Any
    about: dict[str, Any]
    processor = read_json(place / PROCESSOR_FILE, _FIX)
    mean, std = (_channels(processor, name) for name in ("image_mean", "image_std"))
    try:
        with no_bars_of_transformers():
            model, about = CLIPModel.from_pretrained(
                place, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )  # type: ignore[misc]
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library's own are of many kinds
        raise UserError(f"cannot load the CLIP model ({first_line(error)})", str(place), _FIX) from error
    check_whole(about, str(place))  # what is missing would be random
    made = HubClip(model.eval(), tokenizer, mean, std)
    if not 8 <= made.size <= LARGEST:
        raise UserError(f"images of 8 to {LARGEST} pixels a side are taken", made.size, _FIX)
    if not all(bool(value.isfinite().all()) for value in model.parameters()):
        raise UserError("weights that are no finite numbers", str(place), _FIX)
    _try_out(made, place)
    return made


def _try_out(clip: HubClip, place: Path) -> None:
    """Asks once, so that a tokenizer or a size that does not fit the model is told before any work."""
    embedded = clip.model.text_model.embeddings.token_embedding.num_embeddings
    if max(len(clip.tokenizer) - 1, *clip.tokenizer.get_vocab().values()) >= embedded:
        raise UserError("the tokenizer has more entries than the CLIP model's embedding", str(place), _FIX)
    try:
        with torch.inference_mode():
            images = clip.images(torch.zeros(1, 3, clip.size, clip.size))
            texts = clip.texts(["a cat", "a red house by the sea", "word " * 200])  # whose first words are the same
    except Exception as error:  # as above
        raise UserError(f"the CLIP model cannot be asked ({first_line(error)})", str(place), _FIX) from error
    if images.shape[1:] != texts.shape[1:]:
        raise UserError("images and captions of other dimensions", str(place), _FIX)
    if torch.equal(texts[0], texts[1]):  # such as where the tokenizer sets no end, which the model reads captions at
        raise UserError("the CLIP model reads every caption as the same one", str(place), _FIX)


def _channels(processor: dict[str, Any], name: str) -> list[float]:
    values = processor.get(name)
    listed = values if isinstance(values, list) else []
    numbers = [one for one in listed if type(one) in (int, float) and abs(one) < math.inf]  # False for NaN
    if len(listed) != 3 or len(numbers) != 3 or (name == "image_std" and not all(one > 0 for one in numbers)):
        raise UserError(f"{PROCESSOR_FILE}: {name} is not three numbers", values, _FIX)
    return [float(one) for one in numbers]
