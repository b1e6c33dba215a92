"""CLIP models of images with captions, from poisoned pairs to figures."""
