"""The report of a fit: one HTML file that opens from disk without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ..pages import Line, document, lines, picture, table
from .doctor import LEAST_DETAIL, Curves
from .evaluate import Figures
from .look import LARGEST
from .plan import FEW, FROM_NOTHING, FitPlan

FALLING = 0.005
"""Share by which held-out nats fell in the last evaluation, from which more minutes are advised."""
GAP = 1.1
"""Held-out nats above those of training by this factor ask for more pictures."""


def write_report(
    plan: FitPlan, figures: Figures, curves: Mapping[str, Curves], notes: Sequence[str], pictures: Path
) -> str:  # fmt: skip
    """The page.

    Args:
        plan, figures: of the fit.
        curves: the tables of each run, by its name.
        notes: of the doctor.
        pictures: the folder of the pictures that `measure` wrote.
    """
    name = Path(plan.look.source).name
    wishes = f": {', '.join(figures.wishes)}" if figures.wishes else ""
    shown = {
        "samples.png": f"Samples{wishes}",
        "reconstructions.png": "Held-out pictures, above what the tokenizer keeps of them",
        "completions.png": "Completions: held-out pictures, their upper half, and two completions each",
        "nearest.png": f"Samples, above the training pictures that are nearest. {_memorised(figures)}",
        "growing.gif": "How samples grow, code by code",
    }
    found = [(file, caption) for file, caption in shown.items() if (pictures / file).is_file()]
    skipped = [("note", sentence) for sentence in figures.skipped if ("note", sentence) not in plan.look.lines()]
    body = [
        f"<h1>A model of {escape(name)}</h1><p>{escape(_summary(plan, figures))}</p>",
        '<div class="pictures">' + "".join(picture(pictures / file, text, text) for file, text in found) + "</div>",
        "<h2>Figures</h2>" + table(["figure", "value"], measured(figures), words=True),
        "<h2>The doctor</h2>" + _list(notes or ["Nothing had to be changed."]),
        "<h2>What would help next</h2>" + _list(advice(plan, figures, curves)),
        "<h2>Curves</h2>" + "".join(_curves(run, one) for run, one in curves.items()),
        "<h2>What was read</h2>" + table(["", "in the folder"], [*plan.look.lines(), *skipped], words=True),
        "<h2>What was planned</h2>" + table(["", "plan"], plan.lines(), words=True),
    ]
    return document(f"A model of {name}", body)


def margin(figures: Figures) -> str:
    """What a bundled prior was worth beside one from nothing, as a sentence; empty where they were not compared."""
    if not figures.others:
        return ""
    ((name, (more, error)),) = figures.others.items()
    by = f"{more:.1f} nats per held-out picture" + (f" (standard error {error:.1f})" if error is not None else "")
    if name.startswith(FROM_NOTHING):
        return f"Beginning from a bundled prior is better than training from nothing by {by}."
    return f"Training from nothing is better than beginning from a bundled prior by {by}, so it was kept."


def measured(figures: Figures) -> list[tuple[str, str]]:
    """The figures that apply, as pairs of a title and a value."""
    error = f" ± {figures.error:.1f}" if figures.error is not None else ""
    found = [
        ("-log p of a held-out picture", f"{figures.nats:.1f}{error} nats, {figures.held_out:,} pictures"),
        ("-log p of a training picture", f"{figures.training_nats:.1f} nats"),
    ]
    if figures.others:
        found.append(("bundled prior or none", margin(figures)))
    if figures.psnr is not None:
        found += [
            ("PSNR of reconstructions", f"{figures.psnr:.1f} dB"),
            ("contrast of edges kept", f"{figures.detail:.0%}"),
            ("codebook in use", f"{figures.codes_used:.0%}"),
        ]
    if figures.frechet is not None:
        found += [
            (f"Fréchet distance, {figures.features}", f"{figures.frechet:.1f}, {figures.samples:,} samples"),
            ("Fréchet distance of reconstructions", f"{figures.floor:.1f}"),
            ("precision, recall", f"{figures.precision:.2f}, {figures.recall:.2f}"),
        ]
    return found


def advice(plan: FitPlan, figures: Figures, curves: Mapping[str, Curves]) -> list[str]:
    """What would make the model better, as sentences."""
    look, found = plan.look, []
    nats = curves[figures.model].held_out.get("nats", [])
    if len(nats) > 1 and nats[-1] < (1 - FALLING) * nats[-2]:
        found.append("More minutes: held-out nats still fell when training ended.")
    if figures.nats > GAP * figures.training_nats:
        found.append(
            f"More pictures: the model knows training pictures by {figures.nats - figures.training_nats:.0f} nats "
            "better than held-out ones."
        )
    elif look.count < FEW:
        found.append(f"More pictures: {look.count:,} are few; {FEW:,} or more are a good start.")
    if figures.frechet is not None and figures.floor > figures.frechet / 2:
        found.append("A better tokenizer: it alone costs more than half of the Fréchet distance.")
    elif figures.frechet is not None:
        found.append(
            "A better prior, by more minutes or pictures: most of the Fréchet distance is not the tokenizer's."
        )
    if figures.detail is not None and figures.detail < LEAST_DETAIL:
        found.append("A larger tokenizer or a perceptual loss: reconstructions are washed out.")
    if 0 < look.captions < look.count:
        found.append(f"Captions for the other {look.count - look.captions:,} pictures.")
    if not look.captions and len(look.classes) < 2:
        found.append("Captions or a folder per class: the model could then be told what to draw.")
    if look.duplicates:
        found.append(f"No copies of pictures ({look.duplicates:,} found): they are learned by heart.")
    if look.damaged:
        found.append(f"Whole files in place of damaged ones ({len(look.damaged):,}).")
    if look.size == LARGEST and look.side > LARGEST:
        found.append(f"Larger pictures: data.size=128 with more minutes; most of yours are larger than {LARGEST}.")
    return found or ["Nothing stands out; more minutes and more pictures always help."]


def _summary(plan: FitPlan, figures: Figures) -> str:
    system = dict(plan.lines())["system"]
    return (
        f"{system}, trained on {plan.look.count:,} pictures, in {plan.wish['minutes']:g} minutes as planned. "
        f"A held-out picture costs {figures.nats:.0f} nats. {margin(figures)}"
    )


def _memorised(figures: Figures) -> str:
    return (
        f"{figures.near:.0%} of {figures.samples:,} samples are nearer to a training picture than 95% of the held-out "
        "pictures are; of new pictures it would be 5%. Labels and captions are those of training pictures."
    )


def _curves(run: str, curves: Curves) -> str:
    """The curves of a run that tell most: nats of a prior; PSNR and use of the codebook of a tokenizer."""
    plots = []
    for column, title in (("nats", "nats per picture"), ("psnr", "PSNR in dB"), ("usage", "share of codes in use")):
        shown = [
            Line(list(zip(rows["step"], rows[column], strict=True)), label)
            for rows, label in ((curves.training, "training"), (curves.held_out, "held-out"))
            if column in rows
        ]
        if shown:
            plots.append(f"<figure>{lines(shown, 'steps', title)}<figcaption>{run}: {title}</figcaption></figure>")
    return "".join(plots)


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"
