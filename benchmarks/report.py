"""Size and speed of a report: written, opened in headless Chromium, filtered.

    python -m benchmarks.report --exchanges 50000

The run is synthetic: trees of width 4 and depth 3 with random words. `pip install 'astra-trl[test]'` brings selenium;
`chromium` and `chromedriver` must be on the PATH.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from astra_trl.conversation import Exchange, Turn
from astra_trl.lines import as_line
from astra_trl.report import write_report
from astra_trl.rollout.run_folder import exchange_line
from astra_trl.tree import Node

WORDS = [f"word{number}" for number in range(3000)]
FILTERS = {
    "a word": ("text", "word77"),
    "harm of at least 0.9": ("low", "0.9"),
    "turn 2": ("depth", "2"),
    "highest score first": ("order", "highest score first"),
    "all again": ("low", ""),
}


def make_text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=12))


def tree_lines(rng: random.Random, tree: int, width: int = 4, depth: int = 3) -> Iterator[dict]:
    stack = [((), (Turn("opening", make_text(rng)),))]
    while stack:
        path, context = stack.pop()
        for sibling in range(width if len(path) < depth else 0):
            score = rng.random()
            node = Node(
                Exchange(context, make_text(rng), make_text(rng)),
                [],
                [],
                -rng.expovariate(0.5),
                scores={"harm": score},
            )
            node.terms, node.reward, node.credit = {"target_harm": score}, score, score
            yield exchange_line(node, tree, [*path, sibling])
            stack.append(((*path, sibling), node.exchange.conversation))


def make_run(folder: Path, exchanges: int) -> int:
    """Write a run of about so many exchanges, and return their number."""
    rng, count, per_round = random.Random(0), 0, 20
    (folder / "config.yaml").write_text("output_dir: run\nseed: 0\n")
    with (folder / "exchanges.jsonl").open("w") as file:
        for tree in range(-(-exchanges // 84)):
            for line in tree_lines(rng, tree % per_round):
                file.write(as_line({"round": 1 + tree // per_round, **line}))
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=50_000)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    with tempfile.TemporaryDirectory() as name:
        folder, page = Path(name) / "run", Path(name) / "report.html"
        folder.mkdir()
        count = make_run(folder, args.exchanges)
        write_seconds = []
        for _ in range(args.turns):
            start = time.perf_counter()
            write_report([folder], page)
            write_seconds.append(time.perf_counter() - start)
        size, source = page.stat().st_size, (folder / "exchanges.jsonl").stat().st_size
        print(f"{count:,} exchanges, {source / 1e6:.0f} MB of lines -> {size / 1e6:.1f} MB of HTML")
        print(f"{'written':<24}{format_times(write_seconds, 's')}")
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        open_seconds = []
        for _ in range(args.turns):
            start = time.perf_counter()
            driver.get(page.as_uri())
            driver.execute_script("return document.querySelector('[role=option]').textContent")
            open_seconds.append(time.perf_counter() - start)
        print(f"{'opened':<24}{format_times(open_seconds, 's')}")
        milliseconds: dict[str, list[float]] = {label: [] for label in FILTERS}
        for _ in range(args.turns):
            for label, (field, value) in FILTERS.items():
                milliseconds[label].append(apply_filter(driver, field, value))
        for label, times in milliseconds.items():
            print(f"{label:<24}{format_times(times, 'ms')}")
        driver.quit()


def apply_filter(driver: webdriver.Chrome, field: str, value: str) -> float:
    """Return the milliseconds, measured by the page, that it takes to filter and list the exchanges."""
    script = """
        const [name, value] = arguments, form = document.getElementById("filters");
        form.reset();
        form.elements[name].value = value;
        delete form.dataset.milliseconds;
        form.dispatchEvent(new Event("change"));
        return form.dataset.milliseconds ?? "0";
    """
    return float(driver.execute_script(script, field, value))


def format_times(values: list[float], unit: str) -> str:
    digits = 1 if unit == "ms" else 2
    spread = f"({min(values):.{digits}f}-{max(values):.{digits}f})"
    return f"{statistics.median(values):>10.{digits}f} {unit:<3}{spread:>16}"


if __name__ == "__main__":
    main()
