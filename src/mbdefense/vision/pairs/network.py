"""A small CLIP: convolutions for images, one layer of a transformer for captions, and words for tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mbdefense.vision.pairs.pairs import words

WIDTH, LONGEST, MOST_WORDS = 128, 16, 20_000
"""Of both embeddings; words of a caption, of which the rest is left out; words that are told apart."""


class SmallClip(nn.Module):
    """Two towers into one space, some 700,000 parameters with 1,500 words.

    Args:
        size: height and width of the images.
        vocabulary: the words that it tells apart; all others are one.
    """

    def __init__(self, size: int, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.size, self.vocabulary = size, tuple(vocabulary)
        self._numbers = {word: number for number, word in enumerate(self.vocabulary, start=2)}
        layers: list[nn.Module] = []
        for before, after in pairwise((3, 32, 64, 128)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.image = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128 * 16, WIDTH))
        self.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a CPU
        self.word = nn.Embedding(len(self.vocabulary) + 2, WIDTH, padding_idx=0)
        self.place = nn.Parameter(torch.randn(LONGEST, WIDTH) * 0.02)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.text = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # 1 / 0.07, as CLIP begins

    def images(self, pixels: Tensor) -> Tensor:
        """Embeddings (n, d) of length one of images (n, 3, size, size) in [0, 1]."""
        return normalize(self.image((pixels * 2 - 1).contiguous(memory_format=torch.channels_last)))

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings (n, d) of length one of captions."""
        numbers = self.numbers(captions)
        seen = (numbers > 0).unsqueeze(2)
        read = self.layer(self.word(numbers) + self.place[: numbers.shape[1]], src_key_padding_mask=~seen[:, :, 0])
        mean = (read * seen).sum(dim=1) / seen.sum(dim=1)
        return normalize(self.text(mean))

    def numbers(self, captions: Sequence[str]) -> Tensor:
        """Words as numbers (n, longest caption); 0 is none, 1 is an unknown one."""
        rows = [[self._numbers.get(word, 1) for word in words(caption)[:LONGEST]] or [1] for caption in captions]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    def scale(self) -> Tensor:
        """The inverse temperature, at most 100."""
        return self.log_scale.exp().clamp(max=100)


def vocabulary_of(captions: Iterable[str]) -> tuple[str, ...]:
    """The words of captions, the frequent ones first."""
    counts = Counter(word for caption in captions for word in words(caption))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WORDS])
