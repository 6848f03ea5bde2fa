"""Public weights of CLIP (Radford et al. 2021, arXiv:2103.00020) as the package `transformers` reads them.

The package is no dependency: it is imported when such a reranker is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import to_pil
from ..network import hub_answers, why_no_hub
from .reranker import TextScorer


class PublicCLIP(TextScorer):
    """A CLIP with the resizing and the text tokenizer that belong to it.

    Args:
        name: a hub id such as "openai/clip-vit-base-patch32", or a folder that holds the same files.
        device: where it computes.

    Raises:
        ValueError: the package is absent, or nothing of that name.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        try:
            from transformers import CLIPModel, CLIPProcessor
        except ImportError:
            raise ValueError(
                f"{name} is no folder of a reranker, and a public CLIP needs the package transformers, which is "
                'not installed here (pip install "chainrule[clip]")'
            ) from None
        offline = not Path(name).exists() and not hub_answers()
        try:
            self.model = CLIPModel.from_pretrained(name, local_files_only=offline).eval().to(device)
            self.processor = CLIPProcessor.from_pretrained(name, local_files_only=offline)
        except (OSError, ValueError) as error:
            why = f"it was not fetched before, and {why_no_hub()}" if offline else type(error).__name__
            raise ValueError(f"{name} is neither a saved model nor a CLIP on the hub ({why})") from error

    def encode_images(self, images: Tensor) -> Tensor:
        return F.normalize(self.features(images), dim=-1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The vectors of images, uint8 (B, 1 or 3, H, W), before they are scaled to length 1: float (B, C)."""
        pictures = [picture.convert("RGB") for picture in to_pil(images)]
        given = self.processor(images=pictures, return_tensors="pt").to(self.model.device)
        read = self.model.vision_model(pixel_values=given["pixel_values"])
        return self.model.visual_projection(read.pooler_output).float()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """As above; a text that is too long is cut."""
        given = self.processor(text=list(texts), return_tensors="pt", padding=True, truncation=True)
        given = given.to(self.model.device)
        read = self.model.text_model(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
        return F.normalize(self.model.text_projection(read.pooler_output).float(), dim=-1)
