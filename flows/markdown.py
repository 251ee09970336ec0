"""Foreign text in Markdown pages: shown as it is, never read as markup, tags, or addresses of pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence


def code(text: str) -> str:
    """Text as inline code, whatever it holds; backticks inside are told from those around by their number."""
    line = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line or ' '}{space}{fence}"


def cell(text: str) -> str:
    """Inline code that can stand in a table: a bar would end its cell, even here."""
    return code(text.replace("|", "¦"))


def plain(text: str) -> str:
    """Text without the signs that Markdown, or HTML, would read."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", " ".join(text.split()))


def fenced(text: str) -> list[str]:
    """The lines of a block of code, whatever they hold."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [fence, *text.splitlines(), fence]


def table(names: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """The lines of a table whose cells are Markdown; the columns named in `right` are set to the right."""
    lines = [names, ["---:" if name in right else "---" for name in names], *rows]
    return ["", *(f"| {' | '.join(line)} |" for line in lines), ""]
