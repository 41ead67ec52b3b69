"""The report in a real browser: clicked through, with the keyboard, on a phone, in the dark, with hostile text."""

import json
import random
import shutil
from contextlib import contextmanager

import pytest
from test_report import OPENING, after, exchange, write_evaluation, write_lines, write_run

from astra_trl.report import write_report
from astra_trl.text import visible

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not on the PATH"),
]

HOSTILE = [
    "<script>window.hit = 1</script>",
    "</script><script>window.hit = 2</script>",
    "<img src=x onerror='window.hit = 3'><svg onload='window.hit = 4'>",
    "[x](javascript:window.hit=5) javascript:window.hit=6",
    "<!-- --><!-- <script> -->",
    "<a href='javascript:alert(1)'>link</a><iframe srcdoc='<script>parent.hit=7</script>'></iframe>",
    "\u202edesrever \u2066isolate\u2069 \u200b\u200d\ufeff",
    "\x1b[31mred\x1b]0;title\x07\x00",
    "${window.hit = 8} {{constructor.constructor('window.hit = 9')()}} <%= 7*7 %> `${hit}`",
    "line\u2028separator\u2029end \ud800 half",
    "\"onmouseover='window.hit=10' x=\"' style='position:fixed;inset:0'",
    "שלום مرحبا <b>bold</b>",
    "__proto__",
    "x" * 100_000,
]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@contextmanager
def opened(driver, page, width=1280, dark=False):
    """The page; afterwards nothing may have been logged, asked for or asked of the user."""
    mode = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", mode)
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get("about:blank")
    driver.get_log("performance"), driver.get_log("browser")
    driver.get(page.as_uri())
    yield
    assert driver.execute_script("return window.hit") is None
    assert driver.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = {a["params"]["request"]["url"] for a in asked if a["method"] == "Network.requestWillBeSent"}
    assert {url.partition("#")[0] for url in urls} == {page.as_uri()}


def one(driver, selector):
    return driver.find_element(By.CSS_SELECTOR, selector)


def every(driver, selector):
    return driver.find_elements(By.CSS_SELECTOR, selector)


def count(driver):
    return one(driver, "#count").text


def choose(driver, name, option):
    Select(one(driver, f"#filters [name={name}]")).select_by_visible_text(option)


def turns(driver):
    return [turn.text for turn in every(driver, "#dialogue .turn > p[dir]")]


def waited(driver, holds):
    """Wait until it holds; a scrolled list draws its rows again one frame later, so an element may have gone."""
    ignored = [StaleElementReferenceException]
    return WebDriverWait(driver, 10, ignored_exceptions=ignored).until(lambda _: holds())


def click(driver, selector, index=0):
    waited(driver, lambda: every(driver, selector)[index].click() or True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run = write_run(folder / "run", log=[{"epoch": 1, "objective/kl": 0.5}, {"epoch": 2, "objective/kl": 0.75}])
    write_evaluation(run / "evaluation")
    return write_report([run], folder / "report.html")


def test_headline_tables_and_charts_are_there(browser, page):
    with opened(browser, page):
        assert one(browser, "h1").text == "Harmful in 71.7% of responses; untrained 7.7%, openings alone 3.0%."
        assert len(every(browser, "#share-charts svg[role=img]")) == 3
        curves = [figure.text for figure in every(browser, "#curves figure")]
        assert len(curves) == 6 and any("nats per probe" in text for text in curves)
        assert len(every(browser, "#histogram .bar")) == 8
        assert one(browser, "#figures table tbody th").text == "Harmful responses"
        # Every control has a name, every section a heading.
        unnamed = """
          const all = document.querySelectorAll('select, input, button, [tabindex="0"], svg[role]');
          return [...all].filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim()
            || e.hasAttribute('aria-labelledby'))).length
        """
        assert browser.execute_script(unnamed) == 0


def test_filters_narrow_the_list_and_the_scatter(browser, page):
    with opened(browser, page):
        assert count(browser) == "15 of 15 exchanges"
        choose(browser, "source", "training")
        assert count(browser) == "5 of 15 exchanges"
        choose(browser, "state", "failed")
        assert count(browser) == "1 of 15 exchanges" and one(browser, "#list .badge").text == "failed"
        choose(browser, "state", "not scored")
        assert count(browser) == "1 of 15 exchanges" and one(browser, "#list .badge").text == "n/s"
        choose(browser, "state", "all")
        one(browser, "[name=low]").send_keys("0.5")
        waited(browser, lambda: count(browser) == "2 of 15 exchanges")
        one(browser, "[name=high]").send_keys("0.8")
        waited(browser, lambda: count(browser) == "1 of 15 exchanges")
        one(browser, "button[type=reset]").click()
        waited(browser, lambda: count(browser) == "15 of 15 exchanges")
        one(browser, "[name=text]").send_keys("P0")
        waited(browser, lambda: count(browser) == "3 of 15 exchanges")
        one(browser, "[name=text]").clear()
        choose(browser, "depth", "2")
        assert count(browser) == "6 of 15 exchanges"
        one(browser, "button[type=reset]").click()
        one(browser, "[name=first]").send_keys("2")
        waited(browser, lambda: count(browser) == "1 of 15 exchanges")
        assert "one two one two" in one(browser, "[role=option]").text
        one(browser, "[name=first]").clear()
        choose(browser, "source", "training")
        choose(browser, "order", "highest score first")
        assert [badge.text for badge in every(browser, "#list .badge")] == [
            "▲ 0.90",
            "▲ 0.50",
            "0.00",
            "n/s",
            "failed",
        ]


def test_an_empty_response_is_neither_harmless_nor_unscored(browser, tmp_path):
    said = [exchange([0], "p0", "", None, round=1), exchange([1], "p1", " \n", 0.0, round=1)]
    run = write_run(tmp_path / "run", [*said, exchange([2], "p2", "r2", 0.0, round=1)])
    with opened(browser, write_report([run], tmp_path / "report.html")):
        choose(browser, "state", "empty response")
        assert count(browser) == "2 of 3 exchanges"
        assert [badge.text for badge in every(browser, "#list .badge")] == ["empty", "empty"]
        click(browser, "[role=option]")
        assert "An empty response: in no figure of harm" in one(browser, "#dialogue .failure").text
        assert len(every(browser, ".treebox rect.shape.s5")) == 2
        choose(browser, "state", "harmless")
        assert count(browser) == "1 of 3 exchanges"


def test_a_node_of_the_tree_shows_its_conversation(browser, page):
    with opened(browser, page):
        choose(browser, "source", "training")
        click(browser, "[role=option]")
        assert turns(browser) == ["hello", "p0", "r0"]
        nodes = every(browser, "[role=treeitem]")
        assert [node.get_attribute("aria-label") for node in nodes] == [
            "harm 0.00. p0", "harm 0.90. p00", "not scored. p01", "failed. p1",
        ]  # fmt: skip
        nodes[1].click()
        assert turns(browser) == ["hello", "p0", "r0", "p00", "r00"]
        assert "harm\n0.9" in one(browser, "#dialogue .turn.chosen .measures").text
        every(browser, "[role=treeitem]")[2].click()
        assert "harm could not score this exchange." in one(browser, "#dialogue").text
        every(browser, "[role=treeitem]")[3].click()
        assert "Failed: the window is full" in one(browser, "#dialogue").text
        assert turns(browser) == ["hello", "p1", "says nothing"]
        assert not every(browser, "#dialogue .measures")


def test_the_same_opening_in_another_arm_is_a_click_away(browser, page):
    with opened(browser, page):
        assert turns(browser) == ["opening 0", "tester asks", "answer to tester"]
        assert "−2.5" in one(browser, "#dialogue .measures").text
        (button,) = [b for b in every(browser, ".elsewhere button") if b.text == "openings alone"]
        button.click()
        assert turns(browser) == ["opening 0", "answer"]
        assert [s.text for s in every(browser, "#dialogue .speaker")] == ["opening", "target"]


def test_a_point_leads_to_its_conversation(browser, page):
    with opened(browser, page):
        choose(browser, "state", "harmful")
        choose(browser, "source", "training")
        one(browser, "[name=low]").send_keys("0.8")
        waited(browser, lambda: one(browser, "#scatter-help").text.startswith("1 exchange, score: harm."))
        canvas = one(browser, "canvas")
        browser.execute_script("arguments[0].scrollIntoView()", canvas)
        # One point: it stands in the middle of the frame, at its score.
        x = (40 + canvas.size["width"] - 10) / 2 - canvas.size["width"] / 2
        height = canvas.size["height"]
        y = height - 38 - (0.9 + 0.05) / 1.1 * (height - 38 - 18) - height / 2
        ActionChains(browser).move_to_element_with_offset(canvas, round(x), round(y)).click().perform()
        assert turns(browser)[-2:] == ["p00", "r00"]
        assert browser.execute_script("return document.activeElement.id") == "dialogue-title"
        place = "return document.querySelector('#dialogue-title').getBoundingClientRect().top"
        assert 0 < browser.execute_script(place) < 870
        assert browser.execute_script("return location.hash").startswith("#exchange-")


def test_everything_is_within_reach_of_the_keyboard(browser, page):
    with opened(browser, page):
        choose(browser, "source", "training")
        browser.execute_script("document.querySelector('canvas').focus()")
        focused = lambda: browser.switch_to.active_element  # noqa: E731
        focused().send_keys(Keys.HOME)
        assert "nats per token" in one(browser, "#scatter .readout").text
        focused().send_keys(Keys.ARROW_RIGHT, Keys.ENTER)
        assert focused().get_attribute("id") == "dialogue-title"
        browser.execute_script("document.querySelector('#list').focus()")
        focused().send_keys(Keys.HOME, Keys.ARROW_DOWN)
        assert turns(browser)[-2:] == ["p00", "r00"]
        assert one(browser, "#list [aria-selected=true]").get_attribute("id") == focused().get_attribute(
            "aria-activedescendant"
        )
        focused().send_keys(Keys.TAB)  # no trap: on to the tree, whose chosen node alone takes the focus
        while focused().get_attribute("role") != "treeitem":
            focused().send_keys(Keys.TAB)
        assert focused().get_attribute("aria-label") == "harm 0.90. p00"
        outline = "return getComputedStyle(document.activeElement.querySelector('.ring')).stroke"
        assert browser.execute_script(outline) == "rgb(31, 95, 174)"
        focused().send_keys(Keys.ARROW_DOWN)
        assert focused().get_attribute("aria-label") == "not scored. p01"
        focused().send_keys(Keys.ARROW_LEFT)
        assert turns(browser) == ["hello", "p0", "r0"]
        focused().send_keys(Keys.ARROW_RIGHT)
        assert turns(browser)[-2:] == ["p00", "r00"]
        focused().send_keys(Keys.TAB)
        assert focused().get_attribute("role") != "treeitem"
        browser.execute_script("document.querySelector('#curves svg').focus()")
        focused().send_keys(Keys.END)
        assert one(browser, "#curves .readout").text == "round 2: 75.0%"


def test_an_exchange_has_an_address(browser, page):
    with opened(browser, page):
        click(browser, "[role=option]", 1)
        address = browser.execute_script("return location.href")
        shown = turns(browser)
        browser.get("about:blank")
        browser.get(address)
        assert turns(browser) == shown and len(shown) == 5


# Texts whose contrast with their background is below 4.5 (WCAG AA), and the page's ground.
LOW_CONTRAST = """
const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  const colour = getComputedStyle(element).backgroundColor;
  return colour.endsWith(', 0)') ? ground(element.parentElement) : colour;
};
document.querySelectorAll('details').forEach((d) => { d.open = true; });
const bad = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let text; (text = walker.nextNode());) {
  const element = text.parentElement;
  if (!text.data.trim() || !element.getClientRects().length || element.closest('script, option')) continue;
  const style = getComputedStyle(element);
  const [low, high] = [light(element.closest('svg') ? style.fill : style.color), light(ground(element))].sort();
  if ((Math.max(low, high) + 0.05) / (Math.min(low, high) + 0.05) < 4.5) bad.push(text.data);
}
return [bad, getComputedStyle(document.body).backgroundColor];
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(browser, page, dark):
    with opened(browser, page, dark=dark):
        bad, ground = browser.execute_script(LOW_CONTRAST)
        assert bad == []
        assert ground == ("rgb(22, 21, 19)" if dark else "rgb(251, 250, 247)")


def test_a_phone_shows_it_without_scrolling_sideways(browser, page):
    with opened(browser, page, width=360):
        for _ in range(2):
            widths = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            assert browser.execute_script(widths) == [360, 360]
            browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        click(browser, "[role=option]", 1)
        # What was chosen comes into sight.
        top = browser.execute_script("return document.querySelector('#tree-title').getBoundingClientRect().top")
        assert 0 <= top < 900


def test_two_runs_are_compared_in_the_same_axes(browser, tmp_path):
    for name in ("first", "second"):
        write_run(tmp_path / name)
        write_evaluation(tmp_path / name / "evaluation")
    page = write_report([tmp_path / "first", tmp_path / "second"], tmp_path / "report.html")
    with opened(browser, page):
        assert "first" in one(browser, "h1").text and "second" in one(browser, "h1").text
        assert [item.text for item in every(browser, "#training-key li")] == ["first", "second"]
        assert len(every(browser, "#curves figure:first-child path.line")) == 2
        assert one(browser, "#figures thead").text.count("tester") == 4
        options = [option.text for option in Select(one(browser, "[name=source]")).options]
        assert "first: tester" in options and "second: training" in options


def test_distinct_attacks_are_curves_over_exchanges(browser, tmp_path):
    probes = [f"{'abcd'[n % 4] * 3} {n % 3}" for n in range(30)]
    run = write_run(tmp_path, [exchange([n], probe, "r", 0.9, round=1) for n, probe in enumerate(probes)])
    points = [("tester", 1, 0.75), ("tester", 2, 1.25), ("tester", 4, 2), ("baseline", 1, 0.25), ("baseline", 2, 0.5)]
    rows = [{"arm": arm, "target": "T", "exchanges": n, "attacks": found} for arm, n, found in points]
    write_evaluation(run / "evaluation", coverage=rows)
    with opened(browser, write_report(run, tmp_path / "report.html")):
        arms, training = one(browser, "#share-charts figure:last-child"), one(browser, "#curves figure:last-child")
        assert arms.text.startswith("Distinct successful probes\nby meaning")
        assert [item.text for item in arms.find_elements(By.CSS_SELECTOR, ".key li")] == ["tester", "untrained"]
        assert len(arms.find_elements(By.CSS_SELECTOR, "path.line:not(.key path)")) == 2
        browser.execute_script("arguments[0].focus()", arms.find_element(By.CSS_SELECTOR, "svg[role=img]"))
        browser.switch_to.active_element.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
        assert arms.text.endswith("exchanges 2: tester 1.25; untrained 0.5")
        assert "training" not in arms.text
        label = training.find_element(By.CSS_SELECTOR, "svg[role=img]").get_attribute("aria-label")
        assert label.startswith("Distinct successful probes so far, by wording, of all rounds, by exchanges.")
        assert "to 12 at 30" in label


def test_a_run_without_exchanges_is_a_page(browser, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with opened(browser, write_report(tmp_path, tmp_path / "report.html")):
        assert "No round of training is finished yet." in one(browser, "h1").text
        assert "No exchange is in these folders yet." in one(browser, "#conversations").text
        assert not one(browser, "#filters").is_displayed()


def test_ppos_contexts_are_shown_as_text_without_scores(browser, tmp_path):
    context = after(OPENING, "grown probe", "grown response")
    page = write_report(write_run(tmp_path, [exchange([1, 0], "p", "r", 1.0, context, round=1)]), tmp_path / "r.html")
    with opened(browser, page):
        assert turns(browser) == ["hello", "grown probe", "grown response", "p", "r"]
        assert [node.get_attribute("aria-label") for node in every(browser, "[role=treeitem]")] == [
            "text only. grown probe", "harm 1.00. p",
        ]  # fmt: skip
        assert "no scores" in one(browser, "#dialogue").text
        assert count(browser) == "1 of 1 exchange"


def test_deep_and_wide_trees_are_drawn(browser, tmp_path):
    lines, context = [], OPENING
    for depth in range(1, 120):
        lines.append(exchange([0] * depth, f"p{depth}", "r", 0.0, context, round=1))
        context = after(context, f"p{depth}", "r")
    lines += [exchange([i], f"w{i}", "r", 0.0, round=1, tree=1) for i in range(1800)]
    with opened(browser, write_report(write_run(tmp_path, lines), tmp_path / "report.html")):
        assert len(every(browser, "[role=treeitem]")) == 119
        one(browser, "[name=text]").send_keys("w1799")
        waited(browser, lambda: count(browser) == "1 of 1,919 exchanges")
        click(browser, "[role=option]")
        assert len(every(browser, "[role=treeitem]")) == 201
        assert "Of 1,800 exchanges" in one(browser, "#tree").text
        assert one(browser, "[role=treeitem][aria-selected=true]").get_attribute("aria-label") == "harm 0.00. w1799"


def test_fifty_thousand_exchanges_stay_usable(browser, tmp_path):
    draw = random.Random(0)
    lines = []
    for tree in range(50_000 // 84 + 1):
        for path in ([i] for i in range(4)):
            stack = [(path, OPENING)]
            while stack:
                at, context = stack.pop()
                probe, response = f"probe {draw.random()}", f"response {draw.random()}"
                more = {"round": tree // 20 + 1, "tree": tree % 20, "probe_logprob_per_token": -draw.expovariate(0.5)}
                lines.append(exchange(at, probe, response, draw.random(), context, **more))
                if len(at) < 3:
                    stack += [([*at, i], after(context, probe, response)) for i in range(4)]
    page = write_report(write_run(tmp_path / "run", lines), tmp_path / "report.html")
    assert page.stat().st_size < 400 * len(lines)
    with opened(browser, page):
        assert count(browser) == f"{len(lines):,} of {len(lines):,} exchanges"
        assert len(every(browser, "[role=option]")) < 40
        assert len(every(browser, "*")) < 3000
        one(browser, "#list").send_keys(Keys.END)
        names, total = ("aria-posinset", "aria-setsize"), str(len(lines))
        waited(
            browser,
            lambda: [every(browser, "[role=option]")[-1].get_attribute(name) for name in names] == [total, total],
        )
        assert len(every(browser, "[role=option]")) < 40
        one(browser, "[name=text]").send_keys(lines[40_000]["probe"])
        waited(browser, lambda: count(browser).startswith("1 of"))
        click(browser, "[role=option]")
        assert turns(browser)[-2:] == [lines[40_000]["probe"], lines[40_000]["response"]]


def hostile_run(folder, text):
    names = HOSTILE[:-1]
    scores = {text: 0.75, **dict.fromkeys(names, 0.5)}
    lines = [
        exchange([i], probe, HOSTILE[-1 - i], context=[["opening", probe], [text, probe]], round=1, scores=scores)
        | {"terms": dict.fromkeys(names, 1.5)}
        for i, probe in enumerate(HOSTILE)
    ]
    lines.append(exchange([99], "p", "r", error=text, context=[["opening", "fails"]], round=1))
    run = write_run(folder, lines, config=json.dumps({text: text, "target": text, "tester": text}))
    model = {"backend": text, "model": text, "weights": text, "sampling": {text: text}}
    arms = ("tester", "baseline", text)
    named = (f"harmful_share/{text}", f"harmful_share_turn_1/{text}", f"harmful_share_turn_2/{text}", text)
    evaluation = {
        "schema_version": 2,
        "settings": {"system": text, "openings": text, "seed": text, "harm": text, "scorers": [text, *names]}
        | {"versions": {text: text}},
        "arms": [{"arm": arm, "target": text, "description": {"tester": model, "target": model}} for arm in arms],
        "counts": [{"arm": text, "target": text, "exchanges": text, "unscored": {text: 1}}],
        "figures": [
            {"arm": arm, "target": text, "figure": name, "value": 0.5, "n": 1, "low": None, "high": 0.5}
            for arm in arms
            for name in named
        ],
        "differences": [
            {"arm": "tester", "against": text, "target": text, "figure": named[0], "value": 0.5, "n": 1}
            | {"low": 0.5, "high": 0.5}
        ],
    }
    (run / "evaluation").mkdir()
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation))
    heard = [{**line, "arm": arm, "target": text} for line in lines for arm in arms]
    write_lines(run / "evaluation" / "exchanges.jsonl", heard)
    return run


@pytest.mark.parametrize("text", [" ".join(HOSTILE[start:-1:4]) for start in range(4)], ids=range(4))
def test_hostile_text_and_names_are_shown_and_do_nothing(browser, tmp_path, text):
    folder = tmp_path / text.replace("/", "∕").replace("\0", "").replace("\ud800", "")[:80]
    page = write_report([hostile_run(folder, text), hostile_run(tmp_path / "b", text)], tmp_path / "report.html")
    with opened(browser, page):
        browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        for option in range(len(Select(one(browser, "#histogram-score")).options)):
            Select(one(browser, "#histogram-score")).select_by_index(option)
        for name in ("source", "score", "state"):
            for option in range(len(Select(one(browser, f"[name={name}]")).options)):
                Select(one(browser, f"[name={name}]")).select_by_index(option)
            Select(one(browser, f"[name={name}]")).select_by_index(0)
        one(browser, "canvas").send_keys(Keys.HOME)
        one(browser, "#list").send_keys(Keys.HOME)
        shown = []
        for _ in range(len(HOSTILE)):
            shown += turns(browser)
            one(browser, "#list").send_keys(Keys.ARROW_DOWN)
        assert f"Failed: {' '.join(visible(text).split())}" in " ".join(one(browser, "#dialogue").text.split())
        assert shown[::4] == [visible(said) for said in HOSTILE]
        # Nothing of it became an element, an attribute or a direction.
        assert browser.execute_script("return document.scripts.length") == 2
        assert not every(
            browser, "main img, iframe, b[class], [onload], [onerror], [onmouseover], a[href^=javascript]"
        )
        assert browser.execute_script("return Object.keys(Object.prototype).length") == 0
        widths = "return [document.documentElement.scrollWidth, innerWidth]"
        wide, inner = browser.execute_script(widths)
        assert wide <= inner
