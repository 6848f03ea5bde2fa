"""The server: OpenAI's own client against a running one, the native API, limits, errors, and batches."""

from __future__ import annotations

import asyncio
import base64
import builtins
import gc
import io
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
import uvicorn
from PIL import Image

import chainrule
from chainrule import Pipeline
from chainrule.drawing import read_origin
from chainrule.drawing import repeat as draw_again
from chainrule.images import to_pil
from chainrule.larger import at_size
from chainrule.serving.app import create_app
from chainrule.serving.engine import Engine
from chainrule.serving.settings import Settings
from chainrule.serving.studio import SIZES
from chainrule.upscaling.upscaler import Upscaler, UpscalerConfig
from test_cli import SIDE, refused, tiny
from test_cli_text import build as text_pipeline
from test_larger import small
from test_prefixes import pipeline as drawn_from_edges

KEY = "a secret"


class Running:
    """A server in a thread of the test's process."""

    def __init__(self, settings: Settings) -> None:
        self.app = create_app(settings)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.server = uvicorn.Server(
            uvicorn.Config(self.app, port=port, log_level="error", timeout_graceful_shutdown=30)
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    @property
    def engine(self):
        return self.app.state.studio.engine

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def post(self, path: str, **body) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Pipeline]:
    folder = tmp_path_factory.mktemp("served")
    pipelines = {
        "plain": tiny(),
        "classes": tiny(3, null_label=True),
        "texts": text_pipeline(False),
        "joint": text_pipeline(True),
        "window": small(),
        "edges": drawn_from_edges(),
    }
    saved = {}
    for name, pipeline in pipelines.items():
        pipeline.save(folder / name)
        saved[str(folder / name)] = chainrule.load(folder / name)
    return saved


@pytest.fixture(scope="module")
def doubler(tmp_path_factory) -> tuple[str, Upscaler]:
    """An upscaler of grey images, which does more than interpolate."""
    folder = str(tmp_path_factory.mktemp("upscalers") / "doubler")
    torch.manual_seed(3)
    upscaler = Upscaler(UpscalerConfig(image_channels=1, num_blocks=1, width=16, expansion=1))
    torch.nn.init.normal_(upscaler.conv_out.weight, std=0.2)
    chainrule.save(upscaler, folder)
    return folder, chainrule.load(folder)


@pytest.fixture(scope="module")
def server(models, doubler):
    running = Running(
        Settings(
            models=tuple(models),
            upscalers=(doubler[0],),
            api_keys=(KEY,),
            page=False,
            max_n=5,
            max_bytes=100_000,
            max_upscaled=(4 * SIDE) ** 2,
        )
    )
    yield running
    running.stop()


def named(models: dict[str, Pipeline], name: str) -> tuple[str, Pipeline]:
    return next((path, pipeline) for path, pipeline in models.items() if path.endswith(name))


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def half_transparent(pixels: torch.Tensor) -> bytes:
    """An image (1, C, H, W) whose lower half is to be drawn."""
    image = to_pil(pixels)[0].convert("RGBA")
    alpha = np.full((image.height, image.width), 255, np.uint8)
    alpha[image.height // 2 :] = 0
    image.putalpha(Image.fromarray(alpha))
    return png_bytes(image)


# ---------------------------------------------------------------- OpenAI's client


def test_models_are_listed(server, models):
    client = server.client()
    assert [model.id for model in client.models.list()] == list(models)
    assert client.models.retrieve(next(iter(models))).owned_by == "chainrule"


def test_openai_generates_what_sample_draws(server, models, tmp_path):
    name, pipeline = named(models, "texts")
    found = server.client().images.generate(model=name, prompt="a red circle", n=2, extra_body={"seed": 7, "top_k": 2})
    expected = to_pil(pipeline.sample(2, text="a red circle", seed=7, top_k=2))
    assert [opened(one.b64_json).tobytes() for one in found.data] == [one.tobytes() for one in expected]
    assert found.usage.output_tokens == 2 * pipeline.tokenizer.spec.length
    for one in found.data:
        path = tmp_path / "one.png"
        path.write_bytes(base64.b64decode(one.b64_json))
        assert read_origin(path).texts == ("a red circle",) and str(read_origin(path).seeds[0]) == one.seed
        assert not draw_again(path).differences


def test_a_prompt_is_a_class_of_a_model_of_classes(server, models):
    name, pipeline = named(models, "classes")
    found = server.client().images.generate(model=name, prompt="Red fish", extra_body={"seed": 1, "guidance": 2})
    expected = pipeline.sample(1, "red fish", seed=1, guidance=2.0)
    assert opened(found.data[0].b64_json).tobytes() == to_pil(expected)[0].tobytes()


def test_the_best_of_several_is_kept(server, models):
    name, pipeline = named(models, "classes")
    found = server.client().images.generate(model=name, prompt="cat", n=2, extra_body={"seed": 1, "best_of": 3})
    expected = to_pil(pipeline.sample(2, "cat", seed=1, best_of=3))
    assert [opened(one.b64_json).tobytes() for one in found.data] == [one.tobytes() for one in expected]


def test_pictures_by_url(server, models):
    name, _ = named(models, "plain")
    url = server.client().images.generate(model=name, prompt="", response_format="url").data[0].url
    response = httpx.get(url)
    assert response.headers["content-type"] == "image/png" and Image.open(io.BytesIO(response.content)).size == (
        SIDE,
        SIDE,
    )
    assert httpx.get(url[:-8] + "aaaa.png").status_code == 404


def test_openai_streams_exact_partial_images(server, models):
    name, pipeline = named(models, "plain")
    stream = server.client().images.generate(
        model=name, prompt="", stream=True, partial_images=3, extra_body={"seed": 4}
    )
    events = list(stream)
    assert [one.type for one in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [one.partial_image_index for one in events[:3]] == [0, 1, 2]
    final = np.asarray(opened(events[-1].b64_json))
    assert final.tobytes() == to_pil(pipeline.sample(1, seed=4))[0].tobytes()
    for number, one in enumerate(events[:3], 1):
        partial = np.asarray(opened(one.b64_json)).reshape(-1)
        known = SIDE * SIDE * number // 4
        assert (partial[:known] == final.reshape(-1)[:known]).all() and (partial[known:] == 128).all()


@pytest.mark.parametrize("own_mask", [True, False])
def test_openai_edits_by_completion(server, models, own_mask):
    name, pipeline = named(models, "plain")
    image = tiny().sample(1, seed=9)
    masked = half_transparent(image)
    files = {"image": ("a.png", masked, "image/png")}
    if own_mask:
        files = {"image": ("a.png", png_bytes(to_pil(image)[0]), "image/png"), "mask": ("m.png", masked, "image/png")}
    found = server.client().images.edit(model=name, prompt="", n=2, extra_body={"seed": 3, "particles": 4}, **files)
    mask = torch.arange(SIDE)[:, None].expand(SIDE, SIDE) < SIDE // 2
    expected = to_pil(pipeline.complete(image[0], mask, 2, particles=4, seed=3))
    assert [opened(one.b64_json).tobytes() for one in found.data] == [one.tobytes() for one in expected]


def test_pictures_are_upscaled(server, models, doubler, tmp_path):
    (name, pipeline), (double, upscaler) = named(models, "plain"), doubler
    more = {"seed": 5, "upscalers": [double, double]}
    found = server.client().images.generate(model=name, prompt="", size=f"{4 * SIDE}x{4 * SIDE}", extra_body=more)
    drawn = pipeline.sample(1, seed=5)
    path = tmp_path / "large.png"
    path.write_bytes(base64.b64decode(found.data[0].b64_json))
    assert Image.open(path).tobytes() == to_pil(upscaler.upscale(upscaler.upscale(drawn)))[0].tobytes()
    assert not draw_again(path).differences
    small = base64.b64encode(png_bytes(to_pil(drawn)[0])).decode()
    value = server.post("/api/upscale", upscalers=[double], image=small).json()
    assert opened(value["png"]).tobytes() == to_pil(upscaler.upscale(drawn))[0].tobytes()
    best = server.post("/api/draw", model=name, seed=5, upscalers=[double], label=None).json()
    assert opened(best["images"][0]["png"]).tobytes() == opened(value["png"]).tobytes()


def test_a_stream_shows_partial_images_in_the_size_of_the_model(server, models, doubler):
    name, _ = named(models, "plain")
    image, more = ("a.png", half_transparent(tiny().sample(1, seed=9)), "image/png"), {"upscalers": doubler[0]}
    events = list(
        server.client().images.edit(model=name, image=image, prompt="", stream=True, partial_images=1, extra_body=more)
    )
    assert [opened(one.b64_json).width for one in events] == [SIDE, 2 * SIDE]


def test_openai_streams_an_edit(server, models):
    name, _ = named(models, "plain")
    image = ("a.png", half_transparent(tiny().sample(1, seed=9)), "image/png")
    events = list(server.client().images.edit(model=name, image=image, prompt="", stream=True, partial_images=1))
    assert [one.type for one in events] == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"model": "nope"}, openai.NotFoundError, "this server has no model 'nope'"),
        ({"size": "1024x1024"}, openai.BadRequestError, "this model draws images of 8x8"),
        ({"size": "16x16"}, openai.BadRequestError, "a model of pixels draws images of its own size only"),
        ({"size": "large"}, openai.BadRequestError, "size must be auto, or width x height as 64x64"),
        ({"prompt": "a dog"}, openai.BadRequestError, "which it would ignore"),
        ({"n": 6}, openai.BadRequestError, "n must be at most 5"),
        ({"n": 0}, openai.BadRequestError, "n: Input should be greater than or equal to 1"),
        ({"extra_body": {"colour": 1}}, openai.BadRequestError, "colour: Extra inputs are not permitted"),
        ({"extra_body": {"label": 1}}, openai.BadRequestError, "this model has no classes"),
        ({"extra_body": {"guidance": 2}}, openai.BadRequestError, "guidance needs a model"),
        ({"extra_body": {"precision": "int8"}}, openai.BadRequestError, "decodes in float32 only"),
        ({"partial_images": 2}, openai.BadRequestError, "partial_images needs stream"),
        ({"extra_body": {"reranker": "x", "best_of": 2}}, openai.BadRequestError, "this server has: none"),
        ({"extra_body": {"upscalers": ["x"]}}, openai.NotFoundError, "this server has no upscaler 'x'; it has: "),
    ],
)
def test_errors_are_one_sentence_in_openais_format(server, models, options, error, sentence):
    name, _ = named(models, "plain")
    with pytest.raises(error) as caught:
        server.client().images.generate(**({"model": name, "prompt": ""} | options))
    assert sentence in caught.value.body["message"] and caught.value.body["type"]


def test_a_stream_that_fails_ends_with_an_error(server, models):
    name, _ = named(models, "plain")
    with pytest.raises(openai.APIError, match="decodes in float32 only"):
        list(server.client().images.generate(model=name, prompt="", stream=True, extra_body={"precision": "int8"}))


def test_edits_that_cannot_be(server, models):
    name, _ = named(models, "plain")
    client, opaque = server.client(), png_bytes(to_pil(tiny().sample(1))[0])
    for image, sentence in [
        (opaque, "nothing says what to draw"),
        (b"no picture", "image is no picture"),
        (png_bytes(Image.new("RGBA", (9, 8))), "image is 9x8, but this model needs 8x8"),
    ]:
        with pytest.raises(openai.BadRequestError, match=sentence):
            client.images.edit(model=name, image=("a.png", image, "image/png"), prompt="")


# ---------------------------------------------------------------- the native API


def test_native_draws_by_label(server, models):
    name, pipeline = named(models, "classes")
    value = server.post("/api/draw", model=name, label="dog", seeds=[3, 4], temperature=0.8).json()
    expected = to_pil(pipeline.sample(2, "dog", seed=[3, 4], temperature=0.8))
    assert [opened(one["png"]).tobytes() for one in value["images"]] == [one.tobytes() for one in expected]
    assert [one["seed"] for one in value["images"]] == ["3", "4"] and value["drawing"]["labels"] == [1, 1]


@pytest.mark.parametrize("white", [None, 255, 1])
def test_native_completes(server, models, white):
    """By the image's alpha, or by a mask as the command line reads it: of two values the larger is known."""
    name, pipeline = named(models, "plain")
    image = tiny().sample(1, seed=9)
    mask = torch.arange(SIDE)[:, None].expand(SIDE, SIDE) < SIDE // 2
    given = {"image": base64.b64encode(half_transparent(image)).decode()}
    if white is not None:
        picture = Image.fromarray((mask.numpy() * white).astype(np.uint8))
        given["image"] = base64.b64encode(png_bytes(to_pil(image)[0])).decode()
        given["mask"] = base64.b64encode(png_bytes(picture)).decode()
    value = server.post("/api/draw", model=name, seed=3, particles=1, paste=True, **given).json()
    expected = to_pil(pipeline.complete(image[0], mask, 1, paste=True, seed=3))
    assert opened(value["images"][0]["png"]).tobytes() == expected[0].tobytes()


def test_native_varies(server, models, tmp_path):
    name, pipeline = named(models, "classes")
    image = tiny().sample(1, seed=9)
    given = {"model": name, "image": base64.b64encode(png_bytes(to_pil(image)[0])).decode(), "label": "dog"}
    value = server.post("/api/draw", seed=3, n=2, strength=0.3, **given).json()
    expected = to_pil(chainrule.vary(pipeline, image[0], 0.3, 2, label="dog", seed=3))
    assert [opened(one["png"]).tobytes() for one in value["images"]] == [one.tobytes() for one in expected]
    path = tmp_path / "varied.png"
    path.write_bytes(base64.b64decode(value["images"][1]["png"]))
    assert not draw_again(path).differences
    for more, sentence in [
        ({"mask": given["image"]}, "leave mask and paste out"), ({"best_of": 2}, "not of completions"),
        ({"size": [16, 16]}, "pictures are completed and varied at 8x8"), ({"image": None}, "send the image too"),
    ]:  # fmt: skip
        assert sentence in server.post("/api/draw", **given | {"strength": 0.3} | more).json()["error"]["message"]


def test_native_draws_from_an_image(server, models, tmp_path):
    name, pipeline = named(models, "edges")
    photos = torch.randint(0, 256, (3, *pipeline.tokenizer.image_shape), dtype=torch.uint8)
    pictures = [base64.b64encode(png_bytes(one)).decode() for one in to_pil(photos)]
    half = base64.b64encode(half_transparent(photos[:1])).decode()
    mask = torch.arange(photos.shape[2])[:, None].expand(photos.shape[2:]) < photos.shape[2] // 2
    given = [{"seed": i, "prefix": f"data:image/png;base64,{one}", "n": 2} for i, one in enumerate(pictures)]
    given.append({"seed": 3, "prefix": pictures[1], "image": half})
    given.append({"seed": 4, "image": pictures[0], "strength": 0.5})
    expected = [pipeline.sample(2, prefix=photo, seed=seed) for seed, photo in enumerate(photos)]
    expected.append(pipeline.complete(photos[0], mask, particles=8, prefix=photos[1], seed=3))
    expected.append(chainrule.vary(pipeline, photos[0], 0.5, seed=4))
    with ThreadPoolExecutor(len(given)) as pool:
        answers = [one.json() for one in pool.map(lambda body: server.post("/api/draw", model=name, **body), given)]
    for answer, images in zip(answers, expected, strict=True):
        assert [opened(one["png"]).tobytes() for one in answer["images"]] == [one.tobytes() for one in to_pil(images)]
        path = tmp_path / "one.png"
        path.write_bytes(base64.b64decode(answer["images"][-1]["png"]))
        assert not draw_again(path).differences and answer["drawing"]["prefix"] is None
    client = server.client().images.generate(model=name, prompt="", extra_body={"seed": 1, "prefix": pictures[1]})
    assert opened(client.data[0].b64_json).tobytes() == to_pil(expected[1])[0].tobytes()
    for body, sentence in [
        ({"model": name}, "this model draws from an image (edges): give one as prefix"),
        ({"model": name, "prefix": base64.b64encode(png_bytes(Image.new("L", (9, 8)))).decode()}, "prefix is 9x8, but"),
        (given[-1] | {"model": name, "prefix": pictures[0]}, "a variation is drawn from its own image"),
        ({"prefix": pictures[0]}, "this model does not draw from an image: leave prefix out"),
    ]:
        assert sentence in server.post("/api/draw", **body).json()["error"]["message"]


def test_larger_images_where_the_model_allows_them(server, models, tmp_path):
    name, pipeline = named(models, "window")
    _, height, width = pipeline.tokenizer.image_shape
    expected = to_pil(at_size(pipeline, height, 2 * width).sample(2, seed=3))
    size = f"{2 * width}x{height}"
    found = server.client().images.generate(model=name, prompt="", n=2, size=size, extra_body={"seed": 3})
    assert found.size == size and found.usage.output_tokens == 2 * 2 * pipeline.tokenizer.spec.length
    assert [opened(one.b64_json).tobytes() for one in found.data] == [one.tobytes() for one in expected]
    path = tmp_path / "wide.png"
    path.write_bytes(base64.b64decode(found.data[1].b64_json))
    assert not draw_again(path).differences
    native = server.post("/api/draw", model=name, size=[height, 2 * width], n=2, seed=3).json()
    assert opened(native["images"][1]["png"]).tobytes() == expected[1].tobytes()
    stream = server.client().images.generate(
        model=name, prompt="", size=size, stream=True, partial_images=1, extra_body={"seeds": read_origin(path).seeds}
    )
    assert [opened(one.b64_json).tobytes() for one in stream][1] == expected[1].tobytes()


def test_models_at_few_other_sizes_are_kept(server, models):
    name, pipeline = named(models, "window")
    _, height, width = pipeline.tokenizer.image_shape
    for times in range(2, 3 + SIZES):
        assert server.post("/api/draw", model=name, size=[height, times * width]).status_code == 200
    gc.collect()
    assert len(server.engine._packed) <= len(models) + SIZES


def test_native_scores_encodes_and_decodes(server, models, doubler):
    name, pipeline = named(models, "classes")
    image = tiny().sample(1, seed=2)
    data = base64.b64encode(png_bytes(to_pil(image)[0])).decode()
    scores = server.post("/api/score", model=name, image=data, label="cat").json()
    assert scores["nats"] == pytest.approx(-pipeline.log_prob(image, "cat").item(), rel=1e-5)
    assert opened(scores["map"]).size == (SIDE, SIDE) and len(scores["surprise"]) == SIDE
    codes = server.post("/api/encode", model=name, image=data).json()["codes"]
    assert torch.equal(torch.tensor(codes[0])[None], pipeline.tokenizer.encode(image)[0])
    for path, body in (("decode", {"codes": codes}), ("reconstruct", {"image": data})):
        value = server.post(f"/api/{path}", model=name, **body).json()
        assert opened(value["png"]).tobytes() == to_pil(pipeline.reconstruct(image))[0].tobytes()
    assert server.post("/api/decode", model=name, codes=[[[["x"]]]]).status_code == 400
    assert server.post("/api/decode", model=name, codes=[[[[9]]]]).status_code == 400
    large = base64.b64encode(png_bytes(Image.new("L", (3 * SIDE, 2 * SIDE)))).decode()
    refusal = server.post("/api/upscale", upscalers=[doubler[0]], image=large)
    assert refusal.status_code == 400 and "at most 1,024 pixels" in refusal.json()["error"]["message"]
    described = httpx.get(f"{server.url}/api/models", headers={"Authorization": f"Bearer {KEY}"}).json()["models"]
    assert described[name]["class_names"] == ["cat", "dog", "red fish"] and described[name]["image_prefix"] == "none"
    assert described[named(models, "edges")[0]]["image_prefix"] == "edges"
    assert [Path(path).name for path, one in described.items() if one["resizable"]] == ["window"]


# ---------------------------------------------------------------- operation


def test_health_metrics_and_schema(server):
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    text = httpx.get(f"{server.url}/metrics").text
    assert 'chainrule_requests_total{route="/healthz",status="200"}' in text and "chainrule_rows 0.0" in text
    schema = httpx.get(f"{server.url}/openapi.json").json()
    assert {"/v1/images/generations", "/v1/images/edits", "/api/draw", "/healthz"} <= set(schema["paths"])


def test_keys_ids_and_limits(server):
    with pytest.raises(openai.AuthenticationError):
        server.client("wrong").models.list()
    response = httpx.get(f"{server.url}/healthz", headers={"X-Request-ID": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1" and "access-control-allow-origin" not in response.headers
    assert server.post("/api/draw", text="x" * 200_000).status_code == 413
    chunks = (b"x" * 50_000 for _ in range(4))
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    long = httpx.post(f"{server.url}/api/draw", content=chunks, headers=headers)
    assert long.status_code == 413 and long.json()["error"]["message"].startswith("the body may have at most")
    broken = httpx.post(f"{server.url}/api/draw", content=b"{", headers=headers)
    assert broken.status_code == 400 and broken.json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{server.url}/v2/nothing").json()["error"]["type"] == "not_found_error"


def test_many_clients_receive_the_pictures_that_each_would_receive_alone(server, models):
    towards = {"classes": {"label": "dog"}, "texts": {"text": "a red circle"}, "joint": {"text": "a square"}}

    def wish(seed: int) -> dict:
        name = list(models)[seed % 5]
        given = towards.get(Path(name).name, {}) if seed % 3 else {}
        given = given | {"guidance": 1.0 + seed % 3} if given else given
        return {"model": name, "seed": seed, "temperature": 0.5 + 0.1 * (seed % 4), "n": 1 + seed % 3} | given

    wishes = [wish(seed) for seed in range(24)]
    gate = Gate(server.engine)  # so that all of them start together
    with ThreadPoolExecutor(len(wishes)) as pool:
        coming = [pool.submit(server.post, "/api/draw", **one) for one in wishes]
        while server.engine.pending < sum(one["n"] for one in wishes):
            time.sleep(0.01)
        gate.open.set()
        answers = [one.result().json() for one in coming]
    for one, answer in zip(wishes, answers, strict=True):
        expected = to_pil(models[one.pop("model")].sample(**one))
        assert [opened(one["png"]).tobytes() for one in answer["images"]] == [one.tobytes() for one in expected]
    assert server.engine.pending == 0 and server.engine.num_rows == 0


class Gate:
    """Holds the drawing thread, so that a test decides when codes are drawn."""

    def __init__(self, engine) -> None:
        self.held, self.open = threading.Event(), threading.Event()
        engine._inbox.put(lambda: (self.held.set(), self.open.wait(60)))
        assert self.held.wait(60)


def test_codes_that_wait_are_decoded_in_one_batch(models, monkeypatch):
    (_, pipeline), engine, opened, sizes = named(models, "plain"), Engine(), threading.Event(), []
    decode = pipeline.decode
    monkeypatch.setattr(pipeline, "decode", lambda codes: (sizes.append(len(codes[0])), decode(codes))[1])
    codes = [pipeline.tokenizer.encode(pipeline.sample(count, seed=count)) for count in (1, 2, 3)]
    wrong = (codes[0][0].float(),)
    sizes.clear()

    async def ask(given):
        held = engine.compute(opened.wait, 60)
        tasks = [asyncio.ensure_future(one) for one in (held, *(engine.decode(pipeline, one) for one in given))]
        await asyncio.sleep(0.05)
        tasks[2].cancel()
        opened.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    _, first, left, last = asyncio.run(ask(codes))
    assert sizes == [4] and isinstance(left, asyncio.CancelledError)
    for found, expected in ((first, codes[0]), (last, codes[2])):
        assert torch.equal(found, decode(expected))
    opened.clear()
    assert all(isinstance(one, ValueError) for one in asyncio.run(ask([wrong, wrong, wrong]))[1::2])
    engine.close()


def test_more_than_the_queue_takes_is_refused(models):
    name, _ = named(models, "plain")
    running = Running(Settings(models=(name,), page=False, max_rows=2, max_waiting=1))
    gate = Gate(running.engine)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.post, "/api/draw", n=3)
        while running.engine.pending < 3:
            time.sleep(0.01)
        refusal = running.post("/api/draw")
        assert refusal.status_code == 429 and refusal.headers["retry-after"] == "2"
        assert refusal.json()["error"]["code"] == "rate_limit_exceeded"
        running.server.should_exit = True  # what was begun is finished
        time.sleep(0.1)
        gate.open.set()
        assert first.result().status_code == 200
    running.stop()


def test_a_client_that_leaves_frees_its_place(server, models):
    name, _ = named(models, "plain")
    gate = Gate(server.engine)
    for stream in (False, True):
        body = {"model": name, "prompt": "", "n": 4, "stream": stream}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/v1/images/generations",
                json=body,
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=0.3,
            )
    while server.engine.pending:
        time.sleep(0.01)
    gate.open.set()
    assert server.post("/api/draw", model=name).status_code == 200


def test_what_takes_too_long_is_given_up(models):
    name, _ = named(models, "plain")
    running = Running(Settings(models=(name,), page=False, timeout=0.2))
    gate = Gate(running.engine)
    response = running.post("/api/draw")
    assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
    gate.open.set()
    running.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_several_workers_edit_and_draw_and_share_pictures_by_url(models, tmp_path):
    (name, pipeline), log = named(models, "plain"), tmp_path / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    words = ["serve", name, "--port", url.rpartition(":")[2], "--workers", "2", "--threads", "1", "--no-page"]
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "chainrule", *words], stderr=file)
    image = tiny().sample(1, seed=9)
    masked = half_transparent(image)
    mask = torch.arange(SIDE)[:, None].expand(SIDE, SIDE) < SIDE // 2

    def ask(seed: int) -> tuple[bytes, bytes]:
        """An edit, and a picture by its address, each over a connection of its own, and so by any of the workers."""
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=9) as client:
            more = {"extra_body": {"seed": seed, "particles": 3}}
            edit = client.images.edit(model=name, image=("a.png", masked, "image/png"), prompt="", **more)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            address = client.images.generate(
                model=name, prompt="", response_format="url", extra_body={"seed": seed}
            )  # fmt: skip
        drawn = Image.open(io.BytesIO(httpx.get(address.data[0].url).content))
        return opened(edit.data[0].b64_json).tobytes(), drawn.tobytes()

    try:
        while not _answers(f"{url}/readyz"):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(24)))
        for seed, (edit, drawn) in enumerate(answers):
            assert edit == to_pil(pipeline.complete(image[0], mask, particles=3, seed=seed))[0].tobytes()
            assert drawn == to_pil(pipeline.sample(seed=seed))[0].tobytes()
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()


def test_the_command_line_says_what_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "chainrule.serving.app")
    assert "pip install 'chainrule[server]'" in refused("serve", "mnist_pixelcnn")


def test_the_example_of_the_documentation_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```py\n(.*?)```", page, re.DOTALL) if "OpenAI" in block)
    Image.new("RGBA", (64, 64)).save("mask.png")
    running = Running(Settings(models=("emoji_parti",), page=False))
    exec(compile(code.replace("http://127.0.0.1:8000", running.url), "block", "exec"), {})
    running.stop()
    assert not draw_again("frog.png").differences and Image.open("growing.png").size == (64, 64)
