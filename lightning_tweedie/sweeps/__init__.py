"""Sweeps over settings, described in the format of Weights & Biases and run without its server."""
