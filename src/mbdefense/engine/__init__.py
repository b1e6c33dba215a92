"""From tokens to log-probabilities and answers."""

from typing import Literal

AttentionName = Literal["sdpa", "flex_attention"]
"""Which attention packed rows go through; here, so that options name it without importing torch."""
