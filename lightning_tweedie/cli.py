"""The command line: finds the command and turns mistakes into one sentence.

Lightning takes seconds to import, so only the commands that need it load it.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from argparse import ArgumentError
from collections.abc import Sequence

from lightning_tweedie import __version__
from lightning_tweedie.errors import UserError

__all__ = ["main"]

TRAINING = "lightning_tweedie.commands.training"
COMMANDS = {
    "fit": (TRAINING, "train a denoiser"),
    "validate": (TRAINING, "evaluate a checkpoint on the validation data"),
    "test": (TRAINING, "evaluate a checkpoint on the test data"),
    "predict": (TRAINING, "write one-step estimates of a data module's data"),
    "inspect": ("lightning_tweedie.commands.inspect", "look at noisy images before any training"),
    "sample": ("lightning_tweedie.commands.sample", "draw samples from a checkpoint"),
    "denoise": ("lightning_tweedie.commands.denoise", "restore noisy images with a checkpoint"),
    "evaluate": ("lightning_tweedie.commands.evaluate", "measure images, or what checkpoints make of noise"),
    "export": ("lightning_tweedie.commands.export", "make a folder of a checkpoint, to give the model away"),
    "statistics": ("lightning_tweedie.commands.statistics", "keep the features of reference images for `evaluate`"),
    "sweep": ("lightning_tweedie.commands.sweep", "run a sweep file of Weights & Biases without its server"),
}
FAILED = 2
"""Exit status after a mistake in the input."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk says that is full, for everybody or for this user."""


def usage() -> str:
    """What ``lightning_tweedie --help`` prints."""
    commands = "\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: lightning_tweedie <command> [options]\n\n"
        f"Diffusion models learnt from noisy data.\n\ncommands:\n{commands}\n\n"
        "`lightning_tweedie <command> --help` lists the options of a command."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments after the program's name; those of the process when absent.

    Returns:
        The exit status: 0, or 2 after a mistake in the input, which is told in one sentence.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & {*argv} and hasattr(signal, "SIGPIPE"):
        # A reader that has seen enough, such as `head`, ends this process quietly, as it does other commands.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else FAILED
    if argv[0] == "--version":
        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: {argv[0]!r} is not a command: choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return FAILED
    # A data module or network of the user's own, named by class path, may lie beside the configuration.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module = importlib.import_module(COMMANDS[argv[0]][0])
    try:
        return module.main(argv if module.__name__ == TRAINING else argv[1:]) or 0
    except ArgumentError as error:
        from lightning_tweedie.commands.parse_error import one_sentence

        sentence = one_sentence(str(error), argv[0])
    except (UserError, FloatingPointError) as error:
        sentence = " ".join(str(error).split())
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        sentence = f"{error.filename or 'a file'} cannot be written ({error}): make room, and give the command again"
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for it
            raise
        sentence = (
            f"the GPU has too little memory ({str(error).partition('. ')[0]}): make the batch smaller, data.batch_size "
            "in training and --batch_size elsewhere, or the network or the images"
        )
    print(f"error: {sentence}", file=sys.stderr)
    return FAILED
