"""Data sets, in plain PyTorch: where clean or noisy items come from, and the batches made of them."""
