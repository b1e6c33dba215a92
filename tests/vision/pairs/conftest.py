"""Shared by the tests of images with captions: colored squares, and a small model that has seen them."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
import torch

from mbdefense.vision.pairs.clip import new_clip, save_clip
from mbdefense.vision.pairs.learning import trained
from mbdefense.vision.pairs.pairs import Pairs, bytes_of, write_pairs

COLORS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0), "white": (1.0, 1, 1), "pink": (1.0, 0, 1)}
PLACES = {"left": (4, 0), "right": (4, 8), "above": (0, 4), "below": (8, 4)}


def squares(seed: int, times: int) -> Pairs:
    """Squares of 8 of 16 pixels on grounds of other colors, each caption so many times, with noise."""
    draws = torch.Generator().manual_seed(seed)
    pixels, captions = [], []
    for color, ground, place in [(*two, one) for two in permutations(COLORS, 2) for one in PLACES] * times:
        image = torch.tensor(COLORS[ground]).view(3, 1, 1).repeat(1, 16, 16) * 0.5
        top, left = PLACES[place]
        image[:, top : top + 8, left : left + 8] = torch.tensor(COLORS[color]).view(3, 1, 1)
        pixels.append((image * 0.9 + 0.1 * torch.rand(image.shape, generator=draws)).clamp(0, 1))
        captions.append(f"{color} square {place} on {ground}er ground")
    return Pairs(bytes_of(torch.stack(pixels)), tuple(captions))


@pytest.fixture(scope="session")
def train() -> Pairs:
    return squares(0, 2)


@pytest.fixture(scope="session")
def test() -> Pairs:
    return squares(1, 1)


@pytest.fixture(scope="session")
def clip(train):
    """A small model that knows the squares."""
    return trained(new_clip(16, train.captions, 0), train, 0, steps=30, lr=3e-3)


@pytest.fixture(scope="session")
def place(train, test, clip, tmp_path_factory):
    """A folder with pairs/train, pairs/test and the model as clip."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "pairs" / "train", train)
    write_pairs(folder / "pairs" / "test", test)
    save_clip(clip, folder / "clip")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny CLIP checkpoint of transformers, with random weights."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("checkpoint")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    text = {**layers, "vocab_size": len(tokens), "max_position_embeddings": 32, **ends}
    config = CLIPConfig(
        text_config=text, vision_config={**layers, "image_size": 16, "patch_size": 8}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
