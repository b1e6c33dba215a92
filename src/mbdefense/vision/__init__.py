"""Image classifiers: small images and networks, triggers in images, and defenses of who trains."""
