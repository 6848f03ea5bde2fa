"""The page of the timeline: one HTML file that opens from disk without a network, and its tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..pages import Point, document, picture, scatter, table
from .claims import CLAIMS, Judged, judge, say
from .results import Estimate, SystemResult
from .systems import SYSTEMS, System

TITLE = "From PixelRNN to Parti: the timeline, measured"
PICTURES = {
    "samples": "Samples from the same seeds{wishes}",
    "completions": "Completions: test images, their known half, and two completions each",
    "reconstructions": "Test images above what the tokenizer keeps of them",
    "growing": "How samples grow, code by code",
}
"""File stem of a picture -> its caption."""
CLASSES = {"holds": "holds", "does not hold": "fails"}


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    title: str
    show: Callable[[System, SystemResult], str]


def _optional(value: Estimate | float | None, form: str = "{:.2f}") -> str:
    if value is None:
        return "-"
    return say(value) if isinstance(value, Estimate) else form.format(value)


def _minutes(value: float | None) -> str:
    """To two significant figures, or to a minute."""
    return _optional(value, "{:.0f}" if value is not None and value >= 10 else "{:.2g}")


COLUMNS = (
    Column("system", lambda system, result: system.title),
    Column("year", lambda system, result: str(system.year)),
    Column("image", lambda system, result: "x".join(map(str, result.image_shape[1:]))),
    Column("parameters", lambda system, result: f"{result.parameters:,}"),
    Column("codes per image", lambda system, result: f"{result.codes:,}"),
    Column("bits per test image", lambda system, result: _optional(result.bits)),
    Column("these are bits of", lambda system, result: "pixels, exact" if result.exact else "codes"),
    Column("Fréchet distance", lambda system, result: _optional(result.frechet)),
    Column("of reconstructions", lambda system, result: _optional(result.floor, "{:.1f}")),
    Column("precision", lambda system, result: _optional(result.precision)),
    Column("recall", lambda system, result: _optional(result.recall)),
    Column("PSNR, dB", lambda system, result: _optional(result.psnr)),
    Column("perceptual distance", lambda system, result: _optional(result.perceptual)),
    Column("codebook used", lambda system, result: _optional(result.codes_used, "{:.0%}")),
    Column("s per image, batch 1", lambda system, result: _optional(result.seconds["1"], "{:.3g}")),
    Column("batch 16", lambda system, result: _optional(result.seconds["16"], "{:.3g}")),
    Column("training minutes", lambda system, result: _minutes(result.minutes)),
)
TESTS = ["claim", "compared", "measured", "verdict"]


def write_html(results: Mapping[str, SystemResult], pictures: Path, introduction: str) -> str:
    """The page.

    Args:
        results: by key of the system; systems that were not measured have no section.
        pictures: folder with one folder of pictures per system, see `PICTURES`.
        introduction: which images, which sizes and which machine; plain text.
    """
    shown = [(system, results[system.key]) for system in SYSTEMS if system.key in results]
    links = "".join(f'<li><a href="#{system.key}">{system.title}</a></li>' for system, _ in shown)
    body = [
        f"<h1>{TITLE}</h1><p>{escape(introduction)}</p>",
        f'<nav aria-label="Sections"><ul><li><a href="#table">All figures</a></li>{links}'
        '<li><a href="#claims">Claims</a></li><li><a href="#plots">Plots</a></li></ul></nav>',
        '<h2 id="table">All figures</h2>' + table([c.title for c in COLUMNS], rows(results)),
        *(_section(system, result, pictures / system.key) for system, result in shown),
        '<h2 id="claims">The claims of the papers</h2>' + _claims(results),
        '<h2 id="plots">Plots</h2>' + "".join(_plots(shown)),
    ]
    return document(TITLE, body)


def write_markdown(results: Mapping[str, SystemResult], introduction: str) -> str:
    """The tables of figures and of claims."""
    tested = [[j.claim.sentence, j.claim.figure, j.measured, j.in_words] for j in judged(results)]
    tables = [_markdown([c.title for c in COLUMNS], rows(results)), _markdown(TESTS, tested)]
    return f"# {TITLE}\n\n{introduction}\n\n{tables[0]}\n\n## The claims of the papers\n\n{tables[1]}\n"


def rows(results: Mapping[str, SystemResult]) -> list[list[str]]:
    """The table of figures, a row per system in the order of years."""
    measured = [system for system in SYSTEMS if system.key in results]
    return [[column.show(system, results[system.key]) for column in COLUMNS] for system in measured]


def judged(results: Mapping[str, SystemResult]) -> list[Judged]:
    """All claims with their verdicts."""
    return [judge(claim, results) for claim in CLAIMS]


def _section(system: System, result: SystemResult, pictures: Path) -> str:
    blocks = "".join(
        f"<li>{escape(block.title)}<small>{escape(block.detail)}</small>"
        + (f"<small>{block.parameters:,} parameters</small>" if block.parameters else "")
        + "</li>"
        for block in result.blocks
    )
    wishes = f": {', '.join(result.wishes)}" if result.wishes else ""
    shown = {stem: caption.format(wishes=wishes) for stem, caption in PICTURES.items()}
    figures = "".join(
        picture(path, caption, f"{system.title}. {caption}")
        for stem, caption in shown.items()
        for path in sorted(pictures.glob(f"{stem}.*"))
    )
    return (
        f'<h2 id="{system.key}">{system.title}, {system.year}</h2>'
        f'<p>{escape(system.idea)} <a href="https://arxiv.org/abs/{system.arxiv}">{escape(system.paper)}</a>.</p>'
        f'<ul class="blocks" aria-label="Architecture">{blocks}</ul>'
        f"<p>Model: <code>{escape(result.model)}</code>. Conditioned on: {escape(result.conditions)}. "
        f"Samples are drawn {'with ' + escape(result.sampling or 'the default settings')}.</p>"
        f'<div class="pictures">{figures}</div>'
    )


def _claims(results: Mapping[str, SystemResult]) -> str:
    tested = [
        f"<tr><td>{escape(j.claim.sentence)} <small>({escape(j.claim.source)})</small></td>"
        f"<td>{escape(j.claim.figure)}</td><td>{escape(j.measured)}</td>"
        f'<td class="{CLASSES.get(j.verdict, "")}">{escape(j.in_words)}</td></tr>'
        for j in judged(results)
    ]
    heads = "".join(f"<th>{title}</th>" for title in TESTS)
    return (
        "<p>A claim holds if the difference exceeds two standard errors on the claimed side.</p>"
        f'<div class="scroll"><table class="words"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(tested)}</tbody></table></div>"
    )


def _plots(shown: Sequence[tuple[System, SystemResult]]) -> list[str]:
    def plot(x: Callable, y: Callable, x_title: str, y_title: str) -> str:
        points = [Point(x(result), y(result), system.title) for system, result in shown]
        points = [point for point in points if point.x > 0 and point.y > 0]
        caption = f"{y_title} against {x_title}"
        drawing = scatter(points, x_title, y_title) if points else ""
        return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"

    def pixels(result: SystemResult) -> int:
        return result.image_shape[1] * result.image_shape[2]

    return [
        plot(lambda r: r.seconds["16"], lambda r: r.frechet.value, "s per image, batch 16", "Fréchet distance"),
        plot(lambda r: r.codes, lambda r: r.bits.value, "codes per image", "bits per image"),
        plot(pixels, lambda r: r.seconds["16"], "pixels per image", "s per image, batch 16"),
    ]


def _markdown(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
