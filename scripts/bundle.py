"""Bundles a finished training run with the package, and puts its figures on the card.

    python scripts/bundle.py runs/mnist_pixelcnn mnist_pixelcnn --data-licence "MNIST, CC BY-SA 3.0" --faults "..."
    chainrule evaluate mnist_pixelcnn --record docs/records/mnist_pixelcnn-test.json
    python scripts/bundle.py --figures mnist_pixelcnn docs/records/mnist_pixelcnn-test.json
"""

import argparse
import json
from pathlib import Path

import chainrule
from chainrule.pipeline import PRETRAINED

MAX_BYTES = 8_000_000


def bundle(run: str, name: str, data_licence: str, faults: str) -> None:
    pipeline = chainrule.load(run)
    pipeline.card |= {"data_licence": data_licence, "weights_licence": "Apache-2.0", "known_faults": faults}
    save(pipeline, name)


def add_figures(name: str, record: Path) -> None:
    pipeline = chainrule.load(name)
    value = json.loads(record.read_text(encoding="utf-8"))
    likelihood = value["likelihood"]
    figure = {"value": round(likelihood["nats"], 3), "standard_error": round(likelihood["standard_error"], 3)}
    pipeline.card |= {"figures": {"nats": figure}, "record": record.as_posix()}
    pipeline.card.pop("metrics", None)  # of a part of the images, while training
    save(pipeline, name)


def save(pipeline: chainrule.Pipeline, name: str) -> None:
    pipeline.save(PRETRAINED / name)
    size = sum(path.stat().st_size for path in (PRETRAINED / name).iterdir())
    if size > MAX_BYTES:
        raise SystemExit(f"{name} has {size:,} bytes, more than {MAX_BYTES:,}")
    print(f"{PRETRAINED / name}: {size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", action="store_true", help="put a record's figures on the card: NAME RECORD")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--data-licence", default="")
    parser.add_argument("--faults", default="none known")
    arguments = parser.parse_args()
    if arguments.figures:
        add_figures(arguments.source, Path(arguments.target))
    else:
        bundle(arguments.source, arguments.target, arguments.data_licence, arguments.faults)


if __name__ == "__main__":
    main()
