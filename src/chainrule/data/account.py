"""What a source held: what was used, what was left out or read only in part, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

EXAMPLES = 3
"""Names that a finding gives."""
UNREADABLE = "cannot be read"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about several files of a source that its user should know.

    count:    how many files, rows or captions
    noun:     what they are, in the singular, such as "image"
    fate:     what became of them, such as "left out" or "without a caption"
    reason:   why, with a remedy if there is one
    examples: the first names
    loud:     whether loading warns of it; the rest is for reports
    """

    count: int
    noun: str
    fate: str
    reason: str = ""
    examples: tuple[str, ...] = ()
    loud: bool = True

    @classmethod
    def of(cls, names: Sequence[str], noun: str, fate: str, reason: str = "", loud: bool = True) -> list[Finding]:
        """The finding about some names, as a list: empty if there are none."""
        some = tuple(names[:EXAMPLES])
        return [cls(count=len(names), noun=noun, fate=fate, reason=reason, examples=some, loud=loud)] if names else []

    def __str__(self) -> str:
        return f"{_count(self.count, self.noun)} {self.fate}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True, kw_only=True)
class Account:
    """What was read of a split, and what was not.

    used:     images of the split that are used
    findings: everything left out, ignored, or read only in part
    sizes:    (height, width, count) of the image files before they are resized, the most frequent first; the first 10
    """

    used: int = 0
    findings: tuple[Finding, ...] = ()
    sizes: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Account:
        """The account of what `plain` gave."""
        findings = tuple(Finding(**(found | {"examples": tuple(found["examples"])})) for found in plain["findings"])
        return cls(used=plain["used"], findings=findings, sizes=tuple(tuple(size) for size in plain["sizes"]))

    def plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def adding(self, findings: Sequence[Finding]) -> Account:
        """The account with more findings."""
        return replace(self, findings=(*self.findings, *findings))

    def unreadable(self, name: str, skipped: Sequence[str]) -> str:
        """A sentence about the images `skipped` of the source `name` that cannot be read, with the reasons."""
        found = [finding for finding in self.findings if finding.fate == UNREADABLE]
        one = len(found) == 1
        reasons = "; ".join(finding.reason if one else f"{finding.count}: {finding.reason}" for finding in found)
        return f"{_count(len(skipped), 'image')} of {name} {UNREADABLE}: {_listed(skipped, len(skipped))} ({reasons})"

    def sentences(self, name: str, skipped: Sequence[str], known: Sequence[Finding] = ()) -> str:
        """One or two sentences about what is not used as it stands; empty if there is nothing to say.

        Args:
            name: of the source.
            skipped: images that cannot be read.
            known: findings that have been said before.
        """
        said = []
        if skipped:
            said.append(f"{self.unreadable(name, skipped)}; left out.")
        rest = [finding for finding in self.findings if finding.loud and finding.fate != UNREADABLE]
        rest = [finding for finding in rest if finding not in known]
        if rest:
            described = [f"{finding}: {_listed(finding.examples, finding.count)}" for finding in rest]
            said.append(f"Of {name}: {'; '.join(described)}.")
        return " ".join(said)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(names: Sequence[str], count: int) -> str:
    return ", ".join(names[:EXAMPLES]) + (", …" if count > EXAMPLES else "")
