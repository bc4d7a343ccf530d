"""From the parser's report, a tree of everything that it tried, to one sentence."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re

from lightning_tweedie.errors import UserError

__all__ = ["one_sentence", "user_error_in"]

KEY = re.compile(r'Parser key "([^"]+)":?')
CLASS = re.compile(r"Problem with given class_path '([^']+)'")
UNKNOWN = re.compile(r"Option '([^']+)' is not accepted")
GIVEN = re.compile(
    r"Given value: (?!NestedArg|Namespace)(.*)|NestedArg\(key='[^']*', val='(.*)'\)|Got value: (?!Namespace)(.*)"
)
EXPECTED = re.compile(r"Expected an? <class '([^']+)'>")
#: Lines that only say that several types were tried, or repeat the whole input.
NOISE = re.compile(
    r"^(Does not validate|Subtypes:|Errors:|Given value|Type typing\.|Subclass types expect|- a (class|dict))"
)


def one_sentence(message: str, command: str = "fit") -> str:
    """Says which setting is wrong, what it was and what it should be.

    Args:
        message: What jsonargparse or argparse said.
        command: Where to look for help.

    Examples:
        >>> one_sentence("unrecognized arguments: --bogus=1")
        '--bogus is not an option: check its spelling (`lightning_tweedie fit --help` lists the settings)'
    """
    remedy = f"(`lightning_tweedie {command} --help` lists the settings)"
    if message.startswith("unrecognized arguments:"):
        unknown = message.partition(":")[2].split()
        return f"{unknown[0].partition('=')[0]} is not an option: check its spelling {remedy}"
    if "arguments are required:" in message and "Parser key" not in message:
        missing = message.rpartition(": ")[2].replace(f"{command}.", "")
        how = " and ".join(f"--{name}" for name in missing.split(", "))
        how = "name a configuration with --config" if "model" in missing.split(", ") else f"add {how}"
        return f"{missing} must be given: {how} {remedy}"

    path, details = _deepest(message)
    option = next((m[1] for d, _ in details if (m := UNKNOWN.search(d))), None)
    if option is not None:
        owner = next(c for d, c in details if UNKNOWN.search(d))
        guess = difflib.get_close_matches(option, _parameters(owner), 1)
        hint = f"did you mean {guess[0]}?" if guess else "check its spelling"
        return f"{'.'.join([*path, option])} is not a setting of {owner or 'this class'}: {hint} {remedy}"
    expected = [m for d, _ in details for m in EXPECTED.findall(d)]
    given = next((g for m in reversed(list(GIVEN.finditer(message))) if (g := m[1] or m[2] or m[3])), None)
    if expected and all(EXPECTED.search(d) for d, _ in details):
        kinds = " or ".join(dict.fromkeys("null" if e == "NoneType" else e.rpartition(".")[2] for e in expected))
        return f"{'.'.join(path)} = {given} is not valid, expected {kinds}: correct it {remedy}"
    text = "; ".join(dict.fromkeys(d.strip("- ") for d, _ in details if not EXPECTED.search(d) or len(details) == 1))
    return " ".join(f"{'.'.join(path)}{': ' if path else ''}{text} {remedy}".split())


def user_error_in(error: BaseException) -> UserError | None:
    """What an object said when it was made with wrong settings, out of the parser's words around it.

    Args:
        error: What jsonargparse raised.

    Returns:
        The cause that is a mistake of the user's; None if there is none.
    """
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, UserError):
        inner = inner.__cause__ or inner.__context__
    return inner


def _deepest(message: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The longest path of keys in the report, and what is said there, each with the class it is said of."""
    keys: list[tuple[int, str]] = []
    owners: list[tuple[int, str]] = []
    found: list[tuple[list[str], str, str]] = []
    for line in message.splitlines():
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        keys, owners = [k for k in keys if k[0] < indent], [o for o in owners if o[0] < indent]
        if match := KEY.search(text):
            keys.append((indent, match[1]))
            text = text[match.end() :].strip()
        if match := CLASS.search(text):
            owners.append((indent, match[1]))
            text = text[match.end() :].strip(" :")
        if text and not NOISE.search(text.removeprefix("- ")) and not NOISE.search(text):
            found.append(([k for _, k in keys], text, owners[-1][1] if owners else ""))
    # An alternative such as "or null", mentioned further up, does not say what is wrong further down.
    depth = max((len(path) for path, _, _ in found), default=0)
    path = next((path for path, _, _ in found if len(path) == depth), [])
    return path, [(text, owner) for p, text, owner in found if p == path]


def _parameters(class_path: str) -> list[str]:
    """Names of the arguments of a class and of its base classes."""
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
        return [p for base in inspect.getmro(cls)[:-1] for p in inspect.signature(base).parameters]
    except (ImportError, AttributeError, TypeError, ValueError):
        return []
