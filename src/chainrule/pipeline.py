"""A tokenizer, a prior and the names of its conditions as one model: sample, complete, score, save."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .core import Codes, Context, LearnedTokenizer, Prior, Tokenizer, class_number, class_numbers
from .core.values import as_count, as_int, as_mask, as_tensor
from .decoding import GuidedContext, Known, Request, Sampling, Scorer, keep_best, seeds_of
from .decoding.sampling import OnCode
from .images import extend, grid
from .prefixes import prefixes_of
from .saving.model import SavedModel, prior_part, text_part, tokenizer_hash, tokenizer_part, write_model
from .saving.publish import push
from .text.bpe import TextTokenizer, check_text_tokenizer

OnImage = Callable[[int, Callable[[], Tensor]], None]
"""Called after each code with the number of codes known and a function that gives the images so far."""
BATCH = 128
"""Images that `Pipeline.sample` draws at once."""
NO_CLASSES = "this model has no classes: a label would be ignored; leave it out"


class Pipeline:
    """Images in and out, uint8 (B, C, H, W); codes stay inside.

    Numbers, arrays and masks of NumPy are taken wherever those of Python and PyTorch are.

    Args:
        tokenizer: image <-> codes.
        prior: p(codes | class or text), or p(text, codes).
        class_names: names of the classes, if the prior has any.
        card: what is known of the model (data, licence, recipe, minutes, figures), any plain values.
        text_tokenizer: texts <-> what the prior reads of them, if it reads any.
    """

    def __init__(
        self, tokenizer: Tokenizer, prior: Prior, class_names: Sequence[str] | None = None, card: dict | None = None,
        text_tokenizer: TextTokenizer | None = None,
    ) -> None:  # fmt: skip
        if tokenizer.spec.grids != prior.spec.grids[int(prior.conditions.joint_text) :]:
            raise ValueError(f"this tokenizer gives codes {tokenizer.spec}, this prior models {prior.spec}")
        if text_tokenizer is not None:
            check_text_tokenizer(text_tokenizer, prior)
        self.tokenizer = tokenizer.eval()
        self.prior = prior.eval()
        if class_names is not None and len(class_names) != self.num_classes:
            raise ValueError(f"the prior has {self.num_classes} classes, but {len(class_names)} names were given")
        self.class_names = tuple(class_names) if class_names is not None else None
        self.card = dict(card or {})
        self.text_tokenizer = text_tokenizer

    @property
    def device(self) -> torch.device:
        """Where the prior is."""
        return next(self.prior.parameters()).device

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for, 0 for none; the label "no class" is not among them."""
        return self.prior.conditions.num_classes

    def to(self, device: str | torch.device) -> Pipeline:
        """Moves the pipeline, as `torch.nn.Module.to` does; returns it."""
        self.tokenizer.to(device)
        self.prior.to(device)
        return self

    def with_tokenizer(self, tokenizer: Tokenizer) -> Pipeline:
        """This pipeline with another decoder of the same codes: a tokenizer whose decoder alone was trained further.

        Raises:
            ValueError: a tokenizer that encodes otherwise.
        """
        if not (isinstance(self.tokenizer, LearnedTokenizer) and self.tokenizer.same_codes(tokenizer)):
            raise ValueError(
                "this tokenizer does not encode as the model's own, and the prior knows no other codes; give one whose "
                "decoder alone was trained, from that of the model"
            )
        return Pipeline(tokenizer.to(self.device), self.prior, self.class_names, self.card, self.text_tokenizer)

    def sample(
        self, n: int = 1, label: int | str | Sequence[int | str] | Tensor | None = None, *,
        text: str | Sequence[str] | None = None, negative: str | Sequence[str] | None = None, best_of: int = 1,
        scorer: Scorer | None = None, seed: int | Sequence[int] = 0, on_image: OnImage | None = None, **options: Any,
    ) -> Tensor:  # fmt: skip
        """Draws images.

        Args:
            n: number of images.
            label: class of all, or one per image, as names or numbers (see `core.class_number`), or the numbers of a
                data set as int64 (n,); a class-conditional model needs it, unless it was trained with labels dropped.
            text: of all, or one per image; an empty one, or none, asks a model of texts for no text in particular.
            negative: text to be drawn away from, of all or one per image, for guidance; None is the empty text.
            best_of: with more than 1, this many are drawn per image and the best is kept, by `scorer`, or without one
                by `judge`.
            scorer: uint8 (n, C, H, W) -> scores (n,), more is better; image i is one of the i-th label or text.
                `chainrule.load` gives rerankers and classifiers, which have `.for_texts` and `.for_labels`.
            seed: image i depends on the seed and on i only; or one seed per image, on which alone it then depends.
            on_image: called as the images grow, `BATCH` of them at a time: many images are drawn in batches, so that
                memory does not grow with n, but for the images themselves.  Candidates come one after the other.
            options: `prefix`, see `request`, and the fields of `decoding.Sampling`: temperature, top_k, top_p,
                guidance, precision.  Guidance needs a model that was trained with labels or texts dropped.

        Returns:
            uint8 (n, C, H, W).
        """
        n, best_of = as_count(n, "n"), as_int(best_of, "best_of")
        if best_of == 1 and scorer is not None:
            raise ValueError("a scorer would be ignored: it chooses among candidates; set best_of above 1")
        if best_of > 1 and scorer is None:
            scorer = self.judge(label, text)
        request = self.request(n, label, text=text, negative=negative, seed=seed, **options)
        runner = request.sampling.runner(self.prior)

        def draw(seeds: Sequence[int]) -> Tensor:
            drawn, watch = replace(request, seeds=seeds), self.watch(on_image)
            return torch.cat([self.decode(part.draw(runner, watch)) for part in drawn.split(BATCH)])

        return draw(request.seeds) if scorer is None else keep_best(draw, request.seeds, best_of, scorer)

    def request(
        self, n: int = 1, label: int | str | Sequence[int | str] | Tensor | None = None, *,
        text: str | Sequence[str] | None = None, negative: str | Sequence[str] | None = None,
        prefix: Tensor | None = None, seed: int | Sequence[int] = 0, known: Known | None = None, particles: int = 1,
        **options: Any,
    ) -> Request:  # fmt: skip
        """What `sample` and `complete` draw, for a `decoding.Batcher`; `decode` makes images of its codes.

        Args:
            prefix: of a model that draws from an image, such as from its edges: the image from which they are taken,
                uint8 (C, H, W), or one per image, (n, C, H, W).
            known: codes of the images that are given, for `n` images.
            n, label, text, negative, seed, particles, options: as in `sample` and `complete`.
        """
        n, sampling = as_count(n, "n"), Sampling(**options)
        context = self._sampling_context(label, n, text, negative, sampling.guidance)
        context, known = self._with_prefix(context, prefix, n), self._known(text, n, known)
        return Request(context, seeds_of(seed, n), sampling, known, as_int(particles, "particles"))

    def known_codes(self, image: Tensor, mask: Tensor, n: int) -> Known:
        """The codes of an image that are certain where it is known, for `n` completions; see `complete`.

        Raises:
            ValueError: an image or a mask of a wrong shape or type.
        """
        image, mask = as_tensor(image, "image"), as_mask(mask)
        if image.ndim != 3:
            raise ValueError(f"image must be one uint8 (C, H, W), got shape {tuple(image.shape)}")
        if tuple(mask.shape) != tuple(image.shape[1:]):
            raise ValueError(f"mask must be {tuple(image.shape[1:])}, as the image, got {tuple(mask.shape)}")
        flat = self.tokenizer.spec.flatten(self._encode(extend(image, mask)[None]))
        return Known(flat.expand(n, -1), self.tokenizer.known_codes(mask))

    def complete(
        self, image: Tensor, mask: Tensor, n: int = 1, label: int | str | Sequence[int | str] | Tensor | None = None,
        *, text: str | Sequence[str] | None = None, particles: int = 1, paste: bool = False,
        on_image: OnImage | None = None, **options: Any,
    ) -> Tensor:  # fmt: skip
        """Draws the unknown part of an image, n times; the known part is kept as the tokenizer sees it.

        What the image holds where it is unknown does not matter: before its codes are taken, known pixels are extended
        over it (`images.extend`).

        Args:
            image: uint8 (C, H, W).
            mask: bool (H, W), True where the image is known; or 1 there, or 255, and else 0.
            paste: whether known pixels are those of `image` itself, and not those of its reconstruction; with a learned
                tokenizer a seam may show.
            label, text, on_image: as in `sample`.
            options: `seed`, `negative`, `prefix` and the options of sampling, as in `sample`.
            particles: with more than 1, sequential Monte Carlo makes what is drawn agree with known pixels
                that come later in raster order (see `decoding.complete`).

        Returns:
            uint8 (n, C, H, W).
        """
        n, image, mask = as_count(n, "n"), as_tensor(image, "image"), as_mask(mask)
        known = self.known_codes(image, mask, n)
        request = self.request(n, label, text=text, known=known, particles=particles, **options)
        drawn = request.draw(request.sampling.runner(self.prior), self.watch(on_image))
        return self.completed(self.decode(drawn), image, mask, known, paste)

    def completed(self, images: Tensor, image: Tensor, mask: Tensor, known: Known, paste: bool = False) -> Tensor:
        """Completions, uint8 (n, C, H, W), with what is known of the image in the place of what was drawn there.

        Args:
            images: what `decode` gives of the codes that were drawn.
            image, mask, paste: as in `complete`.
            known: what `known_codes` gives.
        """
        codes = self.tokenizer.spec.unflatten(known.codes[:1])
        kept = image[None].to(images.device) if paste else self.tokenizer.decode(codes)
        return torch.where(mask.to(images.device), kept, images)

    def condition(
        self, count: int, label: int | str | Sequence[int | str] | Tensor | None = None,
        text: str | Sequence[str] | None = None,
    ) -> tuple[Codes, Context]:  # fmt: skip
        """What the codes of `count` images are conditioned on: the grids of codes before them, and their context.

        The grids are the text (count, 1, L, 1) of a prior that models text and image as one stream, and else none.
        A label or text is that of all images, or one per image.

        Raises:
            ValueError: a label or text that the model does not read, or lacks.
        """
        return self._caption(text, count), self._context(label, count, text)

    def own_prefix(self, images: Tensor) -> Tensor | None:
        """Images as the `prefix` of themselves, or None for a model that does not draw from an image."""
        return images if self.prior.conditions.reads_image else None

    @torch.no_grad()
    def log_prob(
        self, images: Tensor, label: int | str | Sequence[int | str] | Tensor | None = None, *,
        text: str | Sequence[str] | None = None, prefix: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """log p(codes of the images | label, text, `prefix` or their own) in nats: (B,). For pixels, the likelihood."""
        return sum(grid.flatten(1).sum(1) for grid in self._log_prob_grids(images, label, text, prefix))

    @torch.no_grad()
    def log_prob_text(self, text: str | Sequence[str]) -> Tensor:
        """log p(text) in nats, its end included: float (B,).

        Raises:
            ValueError: a model that draws no texts.
        """
        if not self.prior.conditions.joint_text:
            raise ValueError("this model gives texts no probability; only one of a joint stream does")
        text = [text] if isinstance(text, str) else text
        count = len(text)
        after = torch.zeros(count, self.tokenizer.spec.length, dtype=torch.int64, device=self.device)
        images = self.tokenizer.spec.unflatten(after)
        return self.prior.log_prob_grids((*self._caption(text, count), *images))[0].flatten(1).sum(1)

    def agreement(
        self, images: Tensor, text: str | Sequence[str],
        label: int | str | Sequence[int | str] | Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """log p(images | text) - log p(images | no text) in nats, of their codes: float (B,).

        By Bayes' rule this is log p(text | images) - log p(text): among images for one text, the best match has the
        greatest value.  The model must have been trained with a `caption_dropout` above 0.

        Raises:
            ValueError: a model that reads no texts.
        """
        return self.log_prob(images, label, text=text) - self.log_prob(images, label)

    def judge(
        self, label: int | str | Sequence[int | str] | Tensor | None = None, text: str | Sequence[str] | None = None
    ) -> Scorer:
        """How well images fit their label or text, by this model itself: with a text `agreement`, else `classify`.

        Args:
            label, text: of all images, or one per image.

        Returns:
            uint8 (B, C, H, W) -> scores in nats, float (B,) on the CPU, more is better.

        Raises:
            ValueError: neither a label nor a text.
        """
        if text is not None and len(text):
            return lambda images: self.agreement(images, text, label).cpu()
        if label is None:
            raise ValueError("nothing says which candidate is best: give a label, a text, or a scorer")

        def by_label(images: Tensor) -> Tensor:
            numbers = self._label_context(label, len(images)).label
            return self.classify(images).gather(1, numbers[:, None])[:, 0].cpu()

        return by_label

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """log p(class | codes of the images) by Bayes' rule, all classes being as probable before: float (B, N).

        One likelihood per class and image: meant for a few classes.

        Raises:
            ValueError: a model without classes.
        """
        if not self.num_classes:
            raise ValueError("this model has no classes, so it cannot tell any apart")
        codes = self._encode(images)
        labels = [torch.full((len(images),), label, device=self.device) for label in range(self.num_classes)]
        return torch.stack([self.prior.log_prob(codes, Context(label=each)) for each in labels], 1).log_softmax(1)

    @torch.no_grad()
    def surprise(
        self, images: Tensor, label: int | str | Sequence[int | str] | Tensor | None = None, *,
        text: str | Sequence[str] | None = None,
    ) -> Tensor:  # fmt: skip
        """-log p of each position of the finest grid in nats, summed over its depth: float (B, H, W)."""
        return -self._log_prob_grids(images, label, text)[-1].sum(-1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """decode(encode(images)), uint8 (B, C, H, W)."""
        return self.tokenizer.decode(self._encode(images))

    def bits_per_dim(self, nats: Tensor | float) -> Tensor | float:
        """-log p in nats per image -> bits per channel of a pixel."""
        return nats / (torch.Size(self.tokenizer.image_shape).numel() * 0.6931471805599453)

    def save(
        self, folder: str | os.PathLike, dtype: torch.dtype | None = None, card: Mapping[str, Any] | None = None
    ) -> None:
        """Writes the pipeline to a folder; arguments and errors as for `chainrule.save`."""
        saved = self.saved() if card is None else replace(self.saved(), card=card)
        weights = {"tokenizer": self.tokenizer.state_dict(), "prior": self.prior.state_dict()}
        write_model(folder, saved, weights, self.text_tokenizer, dtype)

    def saved(self) -> SavedModel:
        """What config.yaml holds of the pipeline."""
        return SavedModel(
            kind="pipeline", tokenizer=tokenizer_part(self.tokenizer, tokenizer_hash(self.tokenizer)),
            prior=prior_part(self.prior), text_tokenizer=text_part(self.text_tokenizer), class_names=self.class_names,
            card=self.card,
        )  # fmt: skip

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Uploads the pipeline to the Hugging Face hub; arguments, result and errors as for `chainrule.push`."""
        with tempfile.TemporaryDirectory(prefix="chainrule-") as temporary:
            folder = Path(temporary) / "model"
            self.save(folder)
            return push(folder, repo_id, private=private, token=token, picture=self.samples())

    def samples(self, n: int = 9) -> bytes | None:
        """A PNG file of images for a card, of the classes in turn; None for a model that draws from an image."""
        if self.prior.conditions.reads_image:
            return None
        label = torch.arange(n) % self.num_classes if self.num_classes else None
        buffer, scale = io.BytesIO(), max(1, 96 // self.tokenizer.image_shape[-1])
        grid(self.sample(n, label), scale=scale).save(buffer, format="PNG")
        return buffer.getvalue()

    def _log_prob_grids(self, images: Tensor, label: Any, text: Any, prefix: Any = None) -> tuple[Tensor, ...]:
        """log p of the codes of images, without those of a text before them."""
        images = as_tensor(images, "images")
        caption, context = self.condition(len(images), label, text)
        context = self._with_prefix(context, self.own_prefix(images) if prefix is None else prefix, len(images))
        grids = self.prior.log_prob_grids((*caption, *self._encode(images)), context)
        if any(grid.isnan().any() for grid in grids):
            raise ValueError("the model gives log-likelihoods that are nan: its weights are damaged")
        return grids[len(caption) :]

    def _text(self, text: Any, count: int) -> Tensor:
        """Token ids of a text for all or of one per image, int64 (count, L); of empty texts where there is none."""
        texts = [text or ""] * count if text is None or isinstance(text, str) else list(text)
        if len(texts) != count:
            raise ValueError(f"{len(texts)} texts were given for {count} images")
        if self.text_tokenizer is not None:
            return self.text_tokenizer.encode(texts).to(self.device)
        raise ValueError("this model was saved without a text tokenizer, so it reads no texts")

    def _caption(self, text: Any, count: int) -> tuple[Tensor, ...]:
        """The grid of codes that a text is, (count, 1, L, 1), where the prior models one before the image."""
        return (self._text(text, count)[:, None, :, None],) if self.prior.conditions.joint_text else ()

    def _known(self, text: Any, count: int, known: Known | None = None) -> Known | None:
        """Known codes of images, and of the text before them."""
        for caption in self._caption(text, count):
            caption = caption.flatten(1)
            if known is None:
                length = self.prior.spec.length - caption.shape[1]
                known = Known(caption.new_zeros(count, length), torch.zeros(length, dtype=torch.bool))
            before = torch.ones(caption.shape[1], dtype=torch.bool, device=known.mask.device)
            known = Known(torch.cat([caption, known.codes], 1), torch.cat([before, known.mask]))
        return known

    def decode(self, codes: tuple[Tensor, ...]) -> Tensor:
        """Codes of the prior's `spec`, of B images -> the images, uint8 (B, C, H, W)."""
        return self.tokenizer.decode(codes[int(self.prior.conditions.joint_text) :])

    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.tokenizer.encode(as_tensor(images, "images").to(self.device))

    def _context(self, label: Any, count: int, text: Any = None) -> Context:
        if text is not None and not self.prior.conditions.reads_text:
            raise ValueError("this model reads no texts: a text would be ignored; leave it out")
        context = self._label_context(label, count)
        return replace(context, text=self._text(text, count)) if self.prior.conditions.text_length else context

    def _with_prefix(self, context: Any, images: Any, count: int) -> Any:
        if images is None:  # the prior says whether it does without
            return context
        images = prefixes_of(images, self.prior.conditions.image_prefix, self.tokenizer, count)
        return replace(context, prefix=self.tokenizer.spec.flatten(self._encode(images)).expand(count, -1))

    def _label_context(self, label: Any, count: int) -> Context:
        if label is None:
            null = torch.full((count,), self.num_classes, device=self.device)
            return Context(label=null) if self.prior.conditions.null_label else Context()
        if not self.num_classes:
            raise ValueError(NO_CLASSES)
        numbers = class_numbers(label, self.num_classes, self.class_names, "model")
        numbers = numbers.expand(count) if numbers.ndim == 0 else numbers
        if tuple(numbers.shape) != (count,):
            raise ValueError(f"{numbers.numel()} labels were given for {count} images")
        return Context(label=numbers.to(self.device))

    def _sampling_context(self, label: Any, count: int, text: Any, negative: Any, guidance: float) -> Any:
        """The Context or GuidedContext of images to be drawn; guidance is away from no class or the negative text."""
        context = self._context(label, count, text)
        if guidance == 1:
            if negative is not None:
                raise ValueError("a negative text would be ignored without guidance; set guidance, 3 is a start")
            return context
        texts = self.prior.conditions.reads_text
        if not (self.prior.conditions.null_label or texts):
            raise ValueError("guidance needs a model that was trained with labels dropped (training.label_dropout)")
        if label is None and text is None and negative is None:
            raise ValueError("guidance needs a label or a text to draw towards; give one, or leave guidance at 1")
        other = self._context(label if texts else None, count, negative)
        negative_text = self._text(negative, count) if self.prior.conditions.joint_text else None
        scale = torch.full((count,), float(guidance), device=self.device)
        return GuidedContext(context, other, scale, negative_text)

    def label_number(self, label: int | str) -> int:
        """The number of a class given by name or number, see `core.class_number`.

        Raises:
            ValueError: no such class, or a model without classes.
        """
        if not self.num_classes:
            raise ValueError(NO_CLASSES)
        return class_number(label, self.num_classes, self.class_names, "model")

    def labels_by_name(self, numbers: Sequence[int]) -> list[str] | Tensor:
        """Numbers of classes as names, by which another model finds them, or as int64 (B,) where there are none."""
        return torch.tensor(numbers) if self.class_names is None else [self.class_names[one] for one in numbers]

    def watch(self, on_image: OnImage | None) -> OnCode | None:
        """What `decoding` calls after each code, so that `on_image` sees the images so far."""
        if on_image is None:
            return None
        return lambda t, codes: on_image(t + 1, lambda: self.decode(self.prior.spec.unflatten(codes.clone())))
