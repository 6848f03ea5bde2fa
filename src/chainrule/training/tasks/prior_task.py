"""How a prior is trained over the codes of a tokenizer that stays as it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...adapters import save_adapter
from ...core import Codes, Context, LearnedTokenizer, Prior, StochasticTokenizer, Tokenizer
from ...data import ImageDataset, augment, binarize, draw_flips
from ...layers.lora import merge
from ...pipeline import Pipeline
from ...prefixes import image_prefix
from ...processes import shared
from ...text.bpe import check_text_tokenizer
from ..engine.config import TrainingConfig, check_at_least, check_share
from ..engine.order import derive_seed
from .captions import Captions
from .codes import StoredCodes, cached_codes, encode
from .examples import Examples, ExamplesTask
from .further import Further, LoRATraining
from .previews import draw_preview


@dataclass(frozen=True, kw_only=True)
class PriorTrainingConfig(TrainingConfig):
    """How to train a prior.

    label_dropout:   share of the training labels that become "no class", so that the prior can be guided; 0 is none
    caption_dropout: share of the training captions that become the empty text, for the same purpose; 0 is none
    soft_targets:    temperature at which codes are drawn and softened, as RQ-VAE can; 0 is none
    lora:            of a trained prior, what its attention learns, while all else stays; see `LoRATraining`
    code_noise:      largest share of the prior's inputs, not its targets, that random codes replace, drawn anew for
                     each image; 0 is none
    """

    label_dropout: float = 0.0
    caption_dropout: float = 0.0
    soft_targets: float = 0.0
    code_noise: float = 0.0
    lora: LoRATraining | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "label_dropout", "caption_dropout", "code_noise")
        check_at_least(self, 0, "soft_targets")


@dataclass(frozen=True)
class PriorBatch:
    """Images uint8 (B, C, H, W), or their codes where they were encoded before, and what a prior is told of them.

    codes:  of the images and, for a prior that reads them, of their prefixes
    labels: int64 (B,), if any
    text:   token ids int64 (B, L), if any
    """

    images: Tensor | None
    codes: Codes | None
    labels: Tensor | None = None
    text: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes[0] if self.images is None else self.images)


class PriorTask(ExamplesTask):
    """Trains p(codes | context).

    The loss is the mean of -log p over codes (nats per code, so that learning rates do not depend on the size of
    images), or of the grids' means as the prior weighs them (`Prior.grid_weights`); logged are `nats`, the sum over the
    codes of an image, and beside it, for a tokenizer of pixels, `bits_per_dim`, nats / (C H W ln 2), for a learned one
    `nats_per_code` and `bits_per_image`.

    With soft targets, codes are drawn anew at each visit and the loss is the cross entropy with the distributions they
    are drawn from (Lee et al., arXiv:2203.01941, section 3.2.3); what is logged is -log p of the drawn codes.

    With noise, some of the codes that the model reads are replaced by random ones, and it still predicts the true ones:
    it leans less on what is already drawn and more on its label or caption (`pkeep` in the code of Esser et al.,
    arXiv:2012.09841).  What is logged in training is -log p given what the model read.

    Args:
        tokenizer: images <-> codes.
        prior: what is trained.
        examples: the images.
        training: the shares that are dropped, softened and replaced.
        captions: of a prior that reads captions, or models them before the image.
        card: plain values to save with the model.
        further: how a trained prior is trained further.
        quiet: whether to show no bar while images are encoded.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prior: Prior,
        examples: Examples,
        training: PriorTrainingConfig,
        captions: Captions | None = None,
        card: Mapping[str, Any] = {},
        further: Further = Further(),
        quiet: bool = True,
    ) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        super().__init__(prior, examples, card)
        self.options, self.captions, self.notes, self.adapter = training, captions, further.notes, further.adapter
        self.quiet = quiet
        self.training_codes: list[StoredCodes]  # of the images and, with flips, of their mirror images, if kept
        self.evaluation_codes: StoredCodes | None
        self.training_codes, self.evaluation_codes = examples.codes or ([], None)
        self._check()

    def _check(self) -> None:
        given, options, images = self.model.conditions, self.options, self.training
        if given.num_classes and given.num_classes != images.num_classes:
            raise ValueError(
                f"the prior has num_classes {given.num_classes} but {images.name} has {images.num_classes or 0}; "
                "write num_classes: data"
            )
        dropped = options.label_dropout
        if dropped and not given.num_classes:
            raise ValueError("label_dropout would be ignored: the prior has no classes; write num_classes: data")
        if given.null_label != (dropped > 0):
            has = "has" if given.null_label else "lacks"
            raise ValueError(f"the prior {has} the label for no class, which label_dropout {dropped} contradicts")
        if options.caption_dropout and self.captions is None:
            raise ValueError("caption_dropout would be ignored: the prior reads no texts; leave it out")
        if options.soft_targets and not isinstance(self.tokenizer, StochasticTokenizer):
            raise ValueError(
                f"soft_targets need a tokenizer whose codes can be drawn, as rqvae, not {self.tokenizer.name}"
            )
        if options.soft_targets and self.data.stream:
            raise ValueError("soft_targets need the images at each visit, and a stream keeps their codes only")
        if given.reads_image and self.data.stream:
            raise ValueError("image_prefix is taken from the images, and a stream keeps their codes only")
        if given.image_prefix == "grey" and images.image_shape[0] == 1:
            raise ValueError("the grey of grey images would be the images themselves; write image_prefix: edges")
        if self.captions is not None:
            check_text_tokenizer(self.captions.tokenizer, self.model)

    def keep_codes(self, device: torch.device) -> None:
        """Encodes all images once, or takes their codes from the cache, if they are learned and the same at each visit.

        Codes that are drawn anew, for soft targets or from sampled binary images, are not kept.
        """
        mode = self.data.binarize
        if not isinstance(self.tokenizer, LearnedTokenizer) or mode == "sample":
            return
        if not self.options.soft_targets:
            for mirrored in (False, True)[: 1 + self.data.flip]:
                self.training_codes.append(self._stored(self.training, mirrored, device))
        self.evaluation_codes = self._stored(self.evaluation, False, device)

    def _stored(self, images: ImageDataset, mirrored: bool, device: torch.device) -> StoredCodes:
        """The codes of all images and, where the prior reads them, those of their prefixes."""
        given, grids = self.model.conditions, ()
        for prefix in ("none", given.image_prefix)[: 1 + given.reads_image]:
            grids += cached_codes(self.tokenizer, images, self.data.binarize, mirrored, device, self.quiet, prefix)
        return grids

    def setup(self, device: torch.device) -> None:
        self.device = device
        self.tokenizer.to(device)
        if self.evaluation_codes is None:
            self.keep_codes(device)

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> PriorBatch:
        if self.training_codes:
            codes, images = _at(self.training_codes[0], indices), None
            labels = None if self.training.labels is None else self.training.labels[indices]
            if self.data.flip:
                flipped = draw_flips(len(indices), generator)[:, None, None, None]
                mirrored = _at(self.training_codes[1], indices)
                codes = tuple(torch.where(flipped, m, c) for m, c in zip(mirrored, codes, strict=True))
        else:
            whole = augment(self.training.batch(indices), self.data, generator)
            codes, images, labels = None, whole.images, whole.labels
        labels, text = self._drop(labels, generator), self._draw_text(indices, generator)
        return PriorBatch(
            None if images is None else images[part],
            None if codes is None else tuple(grid[part] for grid in codes),
            None if labels is None else labels[part],
            None if text is None else text[part],
        )

    def loss(self, model: nn.Module, batch: PriorBatch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        if self.options.soft_targets:
            return self._soft_loss(model, batch)
        codes, context = self._encode(batch)
        loss, nats_per_code = code_loss(self.model, model(self._corrupt(codes), context), codes)
        each = [grid.num_positions * mean for grid, mean in zip(self.model.spec.grids, nats_per_code, strict=True)]
        return loss, self._figures(each)

    def _drop(self, labels: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """Labels, some of them replaced by "no class"."""
        if not self.options.label_dropout:
            return labels
        dropped = torch.rand(len(labels), generator=generator) < self.options.label_dropout
        return torch.where(dropped, self.training.num_classes, labels)

    def _draw_text(self, indices: Tensor, generator: torch.Generator) -> Tensor | None:
        """Captions of training images, some merges left out and some captions replaced by the empty text."""
        if self.captions is None:
            return None
        text = self.captions.draw(indices, generator)
        if self.options.caption_dropout:
            dropped = torch.rand(len(text), generator=generator) < self.options.caption_dropout
            text = text.masked_fill(dropped[:, None], self.captions.tokenizer.pad)
        return text

    def _soft_loss(self, model: nn.Module, batch: PriorBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`; the engine has seeded the draws by the step."""
        images = batch.images.to(self.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            codes, targets = self.tokenizer.encode_soft(images, self.options.soft_targets)
        (logits,) = model(self._corrupt(codes), self._context(batch, self._prefix(images)))
        log_prob = logits.float().log_softmax(-1)
        nats = -log_prob.detach().gather(-1, codes[0].unsqueeze(-1)).sum() / len(batch)
        return -(targets * log_prob).sum(-1).mean(), {"nats": nats} | self._rates(nats)

    def _corrupt(self, codes: Codes) -> Codes:
        """The codes of a batch as the model reads them, some of the image's replaced by random ones.

        The engine has seeded the draws by the step.
        """
        if not self.options.code_noise:
            return codes
        text = int(self.model.conditions.joint_text)
        sizes = [grid.codebook_size for grid in self.model.spec.grids[text:]]
        share = self.options.code_noise * torch.rand(len(codes[0]), 1, 1, 1, device=self.device)
        image = [
            torch.where(torch.rand(grid.shape, device=self.device) < share, torch.randint_like(grid, size), grid)
            for grid, size in zip(codes[text:], sizes, strict=True)
        ]
        return *codes[:text], *image

    def evaluate(self, model: Prior, final: bool) -> dict[str, float]:
        """Mean over the evaluation images; sampled binarisation is the same at every call."""
        chosen = self.evaluated(final)

        def nats(batch: tuple[int, Tensor]) -> Tensor:
            number, indices = batch
            whole, codes, images = self.evaluation.batch(indices), None, None
            if self.evaluation_codes is not None:
                codes = _at(self.evaluation_codes, indices)
            else:
                generator = torch.Generator().manual_seed(derive_seed("evaluation", number * self.batch_size))
                images = binarize(whole.images, self.data.binarize, generator)
            text = None if self.captions is None else self.captions.evaluation[indices]
            grids = model.log_prob_grids(*self._encode(PriorBatch(images, codes, whole.labels, text)))
            return -torch.stack([grid.double().sum().cpu() for grid in grids])

        total = sum(shared(nats, enumerate(chosen.split(self.batch_size))))
        return self._figures((total / len(chosen)).tolist())

    def preview(self, model: Prior, seed: int) -> Tensor:
        texts = None if self.captions is None else self.evaluation.texts
        return draw_preview(self._pipeline(model, {}), texts, self.evaluation.images, seed)

    def save(self, model: Prior, folder: Path, card: dict[str, Any]) -> None:
        if self.adapter is not None and not self.options.lora.merge:
            save_adapter(self._pipeline(model, card), self.adapter, folder)
            return
        if self.adapter is not None:
            merge(model := copy.deepcopy(model))
        self._pipeline(model, card).save(folder)

    def _pipeline(self, model: Prior, card: dict[str, Any]) -> Pipeline:
        names = self.training.class_names if model.conditions.num_classes else None
        text_tokenizer = None if self.captions is None else self.captions.tokenizer
        return Pipeline(self.tokenizer, model, names, self.card | card, text_tokenizer)

    def _encode(self, batch: PriorBatch) -> tuple[Codes, Context]:
        """All codes of the prior, a caption of a joint stream before those of the image, and the context."""
        if batch.codes is None:
            images = batch.images.to(self.device)
            codes = encode(self.tokenizer, images) + self._prefix(images)
        else:
            codes = tuple(grid.to(self.device) for grid in batch.codes)
        count = len(self.tokenizer.spec.grids)
        codes, context = codes[:count], self._context(batch, codes[count:])
        if self.model.conditions.joint_text:
            codes = batch.text[:, None, :, None].to(self.device), *codes
        return codes, context

    def _prefix(self, images: Tensor) -> Codes:
        """The codes of what the prior reads of images before their own, none where it reads nothing of them."""
        given = self.model.conditions
        return encode(self.tokenizer, image_prefix(images, given.image_prefix)) if given.reads_image else ()

    def _context(self, batch: PriorBatch, prefix: Codes = ()) -> Context:
        return Context(
            prefix=self.tokenizer.spec.flatten(prefix) if prefix else None,
            label=batch.labels.to(self.device) if self.model.conditions.num_classes else None,
            text=batch.text.to(self.device) if self.model.conditions.text_length else None,
        )

    def _figures(self, nats: list[Any]) -> dict[str, Any]:
        """What is reported of the nats of each grid: those of the image, and those of a text before it."""
        image = sum(nats[int(self.model.conditions.joint_text) :])
        return (
            {"nats": image} | self._rates(image) | ({"text_nats": nats[0]} if self.model.conditions.joint_text else {})
        )

    def _rates(self, nats: Any) -> dict[str, Any]:
        """What is reported beside the nats of an image, a number or a tensor."""
        if isinstance(self.tokenizer, LearnedTokenizer):
            return {"nats_per_code": nats / self.tokenizer.spec.length, "bits_per_image": nats / math.log(2)}
        return {"bits_per_dim": nats / (math.prod(self.tokenizer.image_shape) * math.log(2))}


def code_loss(prior: Prior, logits: Sequence[Tensor], codes: Codes) -> tuple[Tensor, list[Tensor]]:
    """The mean of -log p over the codes of each grid, as the prior weighs the grids, and the means alone."""
    means = [
        F.cross_entropy(values.float().flatten(0, -2), grid.flatten())
        for values, grid in zip(logits, codes, strict=True)
    ]
    return sum(weight * mean for weight, mean in zip(prior.grid_weights, means, strict=True)), means


def _at(codes: StoredCodes, indices: Tensor) -> Codes:
    """The codes of the images `indices`, as models take them."""
    return tuple(grid[indices].long() for grid in codes)
