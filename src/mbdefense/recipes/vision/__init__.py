"""Image classifiers, from poisoned images to figures."""
