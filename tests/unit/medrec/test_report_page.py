"""The page's shell and its sentences: escaping, sorting, theme, print, and what is concluded."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import plotly.graph_objects as go
import pytest

from medrec.report import figures, overview
from medrec.report.overview import Contest
from medrec.report.page import Page, findings, paragraph, table, tiles

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")
EVIL = "<script>document.body.dataset.error='run'</script>"


# --------------------------------------------------------------------------- markup


def test_every_helper_escapes_what_it_is_given():
    text = tiles([(EVIL, EVIL, EVIL)]) + findings([(EVIL, EVIL), (EVIL, [EVIL])])
    text += table([EVIL], [[(f"{EVIL}\n{EVIL}", EVIL)]], caption=EVIL)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 11


def test_numbers_stand_right_with_their_headings_and_small_print():
    text = table(["model", "Jaccard"], [["a", ("0.5\n0.4–0.6", 0.5)], ["b", ("–", math.nan)]])
    assert '<th scope="col">model</th><th scope="col" class="n">Jaccard</th>' in text
    assert '<td class="n" data-key="0.5">0.5\n<small>0.4–0.6</small></td>' in text
    assert '<td class="n" data-key="nan">–</td>' in text


def test_anchors_are_readable_unique_and_in_the_navigation():
    page = Page("t", "s")
    for title in ("Jaccard and DDI", "Summary", "Summary", "µ"):
        page.add(title, paragraph("x"))
    text = page.render()
    anchors = re.findall(r'<section id="([^"]+)">', text)
    assert anchors == ["s-jaccard-and-ddi", "s-summary", "s-summary-more", "s-section"]
    assert re.findall(r'<a href="#(s-[^"]+)">', text) == anchors


def test_a_page_forbids_itself_the_network_and_brings_plotly_only_for_figures():
    page = Page("t", "s")
    page.add("a", paragraph("x"))
    text = page.render()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text).group(1)
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*", policy)
    assert len(text) < 60_000
    page.add("b", page.figure(go.Figure(go.Bar(y=[1])), "bars"))
    assert len(page.render()) > 1_000_000


# --------------------------------------------------------------------------- figures


def test_the_funnel_shows_what_each_filter_removed():
    table = pd.DataFrame(
        {
            "step": ["read", "mapped", "kept"],
            "rows": [1000, 900, 450],
            "visits": [50, 50, 20],
            "patients": [9, 9, 4],
        }
    )
    traces = figures.funnel(table).data
    left, removed, text = traces[0], traces[1], traces[2]
    assert list(left.x) == [1000, 900, 450]
    assert list(removed.x) == [0, 100, 450]
    assert list(text.text) == ["1,000", "900 (−100)", "450 (−450)"]
    assert list(traces[4].x) == [0, 0, 30]
    assert list(traces[7].x) == [0, 0, 5]


def test_intervals_are_drawn_around_their_value_and_lines_where_they_belong():
    metrics = ("jaccard", "f1", "prauc", "ddi_rate", "mean_n_drugs")
    row = {"model": "m"} | dict.fromkeys(metrics, 0.5) | {f"{k}_low": 0.3 for k in metrics}
    models = pd.DataFrame([row | {f"{k}_high": 0.6 for k in metrics}])
    figure = figures.intervals(models, {"ddi_rate": [("ground truth", 0.25), ("chance", 0.2)]})
    bar = figure.data[0].error_x
    assert (bar.array[0], bar.arrayminus[0]) == pytest.approx((0.1, 0.2))
    lines = {
        trace.name: (trace.x[0], trace.xaxis) for trace in figure.data if trace.mode == "lines"
    }
    assert lines == {"ground truth": (0.25, "x4"), "chance": (0.2, "x4")}


def test_the_kept_epoch_is_marked_on_every_curve():
    curve = pd.DataFrame(
        {"epoch": [0, 1, 2], "train_loss": [3.0, 2, 1], "val_jaccard": [0.1, 0.4, 0.2]}
    ).assign(val_ddi_rate=[0.3, 0.2, 0.1])
    marks = [t for t in figures.training({"m": curve}, {"m": 1}).data if t.mode == "markers"]
    assert [(t.x[0], t.y[0]) for t in marks] == [(1, 2.0), (1, 0.4), (1, 0.2)]


# --------------------------------------------------------------------------- conclusions


def contest(*rows: tuple[str, float, float, float, float]) -> Contest:
    """Rows of model, Jaccard, and the difference to the best with its interval."""
    names = ("jaccard", "jaccard_difference", "jaccard_difference_low", "jaccard_difference_high")
    return Contest(
        pd.DataFrame(
            [
                {"model": m, "title": m} | dict(zip(names, values, strict=True))
                for m, *values in rows
            ]
        )
    )


def test_the_gain_is_learned_minus_baseline_whichever_is_best():
    ahead = contest(("retain", 0.5, 0, 0, 0), ("topk", 0.4, -0.1, -0.15, -0.02))
    learned, baseline, (value, low, high) = ahead.gain()
    assert (learned["title"], baseline["title"]) == ("retain", "topk")
    assert (value, low, high) == pytest.approx((0.1, 0.02, 0.15))
    assert "the neural network is better" in overview._against_baseline(ahead)
    behind = contest(("topk", 0.5, 0, 0, 0), ("retain", 0.4, -0.1, -0.15, -0.02))
    assert behind.gain()[2] == pytest.approx((-0.1, -0.15, -0.02))
    assert "the baseline is better" in overview._against_baseline(behind)
    level = contest(("retain", 0.5, 0, 0, 0), ("topk", 0.4, -0.1, -0.15, 0.01))
    assert "holds 0, so no gain" in overview._against_baseline(level)


def test_without_both_kinds_of_models_there_is_no_gain():
    assert contest(("retain", 0.5, 0, 0, 0), ("leap", 0.4, -0.1, -0.2, 0.1)).gain() is None
    assert contest(("topk", 0.5, 0, 0, 0)).gain() is None
    assert "needs a model" in overview._against_baseline(None)


def best_sentence(found: Contest) -> str:
    table = found.table.assign(jaccard_low=0.0, jaccard_high=1.0)
    titles = [str(title) for title in table["title"]]
    return overview._best(SimpleNamespace(table=table, titles=lambda: titles), found)


def test_models_are_below_the_best_only_if_the_interval_is():
    mixed = contest(("a", 0.5, 0, 0, 0), ("b", 0.4, -0.1, -0.2, -0.01), ("c", 0.3, -0.2, -0.5, 0.1))
    text = best_sentence(mixed)
    assert "interval b is below it; c cannot be told from it" in text
    close = contest(("a", 0.5, 0, 0, 0), ("b", 0.4, -0.1, -0.2, 0.01))
    assert "None of the others (b) is established to be worse" in best_sentence(close)
    clear = contest(("a", 0.5, 0, 0, 0), ("b", 0.4, -0.1, -0.2, -0.01))
    assert "every difference to it leaves out 0" in best_sentence(clear)


def test_names_are_listed_as_people_do():
    assert overview.listed([]) == ""
    assert overview.listed(["a"]) == "a"
    assert overview.listed(["a", "b", "c"]) == "a, b and c"


# --------------------------------------------------------------------------- browser


def in_browser(page: Path, folder: Path, *, width: int = 1280) -> tuple[dict[str, str], str]:
    """Data attributes of the body after a page ran, and its whole text."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={folder / 'browser'}",
            f"--window-size={width},900",
            "--virtual-time-budget=8000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    body = re.search(r"<body[^>]*>", done.stdout).group()
    return dict(re.findall(r'data-([\w-]+)="([^"]*)"', body)), done.stdout


def small_page(tmp_path: Path, script: str, *figures_: go.Figure) -> Path:
    page = Page("t", "s")
    rows = [["b, x", ("9.0", 9.0)], ["a", ("10", 10.0)], ["=c", ("–", math.nan)]]
    page.add("A", table(["name", "value"], rows))
    for figure in figures_:
        page.add("B", '<div style="height:4000px"></div>', page.figure(figure, "a figure"))
    path = tmp_path / "page.html"
    text = page.render().replace("</body>", f"<script>{script}</script></body>")
    path.write_text(text, encoding="utf-8")
    return path


@needs_browser
@pytest.mark.browser
def test_tables_sort_by_keyboard_and_copy_as_csv(tmp_path: Path):
    script = """
      const d = document.body.dataset, heads = [...document.querySelectorAll("th button")];
      const names = () => [...document.querySelectorAll("td:first-child")].map((c) => c.innerText);
      const csv = medrec.csv(document.querySelector("table"));
      d.csv = csv.replaceAll("\\n", "/").replaceAll('"', "~");
      heads[1].focus(); heads[1].click();
      d.down = names() + " " + heads[1].closest("th").ariaSort;
      heads[1].click();
      d.up = names() + " " + heads[1].closest("th").ariaSort;
      heads[0].click();
      d.words = names() + " " + heads[1].closest("th").ariaSort;
      d.focused = document.activeElement === heads[1];
    """
    found, _ = in_browser(small_page(tmp_path, script), tmp_path)
    assert found["csv"] == "name,value/~b, x~,9.0/a,10/'=c,–"
    assert found["down"] == "a,b, x,=c descending"
    assert found["up"] == "b, x,a,=c ascending"  # what has no number stays last
    assert found["words"] == "=c,a,b, x null"
    assert found["focused"] == "true"
    assert "error" not in found


@needs_browser
@pytest.mark.browser
def test_figures_out_of_view_are_drawn_in_the_theme_and_never_offered_to_a_server(tmp_path: Path):
    script = """
      setTimeout(() => {
        const d = document.body.dataset, plots = [...document.querySelectorAll(".figure")];
        const ink = () => plots[0]._fullLayout.font.color;
        document.documentElement.dataset.theme = "light"; d.before = ink();
        document.getElementById("theme").click(); d.after = ink();
        dispatchEvent(new Event("beforeprint"));
        d.print = document.documentElement.dataset.theme + ink();
        d.width = plots.map((p) => p._fullLayout.width <= 670).join();
        dispatchEvent(new Event("afterprint"));
        d.again = document.documentElement.dataset.theme + ink();
      }, 5000);
    """
    bar, line = go.Figure(go.Bar(y=[1, 2])), go.Figure(go.Scatter(y=[1, 2]))
    found, text = in_browser(small_page(tmp_path, script, bar, line), tmp_path)
    assert "error" not in found
    assert (found["figures"], found["drawn"]) == ("2", "2")
    assert (found["before"], found["after"]) == ("#17202a", "#e6ebf0")
    assert (found["print"], found["width"]) == ("light#17202a", "true,true")
    assert found["again"] == "dark#e6ebf0"
    drawn = text.partition("</main>")[0]
    assert 'data-title="Download as SVG"' in drawn
    assert "Share chart" not in drawn


@needs_browser
@pytest.mark.browser
def test_an_empty_figure_counts_as_not_drawn_and_a_lost_error_is_kept(tmp_path: Path):
    script = "Promise.reject(new Error('lost')); console.error('said');"
    found, _ = in_browser(small_page(tmp_path, script, go.Figure(go.Bar())), tmp_path)
    assert (found["figures"], found["drawn"]) == ("1", "0")
    assert "lost" in found["error"]
    assert "said" in found["error"]
