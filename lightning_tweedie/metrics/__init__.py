"""Measures of how good samples and restorations are; plain PyTorch and torch-fidelity."""
