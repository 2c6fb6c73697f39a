"""The viewer and the page of `ask --report` in Chromium: `make view-test`.

Skipped where TOKENSIEVE_BROWSER does not name a Chromium, or playwright or gradio is missing.
SHOTS=FOLDER keeps pictures of what was seen.
"""

import os
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

BROWSER = os.environ.get("TOKENSIEVE_BROWSER", "")
pytestmark = pytest.mark.skipif(not BROWSER, reason="TOKENSIEVE_BROWSER names no Chromium")
pytest.importorskip("gradio")
api = pytest.importorskip("playwright.sync_api")

from tokensieve.evaluate.ask import Settings  # noqa: E402
from tokensieve.view.app import build, launch  # noqa: E402
from tokensieve.view.look import Look  # noqa: E402
from tokensieve.view.report import write_report  # noqa: E402
from tokensieve.view.viewer import Viewer  # noqa: E402

OWN = ("http://127.0.0.1", "data:", "blob:", "file:")
PHONE = {"width": 390, "height": 844}
EVIL = 'What is KR?<img src=x onerror="window.hit=1"><script>window.hit=1</script>${window.hit=1}'
SETTINGS = Settings(keep=0.2, max_new_tokens=4, options={"seed": 0})


@pytest.fixture(scope="module")
def address(loaded):
    page = build(Viewer(loaded, SETTINGS), ["selector", "random", "full"])
    yield launch(page, "127.0.0.1", None, wait=False)
    page.close()


@pytest.fixture(scope="module")
def chromium():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """A page whose errors, and whatever it asks of other hosts, fail the test."""
    opened = []

    def make(where, **options):
        context = chromium.new_context(**{"viewport": {"width": 1240, "height": 1000}, **options})
        page = context.new_page()
        page.set_default_timeout(60_000)
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: line.type == "error" and wrong.append(line.text))
        page.on("request", lambda request: request.url.startswith(OWN) or wrong.append(request.url))
        page.goto(where)
        opened.append((context, wrong))
        return page

    yield make
    for context, wrong in opened:
        context.close()
        assert wrong == []


def keep_shot(page, name):
    if folder := os.environ.get("SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def ask(page, question, example="cluttered"):
    if example:
        page.locator("#drop button", has_text=example).click()
        api.expect(page.locator("#drop button[aria-pressed=true]")).to_contain_text(example)
    page.locator("#question textarea").fill(question)
    page.locator("#ask").click()
    api.expect(page.locator("#live h1")).to_have_text(question)


def answers(page):
    return page.locator(".card .answer").all_inner_texts()


def slide(page, stop):
    page.locator(".slide input").evaluate(
        "(range, stop) => { range.value = stop; range.dispatchEvent(new Event('input')); }", stop
    )


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_question_a_slider_and_a_token(tab, address):
    page = tab(address)
    ask(page, "What is KR?")
    assert answers(page)[0] == "620"
    assert answers(page)[2] == "620"
    slide(page, 0)
    api.expect(page.locator(".card dd").first).to_have_text("13 of 256")
    api.expect(page.locator(".card.waits")).to_have_count(0)
    page.locator("canvas").first.hover(position={"x": 30, "y": 12})
    api.expect(page.locator(".read").first).to_contain_text("score")
    api.expect(page.locator(".read").first).to_contain_text("of 256")
    dark = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]" \
        ".filter((v, i) => i % 4 == 3 && v > 150).length / c.width / c.height"  # fmt: skip
    assert page.locator("canvas").first.evaluate(dark) == pytest.approx(1 - 13 / 256, abs=0.02)
    assert page.locator("canvas").last.evaluate(dark) < 0.02
    page.locator(".seg button", has_text="scores").click()
    keep_shot(page, "live-scores")
    page.locator(".seg button", has_text="kept").click()
    keep_shot(page, "live")


def test_sheet_and_page_are_saved(tab, address, tmp_path):
    page = tab(address)
    ask(page, "What is KR?")
    with page.expect_download() as got:
        page.locator(".saves button", has_text="sheet").click()
    got.value.save_as(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size[0] > 1000
    with page.expect_download() as got:
        page.locator(".saves button", has_text="page").click()
    got.value.save_as(tmp_path / "page.html")
    saved = tab(f"file://{tmp_path / 'page.html'}", offline=True)
    assert answers(saved)[0] == "620"


def test_a_dropped_picture_is_asked_about(tab, address, loaded):
    page, file = tab(address), BytesIO()
    Viewer(loaded, SETTINGS).example("page").items[0].save(file, "PNG")
    choose = page.locator("#drop input[type=file]")
    choose.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": file.getvalue()})
    api.expect(page.locator("#drop .mine img")).to_have_count(1)
    page.wait_for_timeout(300)
    ask(page, "What is MR?", example="")
    assert answers(page)[2] == "082"
    choose.set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": b"%PDF-1.7"})
    api.expect(page.locator("#drop .error")).to_contain_text("Expected a picture")


def test_what_a_user_writes_stays_text(tab, address):
    page = tab(address)
    ask(page, EVIL)
    assert page.evaluate("window.hit") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(tab, address, scheme):
    page = tab(address, viewport=PHONE, color_scheme=scheme, device_scale_factor=2)
    ask(page, "What is KR?")
    assert fits(page)
    keep_shot(page, f"live-phone-{scheme}")


@pytest.mark.parametrize(("name", "size"), [("report", None), ("report-phone", PHONE)])
def test_a_report_needs_no_network(tab, loaded, tmp_path, name, size):
    picture = Viewer(loaded, SETTINGS).example("cluttered").items[0]
    look = Look(loaded, picture, EVIL, SETTINGS)
    write_report(tmp_path / "a.html", look, ["selector", "divprune", "tome", "full"])
    more = {"viewport": size, "device_scale_factor": 2} if size else {}
    page = tab(f"file://{tmp_path / 'a.html'}", offline=True, **more)
    assert page.locator("h1").inner_text() == EVIL
    first = page.locator(".card dd").first
    assert first.inner_text() == "51 of 256"
    slide(page, 0)
    assert first.inner_text() == "13 of 256"
    page.locator("canvas").nth(1).hover(position={"x": 40, "y": 40})
    assert "stays from" in page.locator(".read").nth(1).inner_text()
    assert page.evaluate("window.hit") is None
    assert fits(page)
    keep_shot(page, name)
