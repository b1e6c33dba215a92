"""Images with captions: small CLIP models, backdoors in them, and what takes these out again."""
