"""The page: what its buttons do, and, with the mark slow, the same in a browser."""

from __future__ import annotations

import asyncio
import re

import gradio
import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import chainrule
from chainrule.decoding import image_seeds
from chainrule.drawing import read_origin, repeat
from chainrule.images import to_pil
from chainrule.larger import at_size
from chainrule.serving.page import HALVES, PAINTED, Page
from chainrule.serving.settings import Settings
from chainrule.serving.store import Store
from chainrule.serving.studio import Studio
from chainrule.upscaling.upscaler import Upscaler, UpscalerConfig
from test_cli import SIDE, tiny
from test_cli_text import build as text_pipeline
from test_larger import small
from test_prefixes import pipeline as drawn_from_edges
from test_serving import Running

OPTIONS = {
    "text": "", "label": None, "prefix": None, "seeds": "5", "n": 2, "best_of": 1, "negative": "", "guidance": 1,
    "temperature": 1, "top_k": 0, "top_p": 1, "upscalers": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("page")
    tiny().save(folder / "plain")
    tiny(3).save(folder / "classes")
    text_pipeline(joint=False).save(folder / "texts")
    small().save(folder / "window")
    drawn_from_edges().save(folder / "edges")
    return {name: str(folder / name) for name in ("plain", "classes", "texts", "window", "edges")}


@pytest.fixture(scope="module")
def page(folders):
    settings = Settings(models=tuple(folders.values()))
    studio = Studio.open(settings)
    yield Page(studio, settings, Store())
    studio.engine.close()


def inputs(model: str, **given) -> list:
    return [model, *(OPTIONS | given).values()]


def drawn(page: Page, model: str, height=None, width=None, **given) -> list:
    return outcomes(page.draw([], height, width, *inputs(model, **given)))


def shown_as(items, images: torch.Tensor) -> bool:
    """Whether the pictures of a gallery are these images, and can be drawn again."""
    return [Image.open(path).tobytes() for path, _ in items] == [one.tobytes() for one in to_pil(images)] and not any(
        repeat(path).differences for path, _ in items
    )


def outcomes(generator) -> list:
    async def collect():
        return [one async for one in generator]

    return asyncio.run(collect())


def test_pictures_grow_and_say_how_they_were_drawn(page, folders):
    shown = drawn(page, folders["texts"], text="a red circle", guidance=2.0)
    expected = to_pil(text_pipeline(False).sample(2, text="a red circle", guidance=2.0, seed=5))
    items, history = shown[-1]
    assert len(shown) > 5 and history == items and [len(one) for one, _ in shown] == [2] * len(shown)
    for (path, caption), picture in zip(items, expected, strict=True):
        assert Image.open(path).tobytes() == picture.tobytes() and not repeat(path).differences
        assert caption == f"seed {read_origin(path).seeds[0]}"
    first = np.asarray(Image.open(shown[0][0][0][0]))
    assert (first == 128).mean() > 0.5, "what is not yet drawn is grey"


def test_a_class_is_chosen_and_the_best_kept(page, folders):
    items, _ = drawn(page, folders["classes"], label="dog", best_of=3)[-1]
    assert shown_as(items, tiny(3).sample(2, "dog", best_of=3, seed=5))


def test_larger_pictures_are_drawn_where_the_model_allows_them(page, folders):
    model = small()
    _, height, width = model.tokenizer.image_shape
    items, _ = drawn(page, folders["window"], height, 2 * width)[-1]
    assert shown_as(items, at_size(model, height, 2 * width).sample(2, seed=5))
    items, _ = drawn(page, folders["plain"], height, 2 * width)[-1]  # what is not shown for a model does not count
    assert shown_as(items, tiny().sample(2, seed=5))
    with pytest.raises(gradio.Error, match="this server draws at most"):
        drawn(page, folders["window"], 4096, 4096)


def test_pictures_are_drawn_from_an_image(page, folders):
    model = drawn_from_edges()
    photos = torch.randint(0, 256, (2, *model.tokenizer.image_shape), dtype=torch.uint8)
    one, other = to_pil(photos)
    items, _ = drawn(page, folders["edges"], prefix=one)[-1]
    assert shown_as(items, model.sample(2, prefix=photos[0], seed=5))
    with pytest.raises(gradio.Error, match="This model draws from an image"):
        drawn(page, folders["edges"])
    left, right, _ = outcomes(page.compare([], folders["plain"], *inputs(folders["edges"], prefix=one)))[-1]
    assert shown_as(left, model.sample(2, prefix=photos[0], seed=5)) and shown_as(right, tiny().sample(2, seed=5))
    editor = {"background": other.convert("RGBA"), "layers": []}
    items, _ = outcomes(page.complete([], editor, "left half", 1, False, *inputs(folders["edges"], prefix=one)))[-1]
    mask = torch.arange(4).expand(3, 4) >= 2
    assert shown_as(items, model.complete(photos[1], mask, 2, prefix=photos[0], seed=5))
    items, _ = outcomes(page.vary([], other, 0.5, 1, *inputs(folders["edges"], prefix=one)))[-1]
    assert shown_as(items, chainrule.vary(model, photos[1], 0.5, 2, seed=5))


def test_a_picture_is_varied(page, folders):
    picture = to_pil(tiny().sample(1, seed=9))[0]
    shown = outcomes(page.vary([], picture, 0.3, 2, *inputs(folders["classes"], label="dog")))
    items, history = shown[-1]
    expected = chainrule.vary(tiny(3), tiny().sample(1, seed=9)[0], 0.3, 2, label="dog", particles=2, seed=5)
    assert shown_as(items, expected) and history == items
    with pytest.raises(gradio.Error, match="Best of several is kept of images"):
        outcomes(page.vary([], picture, 0.3, 1, *inputs(folders["classes"], label="dog", best_of=2)))


@pytest.mark.parametrize("where", [PAINTED, *HALVES])
def test_a_picture_is_completed(page, folders, where):
    background = to_pil(tiny().sample(1, seed=9))[0].convert("RGBA")
    layer = Image.new("RGBA", background.size)
    layer.paste((255, 0, 0, 255), (0, SIDE // 2, SIDE, SIDE))
    editor = {"background": background, "layers": [layer], "composite": background}
    items, _ = outcomes(page.complete([], editor, where, 3, True, *inputs(folders["plain"])))[-1]
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    half = SIDE // 2
    if where in (PAINTED, "bottom half"):
        mask[half:] = False
    elif where == "top half":
        mask[:half] = False
    else:
        mask[:, slice(half, None) if where == "right half" else slice(half)] = False
    image = tiny().sample(1, seed=9)[0]
    expected = to_pil(tiny().complete(image, mask, 2, particles=3, paste=True, seed=5))
    assert [Image.open(path).tobytes() for path, _ in items] == [one.tobytes() for one in expected]


def test_a_picture_is_examined(page, folders):
    picture = to_pil(tiny().sample(1, seed=9))[0]
    read, rebuilt, surprise, words, codes = asyncio.run(page.examine(picture, folders["plain"], "ignored", None))
    for one in (read, rebuilt):
        assert one.resize(picture.size, Image.Resampling.NEAREST).tobytes() == picture.tobytes()
    nats = -tiny().log_prob(tiny().sample(1, seed=9)).item()
    assert f"{nats:.2f} nats" in words and len(codes.splitlines()) == SIDE and surprise.mode == "RGB"


def test_two_models_are_compared_on_the_same_seeds(page, folders):
    left, right, history = outcomes(page.compare([], folders["classes"], *inputs(folders["classes"], label="cat")))[-1]
    assert [caption for _, caption in left] == [caption for _, caption in right] and len(history) == 4
    with pytest.raises(gradio.Error, match=r"(?i)conditioned on a class"):
        outcomes(page.compare([], folders["classes"], *inputs(folders["plain"])))


def test_errors_are_shown_as_one_sentence(page, folders):
    for model, given, sentence in [
        ("plain", {"seeds": "x"}, "Seeds must be whole numbers"),
        ("plain", {"guidance": 2}, "Guidance needs"),
        ("classes", {}, "conditioned on a class"),
    ]:
        with pytest.raises(gradio.Error, match=sentence):
            drawn(page, folders[model], **given)
    nothing = inputs(folders["plain"])
    for generator in (page.complete([], None, PAINTED, 1, False, *nothing), page.vary([], None, 0.4, 1, *nothing)):
        with pytest.raises(gradio.Error, match="Choose a picture first"):
            outcomes(generator)


def test_pictures_are_upscaled_where_the_model_fits(folders, tmp_path):
    double, colour = str(tmp_path / "double"), str(tmp_path / "colour")
    chainrule.save(Upscaler(UpscalerConfig(image_channels=1, num_blocks=1, width=4, expansion=1)), double)
    tiny(channels=3).save(colour)
    settings = Settings(models=(folders["plain"], colour), upscalers=(double,))
    studio = Studio.open(settings)
    page, given = Page(studio, settings, Store()), inputs(folders["plain"], upscalers=[double])
    items, _ = outcomes(page.draw([], None, None, *given))[-1]
    assert [Image.open(path).size for path, _ in items] == 2 * [(2 * SIDE, 2 * SIDE)]
    assert not repeat(items[0][0]).differences
    left, right, _ = outcomes(page.compare([], colour, *given))[-1]
    assert [Image.open(one[0][0]).width for one in (left, right)] == [2 * SIDE, SIDE]
    studio.engine.close()


def test_inputs_are_those_of_the_model(page, folders):
    visible = {name: [one["visible"] for one in page.choices(path)] for name, path in folders.items()}
    assert visible == {
        "plain": [False, False, False, False, False, False, False],
        "classes": [False, True, False, False, False, False, False],
        "texts": [True, False, False, True, True, False, False],
        "window": [False, False, False, False, False, True, True],
        "edges": [False, False, True, False, False, False, False],
    }  # fmt: skip
    assert page.choices(folders["edges"])[2]["label"] == "Draw from the edges of this picture"
    assert [one["value"] for one in page.choices(folders["window"])[5:]] == list(small().tokenizer.image_shape[1:])


def test_the_page_says_what_a_model_is(page, folders, monkeypatch):
    name = folders["plain"]
    assert page.about(name).endswith(f", {SIDE}x{SIDE} pixels, {SIDE * SIDE} codes.")
    monkeypatch.setitem(page.studio.models[name].pipeline.card, "known_faults", "all is grey")
    assert page.about(name).endswith("codes. Known faults: all is grey")
    assert page.about(folders["window"]).endswith("codes. It draws larger pictures, too.")
    assert page.about(folders["edges"]).endswith("codes. It draws from the edges of a picture.")


def test_the_page_loads_nothing_from_elsewhere(folders):
    running = Running(Settings(models=(folders["plain"],)))
    html = httpx.get(running.url).text
    assert "chainrule" in html
    for tag in re.findall(r"<(?:script|link|img)[^>]+>", html):
        assert "//" not in tag.replace(running.url, ""), tag
    assert "//fonts." not in httpx.get(f"{running.url}/theme.css").text
    assert httpx.get(f"{running.url}/v1/models").status_code == 200
    running.stop()


def test_the_page_asks_for_a_key_where_the_server_has_keys(folders):
    running = Running(Settings(models=(folders["plain"],), api_keys=("secret",)))
    assert httpx.get(f"{running.url}/config").status_code == 401
    wrong, right = (
        httpx.post(f"{running.url}/login", data={"username": "me", "password": word}) for word in ("no", "secret")
    )
    assert (wrong.status_code, right.status_code) == (400, 200)
    running.stop()


def test_demo_is_the_same_page():
    page = chainrule.demo(tiny())
    assert isinstance(page, gradio.Blocks) and "theme" in page.launch.keywords


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def browser(folders, chromium):
    """Chromium, and a server to look at."""
    running = Running(Settings(models=tuple(folders.values())))
    yield chromium, running.url
    running.stop()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_drawn_by_keyboard_on_a_phone(browser, scheme, tmp_path):
    chromium, url = browser
    context = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    page, asked, problems = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#draw")
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
    page.get_by_label("Seeds").focus()
    page.keyboard.type("7")
    for _ in range(30):  # to the button by the tabulator alone
        if page.evaluate("document.activeElement.id") == "draw":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text(f"seed {image_seeds(7, 1)[0]}").first.wait_for(timeout=60_000)
    page.locator("button.thumbnail-item").first.click()
    with page.expect_download() as download:
        page.get_by_label("Download", exact=False).first.click()
    download.value.save_as(tmp_path / "picture.png")
    assert not repeat(tmp_path / "picture.png").differences
    assert all(one.startswith((url, "data:", "blob:")) for one in asked) and not problems
    context.close()


@pytest.mark.slow
def test_a_mask_is_painted_with_the_mouse(browser):
    chromium, url = browser
    page = chromium.new_page()
    page.goto(url)
    page.wait_for_selector("#draw")
    page.click("#draw")
    page.get_by_text("seed ", exact=False).first.wait_for(timeout=60_000)
    page.get_by_role("tab", name="Complete").click()
    page.get_by_text("Take the first picture drawn").click()
    page.wait_for_timeout(2000)
    box = page.locator("#editor canvas").last.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 40, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.click("#complete")
    page.locator("#completions img").first.wait_for(timeout=60_000)
    page.close()


@pytest.mark.slow
def test_a_picture_is_uploaded_drawn_from_and_varied(browser, tmp_path):
    chromium, url = browser
    to_pil(torch.randint(0, 256, (1, 3, 9, 12), dtype=torch.uint8))[0].save(tmp_path / "photo.png")
    page = chromium.new_page()
    page.goto(url)
    page.wait_for_selector("#draw")
    assert not page.locator("#prefix").is_visible() and not page.locator("#height").is_visible()
    page.locator("#model input").click()
    page.get_by_role("option", name="edges").click()
    page.locator("#prefix input[type=file]").set_input_files(tmp_path / "photo.png")
    page.locator("#prefix img").wait_for(timeout=60_000)
    page.click("#draw")
    page.get_by_text(re.compile(r"seed \d")).first.wait_for(timeout=60_000)
    page.get_by_role("tab", name="Vary").click()
    page.get_by_text("Take the first picture drawn").last.click()
    page.locator("#varied img").wait_for(timeout=60_000)
    page.click("#vary")
    page.locator("#variations").get_by_text(re.compile(r"seed \d")).first.wait_for(timeout=60_000)
    page.locator("#model input").click()
    page.get_by_role("option", name="window").click()
    page.get_by_role("tab", name="Draw").click()
    page.locator("#height input").wait_for(timeout=60_000)
    page.close()
