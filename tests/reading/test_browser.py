"""The report's page in a real browser: headless Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_page import HOSTILE, hostile, page_of

import reference_store
from natal.reading.results import Results, load

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page was not opened in a browser"),
]
DRAWN = "[...document.querySelectorAll('{} .chart')].every(f => f.hidden || f.dataset.drawn)"
READY = f"document.documentElement.dataset.ready === 'yes' && {DRAWN.format('main')}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # as root, in a container, Chromium's own sandbox cannot start
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = play.chromium.launch(executable_path=CHROMIUM, args=sandbox, timeout=0)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load(reference_store.build(tmp_path_factory.mktemp("browser")))


@pytest.fixture(scope="module")
def file(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(results), "utf-8")
    return path


def opened(browser: Browser, file: Path, width: int = 1280, **context: Any) -> tuple[Page, list[str]]:
    """Open a page and wait for its charts; return it, and what it complained of or asked the network for."""
    made = browser.new_context(viewport={"width": width, "height": 900}, **context)
    made.set_default_timeout(0)  # however slow the machine is; what hangs is ended by pytest
    page = made.new_page()
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("dialog", lambda d: wrong.append(f"dialog: {d.message}"))
    local = ("file:", "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(local) else wrong.append(r.url))
    page.goto(file.as_uri())
    page.wait_for_function(READY)
    return page, wrong


def chosen(page: Page, name: str, value: str) -> None:
    page.select_option(f"select[name={name}]", value)
    page.wait_for_function(READY)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_without_errors_or_requests_and_fits(
    browser: Browser, file: Path, width: int, scheme: Any
) -> None:
    page, wrong = opened(browser, file, width, color_scheme=scheme)
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.locator("main .chart svg.marks")
    assert charts.count() == page.locator("main .chart").count() >= 10
    assert max(box["width"] for box in (c.bounding_box() for c in charts.all()) if box) <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 27)"}[scheme]
    words = page.evaluate("document.querySelector('svg.marks .role-axis-label text').getAttribute('fill')")
    assert words == {"light": "#1b1f24", "dark": "#e6edf3"}[scheme]


def test_on_a_phone_a_claim_is_read_without_scrolling_aside(browser: Browser, file: Path) -> None:
    page, _ = opened(browser, file, 390)
    entries = page.locator("table.wordy tbody td[data-title='the claim']")
    boxes = [box for box in (entry.bounding_box() for entry in entries.all()) if box]
    assert boxes
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)


def test_what_is_chosen_changes_charts_and_tables(browser: Browser, file: Path) -> None:
    page, wrong = opened(browser, file)
    first = page.locator("main .chart").first
    points = "svg.marks .mark-symbol.role-mark path"
    before = first.locator(points).count()
    assert before >= 24 + 72  # a mean for every cell of modular, and every seed
    page.locator(".menu summary").click()
    page.locator("input[name=strategy]").nth(0).uncheck()
    page.wait_for_function(READY)
    assert first.locator(points).count() == before - 8 - 24
    assert page.locator("#chosen").text_content() == "(2 of 3)"
    rows = page.locator("#results tbody tr:not(.part) td:first-child").all_text_contents()
    shown = page.locator("#results tbody tr:not(.part):not([hidden]) td:first-child").all_text_contents()
    assert "magnitude" in rows
    assert "magnitude" not in shown
    page.locator("#every").click()
    page.keyboard.press("Escape")
    chosen(page, "task", "regression")
    assert not first.is_visible()
    assert page.locator("main .chart[data-setting='1']").first.is_visible()
    chosen(page, "task", "")
    chosen(page, "axis", "density")
    assert "weights kept (logarithmic)" in first.inner_text()
    chosen(page, "level", "0.9")
    levels = page.locator("#results tr[data-level]:not([hidden])").evaluate_all(
        "r => r.map(e => e.dataset.level)"
    )
    assert set(levels) == {"0.9"}
    assert wrong == []


def test_a_click_on_a_point_opens_its_run(browser: Browser, results: Results, file: Path) -> None:
    page, wrong = opened(browser, file)
    point = page.locator("main .chart").nth(1).locator("svg.marks .mark-symbol.role-mark path").last
    point.scroll_into_view_if_needed()
    point.click(force=True)
    dialog = page.locator("#closer")
    page.wait_for_function(f"document.getElementById('closer').open && {DRAWN.format('#closer')}")
    assert dialog.locator("svg.marks").count() >= 3
    assert (dialog.locator("h2").text_content() or "") == "structured at 95% on regression"
    cell = [r for r in results.runs if r.run[:3] == ("regression", "structured", 0.95)]
    assert dialog.locator("#closer-runs tbody tr").count() == len(cell) == 3
    assert str(float(f"{cell[0].test_metric:.4g}")) in dialog.locator("#closer-runs").inner_text()
    command = dialog.locator("#closer-command").text_content() or ""
    assert command.startswith("natal run study.toml --out again")
    assert "--set 'sparsities=[0.95]'" in command
    assert "--seeds 42,123,7" in command
    # two layers, of which all and a corner are pictured, two rows of three blocks each
    blocks = dialog.locator(".chart", has_text="Weights kept, layer by layer").locator(
        ".mark-rect.role-mark path"
    )
    assert blocks.count() == 4 * 6
    assert "The mask is pictured of seed 42." in (dialog.locator("#closer-sample").text_content() or "")
    assert not dialog.locator(".chart", has_text="What the first layer sees").is_visible()
    dialog.locator("#closer-runs button").nth(2).click()
    assert (dialog.locator("#closer-command").text_content() or "").endswith("--seeds 7")
    dialog.locator("#closer-level").select_option(label="50%")
    assert (dialog.locator("h2").text_content() or "") == "structured at 50% on regression"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert wrong == []


def test_a_page_works_with_the_keyboard_alone(browser: Browser, file: Path) -> None:
    page, wrong = opened(browser, file)
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.name || document.activeElement.className || "
                                  "document.activeElement.textContent.trim()"))  # fmt: skip
    assert seen[:5] == ["skip", "task", "level", "axis", "Strategies (3 of 3)"]
    page.locator("details.apart summary").first.focus()
    page.keyboard.press("Enter")
    for _ in range(3 + page.locator("details.apart").first.locator("th").count()):
        page.keyboard.press("Tab")
    page.locator("details.apart button.open").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#closer").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "open"
    assert wrong == []


def test_tables_sort_and_copy(browser: Browser, file: Path) -> None:
    page, wrong = opened(browser, file, permissions=["clipboard-read", "clipboard-write"])
    page.locator("details.apart summary").first.click()
    table = page.locator("details.apart table").first
    means = table.get_by_role("button", name="mean")
    for order in ("ascending", "descending"):
        means.click()
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == order
        column = table.locator("tbody").first.locator("tr:not(.part) td:nth-child(4)").all_text_contents()
        numbers = [float(x) for x in column]
        assert numbers == sorted(numbers, reverse=order == "descending")
    page.locator("details.apart button.copy").first.click()
    page.wait_for_function("document.getElementById('said').textContent === 'Copied'")
    lines = page.evaluate("navigator.clipboard.readText()").split("\n")
    assert lines[0].split("\t")[:4] == ["strategy", "sparsity", "realised", "mean"]
    assert len(lines) == 1 + 2 + 48
    assert wrong == []


def test_every_chart_can_be_saved(browser: Browser, file: Path) -> None:
    page, wrong = opened(browser, file)
    menus = page.locator("main .chart .vega-embed summary")
    assert menus.count() == page.locator("main .chart").count()
    for name, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        menus.first.click()
        with page.expect_download() as saved:
            page.locator("main .chart .vega-actions a", has_text=name).first.click()
        path = saved.value.path()
        assert path.read_bytes().startswith(start)
        assert saved.value.suggested_filename.startswith("paper-metric.")
        menus.first.click()
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_and_everything_has_a_name(browser: Browser, file: Path, scheme: Any) -> None:
    page, _ = opened(browser, file, color_scheme=scheme)
    faint = page.evaluate(_CONTRAST)
    assert faint == []
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, select, input, summary, [role=region]')].filter(e => "
        "!(e.textContent.trim() || e.getAttribute('aria-label') || e.closest('label') || "
        "e.getAttribute('aria-labelledby'))).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    described = page.locator("main .chart [role='graphics-document'][aria-label]")
    assert described.count() == page.locator("main .chart").count()


# WCAG's relative luminance; body text wants 4.5 to 1
_CONTRAST = """() => {
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.99) return c.slice(0, 3); } return [255, 255, 255]; };
  return [...document.querySelectorAll('body *:not(script):not(style):not(svg *)')]
    .filter((e) => e.offsetParent && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((e) => { const a = light(parts(getComputedStyle(e).color).slice(0, 3)), b = light(behind(e));
      return [e.tagName + '.' + e.className, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; })
    .filter(([, ratio]) => ratio < 4.5); }"""


def test_a_page_can_be_printed(browser: Browser, file: Path, tmp_path: Path) -> None:
    from pypdf import PdfReader

    page, wrong = opened(browser, file)
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    text = "\n".join(sheet.extract_text() for sheet in PdfReader(tmp_path / "report.pdf").pages)
    assert "Published beside ours" in text
    assert "neurons only select a width" in text
    assert "requested sparsity" in text  # the charts are in it
    assert "Copy table" not in text
    assert wrong == []


def test_a_hostile_study_name_is_text(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page_of(hostile(tmp_path / "results")), "utf-8")
    page, wrong = opened(browser, path)
    assert wrong == []
    assert page.locator("h1").text_content() == HOSTILE
    assert page.locator("img").count() == 0
    page.locator("details.apart summary").first.click()
    page.locator("button.open").first.click()
    assert HOSTILE in (page.locator("#closer h2").text_content() or "")
    assert page.locator("img").count() == 0
    assert wrong == []
