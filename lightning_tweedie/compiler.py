"""Whether this machine can compile networks."""

from __future__ import annotations

import time

import torch

from lightning_tweedie.errors import UserError

__all__ = ["check_compiler"]


def check_compiler(device: torch.device, setting: str) -> None:
    """Compiles next to nothing, so that a machine that cannot says so before any work.

    Args:
        device: Where the network is.
        setting: What asks for it, by the name that the user knows.

    Raises:
        UserError: There is no compiler, or it does not work.
    """
    unheard = time.time()  # a number that was not in the code before: what has been compiled once is kept on disk
    try:
        torch.compile(lambda x: x + unheard)(torch.zeros(2, device=device))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{setting} = true, but PyTorch cannot compile here ({type(error).__name__}: {reason}): install a C++ "
            "compiler such as g++, with the headers of Python, or leave it out"
        ) from error
