"""README and docs: links lead somewhere, configurations and commands are accepted, and pages stay short."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from astra_trl.backends.api.endpoint import Endpoint
from astra_trl.cli.build import Calls
from astra_trl.cli.launching import split_launch_flags
from astra_trl.cli.parse_evaluate import evaluate_parser
from astra_trl.cli.parse_train import parse, train_parser
from astra_trl.lookup import is_dotted_path
from astra_trl.rewards.config import TERMS
from astra_trl.scorers.config import SCORERS
from astra_trl.systems import SYSTEMS
from astra_trl.trainers import TRAINERS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(language: str) -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in PAGES]
    return [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_to_files_and_headings(name):
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
    for path in re.findall(r"`((?:astra_trl|benchmarks|examples|recipes|tests)/[\w/.-]*)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path


def test_pages_are_short_and_in_the_index():
    for path in PAGES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 200, path
    for index in (ROOT / "README.md", ROOT / "docs" / "README.md"):
        linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([\w/]+\.md)\)", index.read_text())}
        assert set((ROOT / "docs").glob("*.md")) <= linked | {ROOT / "docs" / "README.md"}


def test_code_is_python_and_its_imports_exist():
    for block in blocks("python"):
        compile(block, "docs", "exec")
        for line in re.findall(r"^from astra_trl.*$", block, re.MULTILINE):
            exec(line, {})


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_configuration_is_accepted(block, tmp_path):
    settings = yaml.safe_load(block)
    (tmp_path / "run.yaml").write_text(block)
    system = settings.pop("system", "astprompter")
    assert system in SYSTEMS or is_dotted_path(system)
    args, _, _ = parse({"output_dir": str(tmp_path), "report_to": "none"}, ["--config", str(tmp_path / "run.yaml")])
    Calls(args, [] if args.target is None else [args.target])  # scorers, target and their limits
    for name, term in (settings.get("reward") or {}).items():
        kind = term.get("type", name) if isinstance(term, dict) else name
        assert kind in TERMS or is_dotted_path(kind)


@pytest.mark.parametrize(
    "command",
    [
        command
        for block in blocks("bash")
        for command in re.sub(r" *\\\n *", " ", block).splitlines()
        if command.startswith(("astra-trl train", "astra-trl evaluate", "astra-trl sandbox run"))
    ],
)
def test_a_command_has_known_flags(command):
    _, verb, *argv = shlex.split(command, comments=True)
    if verb == "evaluate":
        given = evaluate_parser().parse_given(argv)
    else:
        argv = argv[1:] if verb == "sandbox" else argv
        algorithm = argv[argv.index("--algorithm") + 1] if "--algorithm" in argv else "dpo"
        _, rest = split_launch_flags(argv, train_parser("astra-trl", algorithm))
        given = train_parser("astra-trl", algorithm).parse_given(rest)
    assert given or verb == "sandbox"


def test_every_name_and_key_of_the_configuration_is_documented():
    page = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("configuration", "systems")}
    scorers_and_rewards = (ROOT / "docs" / "scorers_and_rewards.md").read_text(encoding="utf-8")
    api_targets = (ROOT / "docs" / "api_targets.md").read_text(encoding="utf-8")
    flags = {flag for action in train_parser("astra-trl")._actions for flag in action.option_strings}
    own = {flag for flag in flags if flag.startswith("--") and not flag.startswith(("--no_", "--help"))}
    documented = set(re.findall(r"--\w+", page["configuration"]))
    assert {flag for flag in own if "-" not in flag[2:]} <= documented
    for text, names in (
        (page["systems"], SYSTEMS),
        (page["configuration"], [*SYSTEMS, *TRAINERS]),
        (scorers_and_rewards, [*SCORERS, *TERMS]),
        (api_targets, Endpoint.__dataclass_fields__),
    ):
        missing = [name for name in names if not re.search(rf"`{name}`|`--\w+ {name}`|\b{name}: ", text)]
        assert not missing
