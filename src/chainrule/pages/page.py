"""The frame of a page, its tables and its pictures, as HTML text; what is given is text, not markup, unless said."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path


def document(title: str, body: Sequence[str]) -> str:
    """A page with its style, light or dark as the reader's system is; `body` is markup."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head><body>'
    )
    return head + "\n".join(body) + "</body></html>\n"


def table(titles: Sequence[str], cells: Sequence[Sequence[str]], words: bool = False) -> str:
    """A table that scrolls by itself on a phone.

    Args:
        titles: of the columns.
        cells: rows, as long as `titles`.
        words: whether all cells are text, to be set at the left; otherwise those after the first are numbers.
    """
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    kind = ' class="words"' if words else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(path: Path, caption: str, alt: str) -> str:
    """A figure with the PNG or GIF file at `path` in it, above its caption; `alt` is for those who do not see it."""
    kind = {".png": "image/png", ".gif": "image/gif"}[path.suffix]
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:{kind};base64,{data}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
