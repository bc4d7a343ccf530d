"""A look at noisy images before any training: what there is, how noisy, and is the noise what training expects?"""
