"""The claims of the papers, each a comparison of two measurements and a verdict.

A claim holds if the difference is on the claimed side by more than two standard errors, it fails if it is on the other
side by more than two, and otherwise these measurements do not decide it.  Two figures of the same images are compared
image by image: the standard error is that of their differences.  A figure without a standard error counts as exact.  A
claim about the codes of two tokenizers is not judged if their decoders were trained with different losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from .results import Estimate, SystemResult

Verdict = Literal["holds", "does not hold", "undecided", "not measured", "not comparable"]
SURE = 2
"""Standard errors that decide a claim."""
Results = Mapping[str, SystemResult]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim.

    sentence: what the paper says
    source:   the paper
    figure:   what is compared, with its unit
    larger:   the measurement that is larger if the claim holds, and its name
    smaller:  the measurement that is smaller if the claim holds, and its name
    factor:   how many times larger it must be
    gain:     of two figures of the same images, the mean difference
    reason:   why it does not hold in this package, where that is known
    alike:    keys of systems whose decoders must have been trained with the same losses
    """

    sentence: str
    source: str
    figure: str
    larger: tuple[str, Callable[[Results], Estimate | None]]
    smaller: tuple[str, Callable[[Results], Estimate | None]]
    factor: float = 1.0
    gain: Callable[[Results], Estimate | None] | None = None
    reason: str = ""
    alike: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim and what the measurements say of it."""

    claim: Claim
    verdict: Verdict
    measured: str

    @property
    def in_words(self) -> str:
        """The verdict, and the reason for one that contradicts the paper or that cannot be given."""
        if self.verdict == "not comparable":
            return f"{self.verdict}: the decoders were trained with different losses"
        failed = self.verdict == "does not hold" and self.claim.reason
        return f"{self.verdict}: {self.claim.reason}" if failed else self.verdict


def judge(claim: Claim, results: Results) -> Judged:
    """Compares the two measurements of a claim."""
    larger, smaller = (_read(pick, results) for _, pick in (claim.larger, claim.smaller))
    if larger is None or smaller is None:
        return Judged(claim=claim, verdict="not measured", measured="")
    words = f"{claim.larger[0]} {say(larger)}, {claim.smaller[0]} {say(smaller)}"
    difference = larger.value - claim.factor * smaller.value
    error = math.hypot(larger.error or 0.0, claim.factor * (smaller.error or 0.0))
    if claim.gain is not None and (gain := _read(claim.gain, results)) is not None:
        difference, error = gain.value, gain.error or 0.0
        words += f", difference {say(gain)}"
    verdict: Verdict = "undecided"
    if len({results[key].losses for key in claim.alike}) > 1:
        verdict = "not comparable"
    elif abs(difference) > SURE * error:
        verdict = "holds" if difference > 0 else "does not hold"
    return Judged(claim=claim, verdict=verdict, measured=words)


def _read(pick: Callable[[Results], Estimate | None], results: Results) -> Estimate | None:
    try:
        return pick(results)
    except KeyError:  # the system was not measured
        return None


def say(estimate: Estimate, digits: int = 3) -> str:
    """A figure with its standard error, to some significant digits; from 1,000 on as whole numbers."""
    large = abs(estimate.value) >= 1000
    text = f"{estimate.value:,.0f}" if large else f"{estimate.value:.{digits}g}"
    return text if estimate.error is None else f"{text} ± {estimate.error:{'.0f' if large else '.2g'}}"


def of(key: str, name: str, setting: str | None = None) -> Callable[[Results], Estimate | None]:
    """Reads a figure of a system; `setting` is a key of a figure that has several."""

    def pick(results: Results) -> Estimate | None:
        value = getattr(results[key], name)
        if setting is not None:
            value = value.get(setting)
        return Estimate(value=value) if isinstance(value, (int, float)) else value

    return pick


def fastest(*keys: str) -> Callable[[Results], Estimate | None]:
    """Seconds per image of the fastest of some systems, at batch 16."""

    def pick(results: Results) -> Estimate | None:
        seconds = [results[key].seconds["16"] for key in keys if key in results]
        return Estimate(value=min(seconds)) if seconds else None

    return pick


PIXELS, CODES = ("pixelrnn", "pixelcnn"), ("vqvae", "vqvae2", "vqgan", "rq_transformer", "dalle", "parti")

CLAIMS = (
    Claim(
        sentence="PixelCNN trains faster than PixelRNN",
        source="van den Oord et al. 2016, arXiv:1601.06759",
        figure="training images per second",
        larger=("PixelCNN", of("pixelcnn", "training_rate")),
        smaller=("PixelRNN", of("pixelrnn", "training_rate")),
        reason=(
            "here the PixelCNN has more than three times the weights of the Row LSTM, and compiled code makes the Row "
            "LSTM's training 1.5 times as fast"
        ),
    ),
    Claim(
        sentence="PixelRNN has the better likelihood of the two",
        source="van den Oord et al. 2016, arXiv:1601.06759",
        figure="-log p of a test image, nats",
        larger=("PixelCNN", of("pixelcnn", "nats")),
        smaller=("PixelRNN", of("pixelrnn", "nats")),
    ),
    Claim(
        sentence="Codes are sampled faster than pixels",
        source="van den Oord et al. 2017, arXiv:1711.00937",
        figure="seconds per image at batch 16, the fastest of each kind",
        larger=("pixels", fastest(*PIXELS)),
        smaller=("codes", fastest(*CODES)),
    ),
    Claim(
        sentence="A hierarchy of codes makes reconstructions sharper",
        source="Razavi et al. 2019, arXiv:1906.00446",
        figure="perceptual distance of reconstructions",
        larger=("VQ-VAE", of("vqvae", "perceptual")),
        smaller=("VQ-VAE-2", of("vqvae2", "perceptual")),
        alike=("vqvae", "vqvae2"),
    ),
    Claim(
        sentence="Adversarial training brings reconstructions closer to real images",
        source="Esser et al. 2021, arXiv:2012.09841",
        figure="Fréchet distance of reconstructions",
        larger=("VQ-VAE", of("vqvae", "floor")),
        smaller=("VQGAN", of("vqgan", "floor")),
    ),
    Claim(
        sentence="A transformer over such codes draws better images than a PixelCNN over plain ones",
        source="Esser et al. 2021, arXiv:2012.09841",
        figure="Fréchet distance of samples",
        larger=("VQ-VAE", of("vqvae", "frechet")),
        smaller=("VQGAN", of("vqgan", "frechet")),
    ),
    Claim(
        sentence="Residual codes shorten the sequence: sampling takes less time",
        source="Lee et al. 2022, arXiv:2203.01941",
        figure="seconds per image at batch 16",
        larger=("VQGAN", of("vqgan", "seconds", "16")),
        smaller=("RQ-Transformer", of("rq_transformer", "seconds", "16")),
    ),
    Claim(
        sentence="Residual codes keep at least as much of the image",
        source="Lee et al. 2022, arXiv:2203.01941",
        figure="PSNR of reconstructions, dB",
        larger=("RQ-Transformer", of("rq_transformer", "psnr")),
        smaller=("VQGAN", of("vqgan", "psnr")),
    ),
    Claim(
        sentence="One stream of text and image obeys captions",
        source="Ramesh et al. 2021, arXiv:2102.12092",
        figure="share of samples nearest to the image of their caption, among 100 (chance: 0.01)",
        larger=("DALL-E", of("dalle", "obedience", "guidance 1")),
        smaller=("chance", lambda results: Estimate(value=0.01)),
    ),
    Claim(
        sentence="A caption tells the model about its image",
        source="Ramesh et al. 2021, arXiv:2102.12092",
        figure="log p(image | caption) - log p(image), nats",
        larger=("DALL-E", of("dalle", "text_gain")),
        smaller=("a model that ignores captions", lambda results: Estimate(value=0.0)),
    ),
    Claim(
        sentence="Guidance makes samples obey captions better",
        source="Yu et al. 2022, arXiv:2206.10789",
        figure="share of samples nearest to the image of their caption, among 100",
        larger=("with guidance", of("parti", "obedience", "guidance 2")),
        smaller=("without", of("parti", "obedience", "guidance 1")),
        gain=of("parti", "gains", "guidance"),
    ),
    Claim(
        sentence="Reranking makes samples obey captions better",
        source="Ramesh et al. 2021, arXiv:2102.12092",
        figure="share of samples nearest to the image of their caption, among 100",
        larger=("the best of several", of("parti", "obedience", "ranked")),
        smaller=("one sample", of("parti", "obedience", "guidance 2")),
        gain=of("parti", "gains", "ranking"),
    ),
    Claim(
        sentence="A learned upscaler refines images better than bicubic enlargement",
        source="Yu et al. 2022, arXiv:2206.10789",
        figure="PSNR of doubled images of shapes, dB",
        larger=("upscaler", of("parti", "upscaled", "upscaler")),
        smaller=("bicubic", of("parti", "upscaled", "bicubic")),
    ),
    *(
        Claim(
            sentence=f"{title} completes partial images to match",
            source="van den Oord et al. 2016, arXiv:1601.06759",
            figure="PSNR of the hidden half, dB",
            larger=("completed", of(key, "completion")),
            smaller=("drawn without the known half", of(key, "strangers")),
            gain=of(key, "gains", "completion"),
        )
        for key, title in (("pixelcnn", "PixelCNN"), ("vqgan", "VQGAN"), ("parti", "Parti"))
    ),
)
