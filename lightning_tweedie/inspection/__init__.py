"""A look at noisy images before any training: what there is, how noisy, and whether the noise is what training expects."""
