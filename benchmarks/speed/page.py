"""The page of the docs with all that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["page"]


def _number(value: Any) -> str:  # noqa: ANN401 - whatever a row holds
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def page(rows: Sequence[Mapping[str, Any]], sections: Mapping[str, str], source: str, command: str) -> str:
    """One table for each section.

    Args:
        rows: All of them.
        sections: What each section is about, by its name.
        source: Name of the file with all figures.
        command: What was called last.
    """
    text = [
        "# Speed, measured",
        "",
        "Each ratio is the median over pairs of blocks that were timed in turns in one process, with the least and the "
        "greatest pair behind it. A row says what it was measured against; without that the value is a plain one. "
        f"All figures are in [{source}]({source})" + (f"; the last call was `{command}`." if command else "."),
        "",
    ]
    for section, about in sections.items():
        its = [row for row in rows if row["section"] == section]
        if not its:
            continue
        text += [f"## {about[0].upper()}{about[1:]}", "", f"`{its[0]['command']}` on {its[0]['device']}"]
        text[-1] += f", {its[0]['versions']}, commit {its[0]['commit']}."
        text.append("")
        extra = list(dict.fromkeys(name for row in its for name in row["details"]))
        names = [name.replace("_", " ") for name in extra]
        text += [f"| | against | measure | value | pairs from–to | {' | '.join(names)} |".replace(" |  |", " |")]
        text += ["|---|---|---|---:|---:|" + "---:|" * len(extra)]
        for row in its:
            value = _number(row["ratio"]) + ("×" if row["against"] else "")
            cells = [row["name"], row["against"] or "–", row["what"], value]
            cells += [f"{_number(row['low'])}–{_number(row['high'])}"]
            cells += [_number(row["details"][name]) if name in row["details"] else "–" for name in extra]
            text.append(f"| {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)
