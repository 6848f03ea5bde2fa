"""Whether pictures show what their captions say: one sample per caption, by scale of guidance.

    python benchmarks/obedience.py runs/shapes_parti --guidance 1 3 5
    python benchmarks/obedience.py runs/emoji_parti --data emoji --guidance 1 3 5 --best 4

shapes: the share of samples in which every stated attribute (how many objects, and the colour, shape, size and position
of each) is right, as `chainrule.data.shapes.matches` reads them, for captions of the split test, whose combinations of
colour and shape were seen in training, and of the split heldout, where each has one that was not.

Other data: top-1 of 100, the share of samples that are strictly nearer to their true picture than to 99 others, drawn
from the split test without those of the same caption, by the cosine of the pooled features of EfficientNet-Lite0; for
captions of the split train and, of the split test, for those of known things: captions "name, style" whose name also
occurs in train.  A caption without a comma is its own name.

Each line has the share with its count and its standard error, and the Fréchet distance of the pictures from the true
ones of the same captions, in the same features: comparable at equally many captions only.  The lines "true" judge the
true pictures and "reconstructed" those pictures as the model's tokenizer keeps them: more than that no sample can be
expected to reach.

--best K draws K candidates for each caption and keeps the one with the largest log p(image | caption) - log p(image),
or, with --reranker, the one whose image is nearest to the caption.
"""

import argparse
import json
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import chainrule
from chainrule.data import DataConfig, ImageDataset, load, shapes
from chainrule.evaluation import FeatureNetwork, frechet_distance, load_features, pooled_features
from chainrule.scorers.reranker import TextScorer
from chainrule.zoo import load_scorer

BATCH = 50


def by_reading(images: Tensor, captions: list[str]) -> Tensor:
    """Which images of shapes show all that their captions state: bool (B,)."""
    pairs = zip(images.cpu().numpy(), captions, strict=True)
    return torch.tensor([shapes.matches(image, caption) for image, caption in pairs])


class Retrieval:
    """Judges images by how near they are to pictures of the split test."""

    def __init__(self, test: ImageDataset, network: FeatureNetwork) -> None:
        self.test, self.features = test, normalize(pooled_features(test.images, network))

    def choices(self, captions: list[str], others: int = 99) -> list[Tensor]:
        """For each caption the pictures of the split test that its sample is compared with, int64 (others,)."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for caption in captions:
            order = torch.randperm(len(self.test), generator=generator).tolist()
            found.append(torch.tensor([i for i in order if self.test.texts[i] != caption][:others]))
        return found

    def first(self, features: Tensor, truth: Tensor, choices: list[Tensor]) -> Tensor:
        """Which features are nearer to those of their own true picture than to all others: bool (B,)."""
        drawn, true = normalize(features), normalize(truth)
        own = (drawn * true).sum(1)
        other = torch.stack([self.features[index] @ one for one, index in zip(drawn, choices, strict=True)])
        return own > other.max(1).values


def draw(
    model: chainrule.Pipeline, captions: list[str], best: int, scorer: TextScorer | None, seed: int, **sampling: Any
) -> Tensor:
    """One image per caption; image i depends on its caption, on i + seed and on the other arguments."""
    parts = []
    for start in range(0, len(captions), BATCH):
        texts = captions[start : start + BATCH]
        options = {}
        if best > 1 and scorer is not None:
            options = {"best_of": best, "scorer": scorer.for_texts(texts)}
        elif best > 1:
            options = {"best_of": best, "scorer": lambda images, texts=texts: model.agreement(images, texts)}
        images = model.sample(len(texts), text=texts, seed=seed + start, **options, **sampling)
        parts.append(images.cpu())
    return torch.cat(parts)


def prompts(data: ImageDataset, limit: int, allowed) -> tuple[list[str], Tensor]:
    """The first `limit` captions that are allowed, and their pictures."""
    chosen = [index for index, text in enumerate(data.texts) if allowed(text)][:limit]
    if not chosen:
        raise SystemExit(f"no caption of {data.name} fits")
    return [data.texts[index] for index in chosen], data.images[torch.tensor(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="shapes", help="shapes, or a data set of captioned pictures")
    parser.add_argument("--prompts", type=int, default=300, help="captions of each split")
    parser.add_argument("--objects", type=int, default=2, help="of shapes: captions of at most so many objects")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--best", type=int, default=1)
    parser.add_argument("--reranker", help="a folder of a reranker, or a public CLIP; needs --best")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--seed", type=int, default=0, help="10000 and 20000 draw anew for the same captions")
    arguments = parser.parse_args()
    if arguments.reranker is not None and arguments.best == 1:
        parser.error("--reranker chooses among candidates; give --best")
    scorer = None if arguments.reranker is None else load_scorer(arguments.reranker)
    model = chainrule.load(arguments.model)
    channels, height, width = model.tokenizer.image_shape
    drawn_shapes = arguments.data == "shapes"
    splits = ("test", "heldout") if drawn_shapes else ("train", "test")
    data = {
        split: load(DataConfig(arguments.data, split=split, size=(height, width), channels=channels))
        for split in splits
    }
    network = load_features("efficientnet_lite0")
    if drawn_shapes:
        what, retrieval = "all attributes right", None
    else:
        what, retrieval = "top-1 of 100", Retrieval(data["test"], network)
        names = {text.rsplit(", ", 1)[0] for text in data["train"].texts}
    for split in splits:
        if drawn_shapes:
            captions, truth = prompts(
                data[split], arguments.prompts, lambda text: len(shapes.parse(text)) <= arguments.objects
            )
        else:
            captions, truth = prompts(data[split], arguments.prompts, lambda text: text.rsplit(", ", 1)[0] in names)
            choices = retrieval.choices(captions)
        true = pooled_features(truth, network)

        def report(pictures: str, images: Tensor, **more: float) -> None:
            # called in this turn of the loop only
            features = pooled_features(images, network)
            right = by_reading(images, captions) if drawn_shapes else retrieval.first(features, true, choices)  # noqa: B023
            share = right.float().mean().item()
            error = (share * (1 - share) / len(right)) ** 0.5
            figures = {what: int(right.sum()), "of": len(right), "share": round(share, 4), "error": round(error, 4)}
            figures["frechet"] = round(frechet_distance(true, features), 2)  # noqa: B023
            print(json.dumps({"split": split, "pictures": pictures, **more, **figures}), flush=True)  # noqa: B023

        report("true", truth)
        report("reconstructed", torch.cat([model.reconstruct(part).cpu() for part in truth.split(BATCH)]))
        for guidance in arguments.guidance:
            images = draw(
                model, captions, arguments.best, scorer, arguments.seed, guidance=guidance,
                temperature=arguments.temperature, top_k=arguments.top_k, precision=arguments.precision,
            )  # fmt: skip
            report("sampled", images, guidance=guidance, best_of=arguments.best)


if __name__ == "__main__":
    main()
