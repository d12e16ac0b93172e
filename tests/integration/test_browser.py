"""Reports in a headless Chromium: they open by themselves, plots are drawn, tables sort, videos play, on any screen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import PROGRAM, Tab, chromium
from run_folders import SKILL, make_trial, small_study, write_trial

from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.reports.page import write_report
from vlm4vla.reports.study_page import write_study_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="needs a Chromium on the path: apt-get install chromium"),
]
PAGES = ("study", "quickstart")
LEAST_CONTRAST = 4.5
"""Between text and what is behind it: WCAG 2.2, level AA."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study of two rows, and what the quickstart writes."""
    out = tmp_path_factory.mktemp("pages")
    good, bad = make_trial("tiny-qwen3-vl"), make_trial("tiny-paligemma-2")
    write_trial(out / "study", good, skill=0.95, videos=1)
    write_trial(out / "study", bad, skill=0.45, broken=3, videos=1)
    study = small_study(("good", {"tabletop": good}), ("bad", {"tabletop": bad}))
    few = (EvaluationRecipe(look="A", episodes_per_task=4, execute=3),)
    for weights in ("pretrained", "random"):
        trial = make_trial("tiny-qwen3-vl", weights, evaluations=few)
        write_trial(out / "quickstart", trial, skill=SKILL["tiny-qwen3-vl", weights], videos=1)
    write_trial(out / "quickstart", make_trial("random-policy", evaluations=few), skill=0.07)
    return {
        "study": write_study_report(study, out / "study", out / "reports"),
        "quickstart": write_report(out / "quickstart", title="Quickstart"),
    }


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_by_itself_and_draws_its_plots(tab: Tab, pages: dict[str, Path], name: str) -> None:
    tab.open(pages[name])
    asked = [address for address in tab.requests if not address.startswith("data:")]
    assert asked == [pages[name].as_uri()]
    assert tab.complaints == []
    drawn = tab.run("""
        [...document.querySelectorAll("svg")].filter(svg => svg.checkVisibility()).map(svg => {
          const {width, height} = svg.getBoundingClientRect();
          return [width, height, svg.querySelectorAll("circle, line, rect, polyline, text").length];
        })""")
    assert len(drawn) > 10
    assert all(width > 0 and height > 0 and shapes for width, height, shapes in drawn)
    assert max(width for width, _, _ in drawn) > 500


@pytest.mark.parametrize("name", PAGES)
def test_the_browser_lets_a_page_ask_nobody(tab: Tab, pages: dict[str, Path], name: str) -> None:
    tab.open(pages[name])
    answer = tab.run("""fetch("http://127.0.0.1:9/").then(() => "reached", error => error.name)""")
    assert answer == "TypeError"
    told = [e["params"]["entry"]["text"] for e in tab.complaints if e["method"] == "Log.entryAdded"]
    assert any("Content Security Policy" in text for text in told)


@pytest.mark.parametrize("name", PAGES)
def test_a_click_on_a_column_sorts_its_table(tab: Tab, pages: dict[str, Path], name: str) -> None:
    tab.open(pages[name])
    found = tab.run("""
        [...document.querySelectorAll("table.sortable")].filter(table => table.checkVisibility()).map(table => {
          const cells = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
          const button = table.tHead.rows[0].cells[0].querySelector("button");
          const before = cells();
          button.click();
          const falling = cells();
          button.click();
          return [before, falling, cells()];
        })""")
    assert found
    for before, falling, rising in found:
        assert sorted(before) == sorted(falling) and falling == rising[::-1]
    assert any(falling != rising for _, falling, rising in found)


@pytest.mark.parametrize("name", PAGES)
def test_videos_of_an_episode_play_together(tab: Tab, pages: dict[str, Path], name: str) -> None:
    tab.open(pages[name])
    times = tab.run("""
        (async () => {
          const episode = document.querySelector(".episode");
          const videos = [...episode.querySelectorAll("video")];
          const played = videos.map(video => new Promise((done, failed) => {
            video.addEventListener("timeupdate", () => video.currentTime > 0.1 && done(video.currentTime));
            video.addEventListener("error", () => failed(video.error.message));
            setTimeout(() => failed("it stood still"), 20000);
          }));
          episode.querySelector("button.play").click();
          return Promise.all(played);
        })()""")
    assert len(times) >= 2
    assert tab.complaints == []


@pytest.mark.parametrize("name", PAGES)
def test_every_point_tells_its_numbers(tab: Tab, pages: dict[str, Path], name: str) -> None:
    tab.open(pages[name])
    told = tab.run("""
        [...document.querySelectorAll("svg:not(.swatch) circle, svg polyline, svg.stack rect")].map(shape => {
          for (let e = shape; e; e = e.parentElement) {
            const title = e.querySelector(":scope > title");
            if (title) return title.textContent;
          }
        })""")
    assert len(told) > 10
    assert all(re.search(r"\d|loss", text) for text in told)


def test_the_pointer_on_a_row_lights_it_up_wherever_it_stands(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["study"])
    lit = """[...document.querySelectorAll(".lit")].map(e => [e.tagName, e.dataset.row]).sort()"""
    assert tab.run(lit) == []
    x, y = tab.run("""
        (() => {
          const dot = document.querySelector("#figures g[data-row=good] circle");
          dot.scrollIntoView({block: "center", behavior: "instant"});
          const {x, y, width, height} = dot.getBoundingClientRect();
          return [x + width / 2, y + height / 2];
        })()""")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    found = tab.run(lit)
    assert {row for _, row in found} == {"good"}
    assert [tag for tag, _ in found] == ["TR", "TR", "TR", "g"], "published, ours, its pair, and the figure"
    fade = """
        getComputedStyle(document.querySelector("#figures g[data-row=bad]")).opacity"""
    assert float(tab.run(fade)) < 0.5
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert tab.run(lit) == [] and float(tab.run(fade)) == 1
    tab.run("""document.querySelector("#figures g[data-row=bad] circle").dispatchEvent(
        new MouseEvent("click", {bubbles: true}))""")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=4, y=4)
    assert {row for _, row in tab.run(lit)} == {"bad"}, "a click keeps it"


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_read_on_a_narrow_screen_in_either_scheme(
    tab: Tab, pages: dict[str, Path], name: str, scheme: str
) -> None:
    tab.open(pages[name], width=400, scheme=scheme)
    assert tab.run("document.documentElement.scrollWidth") <= 400
    brightness = tab.run("Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g))")
    assert brightness > 200 if scheme == "light" else brightness < 60
    texts = tab.run(CONTRASTS)
    assert len(texts) > 50
    faint = [(text, contrast) for text, contrast in texts if contrast < LEAST_CONTRAST]
    assert not faint


CONTRASTS = """
(() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => parts(colour).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const [, , , alpha = 1] = parts(getComputedStyle(e).backgroundColor);
      if (alpha === 1) return getComputedStyle(e).backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || element.closest("script, title") || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    found.push([text, (a + 0.05) / (b + 0.05)]);
  }
  return found;
})()"""
"""Every text that is shown, and its contrast."""
