"""Reports in a real browser: at three widths, light and dark, nothing overlaps, overflows or is blank, and axe-core
finds nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.reports import rich_report

from llmc.page import report_page

api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`: playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`: no axe-core")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FOUND = next((path for path in map(shutil.which, _BROWSERS) if path), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_FOUND is None, reason=f"needs a browser: none of {', '.join(_BROWSERS)} is installed"),
]

# What looks wrong, in words. Wide tables scroll in boxes of their own; folded ones are opened first.
_WRONG = """() => {
  const wrong = [], width = document.documentElement.clientWidth;
  const name = (each) => `${each.tagName} ${(each.textContent || '').trim().slice(0, 40)}`;
  document.querySelectorAll('details').forEach((each) => { each.open = true; });
  if (document.documentElement.scrollWidth > width) wrong.push('the page scrolls sideways');
  for (const each of document.querySelectorAll('body *')) {
    if (each.closest('.scroll, pre, .skip, title, desc')) continue;
    const box = each.getBoundingClientRect();
    if (box.width && (box.right > width + 0.5 || box.left < -0.5)) wrong.push(`beyond the edge: ${name(each)}`);
  }
  const apart = (some, what) => some.forEach((one, number) => some.slice(number + 1).forEach((other) => {
    const a = one.getBoundingClientRect(), b = other.getBoundingClientRect();
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 2.5) wrong.push(`${what} overlap: ${name(one)} / ${name(other)}`);
  }));
  for (const chart of document.querySelectorAll('svg.chart')) {
    apart([...chart.querySelectorAll('text')].filter((each) => getComputedStyle(each).display !== 'none'), 'labels');
    const marks = [...chart.querySelectorAll('rect.bar:not(.track), circle, path[class^=shade]')];
    const seen = marks.filter((each) => { const box = each.getBoundingClientRect(); return box.width && box.height; });
    if (!seen.length) wrong.push(`blank: ${name(chart)}`);
    for (const mark of [...chart.querySelectorAll('rect, circle')]) {
      const box = mark.getBoundingClientRect(), all = chart.getBoundingClientRect();
      if (box.bottom > all.bottom + 1 || box.top < all.top - 1) wrong.push(`out of its chart: ${name(chart)}`);
    }
  }
  for (const section of document.querySelectorAll('section')) {
    if (section.getBoundingClientRect().height < 80) wrong.push(`blank: ${name(section)}`);
    apart([...section.children], 'blocks');
  }
  apart([...document.querySelectorAll('header, nav, section')], 'parts');
  return wrong;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=_FOUND, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(rich_report(layers=8, experts=80)), encoding="utf-8")
    return path


def opened(browser: Any, path: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page, and what it asked for; axe-core is a script, which its own policy would not let in."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.goto(path.as_uri())
    return page, asked


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1440])
def test_it_looks_right(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page, asked = opened(browser, page_file, width, scheme)
    assert page.evaluate(_WRONG) == []
    assert asked == [page_file.as_uri()]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(int(each) for each in ground.strip("rgb()").split(",")) < 60) == (scheme == "dark")
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], [node["target"] for node in each["nodes"]][:3]) for each in found] == []
    page.context.close()


def test_what_looks_wrong_is_found(browser: Any, page_file: Path) -> None:
    """The checks above, on a page that was spoiled."""
    page, _ = opened(browser, page_file, 390, "light")
    page.add_style_tag(content="svg text { font-size: 40px !important } .tiles { width: 900px } rect.bar { width: 0 }")
    wrong = " ".join(page.evaluate(_WRONG))
    for each in ("the page scrolls sideways", "beyond the edge", "labels overlap", "blank: svg"):
        assert each in wrong
    page.evaluate("document.querySelectorAll('svg').forEach((each) => each.removeAttribute('aria-labelledby'))")
    page.evaluate("document.querySelectorAll('svg title').forEach((each) => each.remove())")
    assert {each["id"] for each in axe.Axe().run(page).response["violations"]} >= {"svg-img-alt"}
    page.context.close()


def test_keys_reach_everything(browser: Any, page_file: Path) -> None:
    page, _ = opened(browser, page_file, 820, "light")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.tagName"))
    assert {"SUMMARY", "DIV"} <= seen  # what folds, and boxes that scroll
    page.context.close()
