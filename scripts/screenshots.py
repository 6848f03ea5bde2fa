"""Takes the screenshots that the documentation shows: needs Debian's Chromium.

python scripts/screenshots.py                      # of the server's page
python scripts/screenshots.py timeline/index.html  # of the page that `chainrule timeline` wrote
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from serve import Server  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"


def draw(page: Page, url: str) -> None:
    """Opens the page and draws four frogs."""
    page.goto(url)
    page.wait_for_selector("#draw")
    page.wait_for_timeout(2000)
    page.locator("#prompt textarea, #prompt input").first.fill("frog, twemoji style")
    page.locator("#seeds textarea, #seeds input").first.fill("3")
    page.click("#draw")
    page.get_by_text("seed ").nth(3).wait_for(timeout=120_000)
    page.wait_for_timeout(2000)


def timeline(file: str) -> None:
    """The head of the page of the timeline, and the section of VQGAN on a phone."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1500})
        page.goto(Path(file).resolve().as_uri())
        page.screenshot(path=PICTURES / "timeline.png")
        page = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark").new_page()
        page.goto(Path(file).resolve().as_uri())
        page.evaluate("document.getElementById('vqgan').scrollIntoView()")
        page.screenshot(path=PICTURES / "timeline-phone.png")
        browser.close()


def main() -> None:
    with Server(["emoji_parti", "mnist_diagonal_bilstm"], threads=1) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 940})
        draw(page, server.url)
        page.screenshot(path=PICTURES / "page-draw.png")
        page.get_by_role("tab", name="Complete").click()
        page.get_by_text("Take the first picture drawn").click()
        page.wait_for_timeout(3000)
        page.get_by_label("bottom half").click()
        page.click("#complete")
        page.locator("#completions").get_by_text("seed ").nth(3).wait_for(timeout=120_000)
        page.wait_for_timeout(2000)
        page.screenshot(path=PICTURES / "page-complete.png", full_page=True)
        phone = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
        page = phone.new_page()
        draw(page, server.url)
        page.screenshot(path=PICTURES / "page-phone.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    timeline(sys.argv[1]) if sys.argv[1:] else main()
