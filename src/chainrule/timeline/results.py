"""What the timeline knows of a system: its measurements, kept as JSON, and its pictures, kept as files beside it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over images and its standard error; the error is None where only the value is known."""

    value: float
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    """One part of a model, as the page draws it.

    title:      such as "encoder" or "GPT"
    detail:     layers, widths, shapes of codes
    parameters: number of weights, 0 for none
    """

    title: str
    detail: str
    parameters: int = 0


@dataclass(frozen=True, kw_only=True)
class SystemResult:
    """The measurements of one system.  A figure that does not apply to the system is None.

    key, model:        the system, and the name or folder of the model that was measured
    image_shape:       (C, H, W)
    parameters:        of tokenizer and prior together
    codes:             per image
    bits:              per image: -log2 p of the test images, of their pixels or of their codes
    exact:             whether these are bits of the pixels, an exact likelihood; otherwise they are bits of the codes
    nats:              the same in nats
    frechet:           distance of samples from the training images, in features of `features`
    floor:             the same distance of the reconstructions of the training images
    precision, recall: of the samples
    psnr, perceptual:  of reconstructions of the test images, in dB and as a distance in features
    losses:            what the decoder was trained with beside the tokenizer's own loss: "perceptual", "adversarial"
    codes_used:        smallest share of a codebook that the test images use, 0..1
    seconds:           per sampled image, by batch size
    training_rate:     images per second while the prior was trained
    minutes:           of training, tokenizer and prior together
    completion:        PSNR in dB of the hidden half of test images that the model completes ...
    strangers:         ... and of the same half of samples that have not seen the known half
    obedience:         share of samples that are nearer to the image of their own caption than to 99 others, by setting
                       ("guidance 1", "guidance 2", "ranked": the best of several with guidance 2, by a reranker)
    gains:             mean differences over the same images or captions: "completion" of completion and strangers,
                       "guidance" of guidance 2 and 1, "ranking" of ranked and guidance 2
    text_gain:         nats of the codes that the caption explains: -log p without it, less -log p with it
    upscaled:          of Parti, PSNR in dB of images of shapes, halved and then doubled by "upscaler" and by "bicubic"
    blocks:            the architecture, from the image to the codes and back
    conditions:        what the prior is conditioned on, in words
    wishes:            labels or captions of the samples, in words
    sampling:          how the samples are drawn, in words; empty: from the model's own distribution
    """

    key: str
    model: str
    image_shape: tuple[int, int, int]
    parameters: int
    codes: int
    bits: Estimate
    nats: Estimate
    exact: bool
    frechet: Estimate
    floor: float
    precision: float
    recall: float
    features: str
    seconds: dict[str, float]
    minutes: float | None
    psnr: Estimate | None = None
    perceptual: Estimate | None = None
    losses: tuple[str, ...] = ()
    codes_used: float | None = None
    training_rate: float | None = None
    completion: Estimate | None = None
    strangers: Estimate | None = None
    obedience: dict[str, Estimate] = field(default_factory=dict)
    gains: dict[str, Estimate] = field(default_factory=dict)
    text_gain: Estimate | None = None
    upscaled: dict[str, Estimate] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    conditions: str = "nothing"
    wishes: tuple[str, ...] = ()
    sampling: str = ""
