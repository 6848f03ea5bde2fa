"""For the documentation site: shows the lines `name: meaning` of a docstring as a list (see mkdocs.yml)."""

import re

import griffe

FIELD = re.compile(r"^([a-z]\w*(?:, [a-z]\w*)*):\s+(?=\S)", re.MULTILINE)


class Fields(griffe.Extension):
    """Marks the fields that a class documents one a line, with further lines indented."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrites the docstring of an object before it is rendered."""
        if obj.docstring is not None and FIELD.search(obj.docstring.value):
            obj.docstring.value = _separated(FIELD.sub(lambda match: f"* `{match[1]}`: ", obj.docstring.value))


def _separated(value: str) -> str:
    """Puts an empty line before each list, as Markdown wants it."""
    lines: list[str] = []
    inside = False
    for line in value.splitlines():
        if line.startswith("* ") and not inside and lines and lines[-1]:
            lines.append("")
        inside = line.startswith("* ") or (inside and line.startswith(" "))
        lines.append(line.lstrip() if inside and not line.startswith("* ") else line)
    return "\n".join(lines)
