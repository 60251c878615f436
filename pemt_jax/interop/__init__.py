"""Foreign checkpoints, in and out: Hugging Face weights, files of the original systems, experts."""
