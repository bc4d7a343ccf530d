"""A command line made of one function's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from jsonargparse import auto_cli

__all__ = ["call_with"]


def call_with(function: Callable[..., None], argv: Sequence[str], *, positional: bool = False) -> None:
    """Calls a function with arguments from the command line.

    Options may not be abbreviated. A boolean option may stand alone, which means true. A list may be given as words
    with commas between them.

    Args:
        function: Its argument types and docstring make the options and the help. Their annotations must be types, not
            strings: for strings jsonargparse imports everything that the file names for type checkers, torch too.
        argv: The options.
        positional: Whether arguments without a default are given by their place instead of their name.

    Raises:
        argparse.ArgumentError: An option is unknown, missing or of the wrong type.
    """
    parameters = inspect.signature(function).parameters.values()
    switches = {f"--{p.name}" for p in parameters if p.annotation is bool}
    argv = list(argv)
    for i in reversed(range(len(argv))):
        if argv[i] in switches and (i + 1 == len(argv) or argv[i + 1].startswith("--")):
            argv.insert(i + 1, "true")
    lists = {f"--{p.name}" for p in parameters if p.annotation in (list[str], list[str] | None)}
    for i, option in enumerate(argv):
        before, equals, value = option.partition("=")
        if before in lists and equals and not value.startswith("["):
            argv[i] = f"{before}=[{value}]"
        elif i and argv[i - 1] in lists and not option.startswith(("[", "--")):
            argv[i] = f"[{option}]"
    name = f"lightning_tweedie {function.__name__}"
    auto_cli(function, args=argv, as_positional=positional, prog=name, exit_on_error=False, allow_abbrev=False)
