import json
import re
import subprocess
import sys

import pytest

from astra_trl import InputError
from astra_trl.report import markdown_report, write_report
from astra_trl.report.data import report_data
from astra_trl.report.exchanges import distinct_bigrams, read_exchanges
from astra_trl.report.figures import headline, summary_line, tables
from astra_trl.report.page import html_report
from astra_trl.results.reading import read_folders

OPENING = [["opening", "hello"]]


def exchange(path, probe, response, harm=0.0, context=OPENING, error=None, **more):
    scores = {} if error else {"harm": harm, "harm_probe_and_response": 0.25}
    terms = {} if error else {"target_harm": harm, "likelihood": -1.5}
    return {
        "tree": 0,
        "path": path,
        "depth": len(path),
        "context": context,
        "probe": probe,
        "response": response,
        "probe_logprob_per_token": -1.5,
        "scores": scores,
        "terms": terms,
        "reward": None if error or harm is None else harm - 0.15,
        "credit": None if error or harm is None else harm - 0.15,
        "error": error,
        "sampling_logprobs": [-0.5],
        **more,
    }


def after(context, probe, response):
    return [*context, ["tester", probe], ["target", response]]


def write_lines(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def training_lines():
    below = after(OPENING, "p0", "r0")
    return [
        exchange([0], "p0", "r0", 0.0, round=1),
        exchange([0, 0], "p00", "r00", 0.9, below, round=1),
        exchange([0, 1], "p01", "r01", None, below, round=1),
        exchange([1], "p1", "", error="the window is full", round=1),
        exchange([0], "one two one two", "fine", 0.5, round=2),
    ]


def write_run(folder, lines=None, log=(), config="beta: 0.1\nnum_train_epochs: 4\n", rounds=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    lines = training_lines() if lines is None else lines
    write_lines(folder / "exchanges.jsonl", lines)
    if rounds is None:
        rounds = [
            {"round": 1, "harmful_share": 0.25, "reward": 0.1, "probe_logprob_per_token": -1.5},
            {"round": 2, "harmful_share": 0.75, "reward": None, "probe_logprob_per_token": -1.25},
        ]
    write_lines(folder / "rounds.jsonl", rounds)
    if log:
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": list(log)}))
    return folder


def row(arm, figure, value, target="T", **more):
    return {"arm": arm, "target": target, "figure": figure, "value": value, "n": 6, "low": 0.1, "high": 0.9, **more}


def write_evaluation(folder, arms=("baseline", "openings", "tester"), targets=("T",), scorers=("harm",), **changes):
    folder.mkdir(parents=True, exist_ok=True)
    figures, differences, lines, counts = [], [], [], []
    shares = {"tester": 0.717, "baseline": 0.077, "openings": 0.03, "other": 0.4}
    for target in targets:
        for arm in arms:
            for scorer in scorers:
                figures += [row(arm, f"harmful_share/{scorer}", shares[arm], target)]
                figures += [row(arm, f"harmful_share_turn_{t}/{scorer}", shares[arm] / t, target) for t in (1, 2)]
            figures += [row(arm, "reward", None, target, low=None, high=None), row(arm, "score_max/harm", 1, target)]
            counts.append(
                {"arm": arm, "target": target, "conversations": 2, "exchanges": 4, "failed": 1, "empty_probes": 0}
                | {"empty_responses": 0, "unrewarded": 0, "unscored": {"harm": 2}}
            )
            for tree in (0, 1):
                opening = [["opening", f"opening {tree}"]]
                first = exchange([0], f"{arm} asks", f"answer to {arm}", 1.0, opening)
                if arm == "openings":
                    first = exchange([0], f"opening {tree}", "answer", 0.0, [])
                said = [first]
                if arm != "openings":
                    said.append(
                        exchange([0, 0], "more", "enough", 0.0, after(opening, first["probe"], first["response"]))
                    )
                more = {"arm": arm, "target": target, "tree": tree, "baseline_logprob_per_token": -2.5}
                lines += [{**line, **more} for line in said]
        for against in ("baseline", "openings"):
            if {"tester", against} <= set(arms):
                differences.append(row("tester", f"harmful_share/{scorers[0]}", 0.64, target, against=against))
    model = {
        "backend": "HFBackend",
        "model": "org/tester",
        "weights": "abc",
        "parameters": 1234,
        "sampling": {"top_k": 0},
    }
    data = {
        "schema_version": 2,
        "settings": {
            "system": "HFASTSystem",
            "openings": 2,
            "openings_digest": "d1",
            "seed": 0,
            "width": 1,
            "depth": 2,
        }
        | {
            "threshold": 0.5,
            "harm": scorers[0],
            "scorers": list(scorers),
            "draws": 1000,
            "versions": {"trl": "9.9"},
        },
        "arms": [
            {"arm": arm, "target": target, "description": {"tester": model, "target": model, "baseline": None}}
            for target in targets
            for arm in arms
        ],
        "counts": counts,
        "figures": figures,
        "differences": differences,
        **changes,
    }
    (folder / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")
    write_lines(folder / "exchanges.jsonl", lines)
    return folder


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def data_of(*folders):
    return report_data(read_folders(folders))


def text_of(data, row):
    return data["texts"][data["rows"]["probe"][row]], data["texts"][data["rows"]["response"][row]]


def test_the_package_needs_nothing_that_trains():
    code = (
        "import sys, astra_trl.report\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'pandas', 'numpy', 'pyarrow', 'datasets') "
        "if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_exchanges_are_columns_with_every_text_once(tmp_path):
    data = data_of(write_run(tmp_path / "run"))
    assert data["sources"] == [
        {"folder": 0, "arm": None, "target": None, "harm": "harm", "threshold": 0.5, "name": "training"}
    ]
    assert data["trees"]["round"] == [1, 2] and data["trees"]["count"] == [4, 1]
    assert data["openings"] == [[["opening", 0]]] and data["texts"][0] == "hello"
    assert [text_of(data, row) for row in range(5)] == [
        ("p0", "r0"), ("p00", "r00"), ("p01", "r01"), ("p1", ""), ("one two one two", "fine"),
    ]  # fmt: skip
    assert data["rows"]["parent"] == [-1, 0, 0, -1, -1]
    assert data["rows"]["depth"] == [1, 2, 2, 1, 1]
    assert len(data["texts"]) == len(set(data["texts"]))


def test_what_failed_or_was_not_scored_is_no_number(tmp_path):
    data = data_of(write_run(tmp_path / "run"))
    assert data["scores"]["harm"] == [0, 0.9, "nan", None, 0.5]
    assert data["scores"]["harm_probe_and_response"] == [0.25, 0.25, 0.25, None, 0.25]
    assert data["terms"]["target_harm"] == [0, 0.9, "nan", None, 0.5]
    assert data["numbers"]["reward"] == [-0.15, 0.75, None, None, 0.35]
    assert data["numbers"]["baseline_logprob_per_token"] == [None] * 5
    assert [error and data["texts"][error] for error in data["rows"]["error"]] == [
        None, None, None, "the window is full", None,
    ]  # fmt: skip


def test_rounding_carries_no_score_over_the_threshold(tmp_path):
    lines = [exchange([i], "p", "r", harm, round=1) for i, harm in enumerate((0.49999999, 0.12345678, 0.50000001))]
    assert data_of(write_run(tmp_path / "run", lines))["scores"]["harm"] == [0.49999999, 0.123457, 0.5]


def test_contexts_that_ppo_keeps_no_exchange_of_are_shown_as_text(tmp_path):
    grown = after(OPENING, "grown probe", "grown response")
    lines = [
        # At the place of its parent stands another exchange: PPO's own answer to the opening.
        exchange([2], "ppo probe", "ppo response", 1.0, round=1, step=1),
        exchange([2, 0], "a", "b", 0.0, grown, round=1, step=1),
        exchange([2, 0, 0], "e", "f", 0.0, after(grown, "c", "d"), round=1, step=2),
        exchange([2, 0, 0], "g", "h", 0.0, after(grown, "c", "d"), round=1, step=2),
    ]
    data = data_of(write_run(tmp_path / "run", lines))
    assert data["trees"]["count"] == [4] and data["trees"]["count_unmeasured"] == [2]
    assert [text_of(data, row) for row in (4, 5)] == [("grown probe", "grown response"), ("c", "d")]
    assert data["rows"]["parent"] == [-1, 4, 5, 5, -1, 4]
    assert len(data["scores"]["harm"]) == 4  # those known as context have none


def test_curves_are_read_from_the_rounds(tmp_path):
    curves = {curve["title"]: curve for curve in data_of(write_run(tmp_path / "run"))["curves"]}
    assert curves["Harmful share of responses"]["series"] == [{"folder": 0, "points": [(1, 0.25), (2, 0.75)]}]
    assert curves["Reward"]["series"] == [{"folder": 0, "points": [(1, 0.1)]}]
    assert curves["Probe log-probability"]["unit"] == "nats per token"


def test_diversity_compares_as_many_probes_in_each_round(tmp_path):
    assert distinct_bigrams(["one two one two", "One."]) == 3 / 4
    assert distinct_bigrams(["", "one"]) is None
    lines = [exchange([i], "one two", "r", round=1) for i in range(4)]
    lines += [exchange([i], probe, "r", round=2) for i, probe in enumerate(("a b", "c d"))]
    lines += [exchange([0], "unfinished round", "r", round=3)]
    (curve,) = [c for c in data_of(write_run(tmp_path / "run", lines))["curves"] if "distinct-2" in c["title"]]
    assert curve["series"][0]["points"] == [(1, 0.5), (2, 1.0)]
    assert "2 probes per round" in curve["unit"]


@pytest.mark.parametrize(
    ("logged", "config", "value", "unit"),
    [
        ({"rewards/chosen": 0.3, "rewards/rejected": -0.1}, "beta: 0.1", 1.0, "nats per probe"),
        ({"kl": 0.02}, "beta: 0.04", 0.02, "nats per token"),
        ({"objective/kl": 3.5}, "kl_coef: 0.05", 3.5, "nats per probe"),
    ],
)
def test_kl_is_named_by_its_algorithms_unit(tmp_path, logged, config, value, unit):
    log = [{"epoch": 0.5, **logged}, {"epoch": 1.0, "round": 1}, {"epoch": 1.5, "loss": 2}]
    curves = data_of(write_run(tmp_path / "run", log=log, config=config))["curves"]
    (curve,) = [c for c in curves if "baseline" in c["title"]]
    assert curve["series"] == [{"folder": 0, "points": [(0.5, pytest.approx(value))]}]
    assert curve["unit"] == unit and curve["x"] == "rounds trained"


def test_the_log_of_a_run_that_was_killed_is_in_its_last_checkpoint(tmp_path):
    run = write_run(tmp_path / "run")
    for step, kl in ((8, 1.0), (10, 2.0)):
        (run / f"checkpoint-{step}").mkdir()
        state = {"log_history": [{"epoch": 1, "objective/kl": kl, "eval_harmful": 0.5, "eval_runtime": 3.0}]}
        (run / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    curves = {curve["title"]: curve["series"][0]["points"] for curve in data_of(run)["curves"]}
    assert curves["KL from the baseline"] == [(1, 2.0)]
    assert curves["eval_harmful"] == [(1, 0.5)] and "eval_runtime" not in curves


def test_figures_stand_beside_the_untrained_tester(tmp_path):
    (folder,) = read_folders(write_evaluation(tmp_path / "e"))
    assert headline(folder) == "Harmful in 71.7% of responses; untrained 7.7%, openings alone 3.0%."
    table = tables([folder])["figures"]
    assert table.head == ["tester", "untrained", "openings alone", "tester − untrained"]
    assert table.rows[0] == (
        "Harmful responses",
        [
            ("71.7%", "[10.0, 90.0]"),
            ("7.7%", "[10.0, 90.0]"),
            ("3.0%", "[10.0, 90.0]"),
            ("+64.0 points", "[10.0, 90.0]"),
        ],
    )
    assert table.rows[1] == ("Reward, mean", [("–", ""), ("–", ""), ("–", ""), ("", "")])


def test_without_the_untrained_tester_the_openings_are_what_it_is_compared_with(tmp_path):
    (folder,) = read_folders(write_evaluation(tmp_path / "e", arms=("tester", "openings")))
    assert headline(folder) == "Harmful in 71.7% of responses; openings alone 3.0%."
    assert tables([folder])["figures"].head == ["tester", "openings alone", "tester − openings alone"]


def test_no_figure_without_anything_beside_it(tmp_path):
    page = html_report(read_folders(write_evaluation(tmp_path / "e", arms=("tester", "other"))))
    assert "71.7" not in page and "0.717" not in page and "No figures are shown" in page
    assert embedded(page)["shares"] == []
    assert "71.7" not in markdown_report(tmp_path / "e")


def test_a_figure_that_the_untrained_tester_lacks_is_left_out(tmp_path):
    figures = [row("tester", "harmful_share/harm", 0.5), row("baseline", "harmful_share/harm", 0.25)]
    figures += [row("tester", "harmless_looking/harm", 0.123), row("openings", "harmless_looking/harm", 0.2)]
    page = html_report(read_folders(write_evaluation(tmp_path / "e", figures=figures)))
    assert "50.0%" in page and "25.0%" in page and "12.3%" not in page


def test_beside_another_folder_too_a_figure_needs_its_own_untrained_tester(tmp_path):
    both = [row("tester", "harmful_share/harm", 0.5), row("baseline", "harmful_share/harm", 0.25)]
    write_evaluation(tmp_path / "a", figures=both)
    write_evaluation(tmp_path / "b", figures=both[:1])
    table = tables(read_folders([tmp_path / "a", tmp_path / "b"]))["figures"]
    assert [cell.text for cell in table.rows[0][1][:6]] == ["50.0%", "25.0%", "", "", "", ""]


def test_names_from_right_to_left_are_isolated_and_others_are_not(tmp_path):
    (folder,) = read_folders(write_evaluation(tmp_path / "e", scorers=("harm", "שלום"), targets=("T", "U")))
    labels = [label for label, _ in tables([folder])["figures"].rows]
    assert labels[:2] == ["Harmful responses, by harm", "Harmful responses, by \u2068שלום\u2069 (held out)"]


def test_held_out_scorers_and_further_targets_are_named(tmp_path):
    (folder,) = read_folders(write_evaluation(tmp_path / "e", targets=("T", "U"), scorers=("harm", "guard")))
    labels = [label for label, _ in tables([folder])["figures"].rows]
    assert labels[:2] == ["Harmful responses, by harm", "Harmful responses, by guard (held out)"]
    transfer = tables([folder])["transfer"]
    assert transfer.head == ["scorer", "tester", "untrained", "openings alone", "tester − untrained"]
    assert [(label, cells[0].text, cells[1].text) for label, cells in transfer.rows] == [
        ("T (headline)", "harm", "71.7%"), ("T (headline)", "guard", "71.7%"),
        ("U", "harm", "71.7%"), ("U", "guard", "71.7%"),
    ]  # fmt: skip
    names = [source["name"] for source in data_of(tmp_path / "e")["sources"]]
    assert names == [
        "tester, T",
        "untrained, T",
        "openings alone, T",
        "tester, U",
        "untrained, U",
        "openings alone, U",
    ]


def test_shares_and_turns_have_their_intervals(tmp_path):
    shares = data_of(write_evaluation(tmp_path / "e"))["shares"]
    assert [share["name"] for share in shares] == ["tester", "untrained", "openings alone"]
    assert {key: shares[0][key] for key in ("value", "low", "high", "n")} == {
        "value": 0.717, "low": 0.1, "high": 0.9, "n": 6,
    }  # fmt: skip
    assert [(turn["turn"], turn["value"], turn["low"]) for turn in shares[1]["turns"]] == [
        (1, 0.077, 0.1), (2, 0.0385, 0.1),
    ]  # fmt: skip


def test_counts_say_what_failed_and_what_was_not_scored(tmp_path):
    counts = tables(read_folders(write_evaluation(tmp_path / "e")))["counts"]
    assert counts.head[-1] == "not scored"
    assert counts.rows[0] == ("tester, T", [(text, "") for text in ("2", "4", "1", "0", "0", "0", "harm 2")])


def test_several_folders_stand_side_by_side(tmp_path):
    first = write_run(tmp_path / "a" / "run")
    write_evaluation(first / "evaluation")
    second = write_run(tmp_path / "b" / "run", lines=[exchange([0], "x y", "z", round=1)])
    write_evaluation(second / "evaluation")
    data = data_of(first, second)
    assert data["folders"] == ["a/run", "b/run"]
    (curve,) = [c for c in data["curves"] if c["title"] == "Harmful share of responses"]
    assert [series["folder"] for series in curve["series"]] == [0, 1]
    table = tables(read_folders([first, second]))["figures"]
    assert table.head == [
        "a/run: tester", "a/run: untrained", "a/run: openings alone",
        "b/run: tester", "b/run: untrained", "b/run: openings alone",
        "a/run: tester − untrained", "b/run: tester − untrained",
    ]  # fmt: skip
    assert [cell.text for cell in table.rows[0][1]][3:6] == ["71.7%", "7.7%", "3.0%"]
    assert "### What was tested: b/run" in markdown_report([first, second])


def test_what_was_tested_is_on_the_page(tmp_path):
    run = write_run(tmp_path / "run", config="beta: 0.1\nnum_train_epochs: 4\nlearning_rate: 0.0005\n")
    (run / "summary.json").write_text('{"algorithm": "dpo"}')
    write_evaluation(run / "evaluation")
    page = html_report(read_folders(run))
    for text in ("org/tester · 1,234 parameters · weights abc · top_k 0", "trl 9.9", "digest d1", "2 of 4", "dpo"):
        assert text in page
    assert "<dt>learning_rate</dt><dd><bdi>0.0005</bdi></dd>" in page


def test_nested_settings_are_shown(tmp_path):
    target = "target: {model: openai:org/chat, temperature: 0}"
    scorers = "{insults: {type: detoxify, category: insult}, words: {type: keyword, words: /home/alice/w.txt}}"
    config = f"{target}\nscorers: {scorers}\nreward: {{harm: 1, length: 0.5}}\n"
    text = markdown_report(write_run(tmp_path / "run", config=config))
    assert "- target: model openai:org/chat, temperature 0\n" in text
    assert "- scorer: insults (type detoxify, category insult), words (type keyword, words alice/w.txt)\n" in text
    assert "- reward: harm 1, length 0.5\n" in text and "/home" not in text


def test_a_run_that_has_just_begun_gives_a_report(tmp_path):
    (tmp_path / "config.yaml").write_text("target: org/target\n")
    page = write_report([tmp_path], tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "No round of training is finished yet." in page and "org/target" in page
    assert "No round of training is finished yet." in markdown_report(tmp_path)


def test_a_run_before_its_evaluation_compares_its_rounds(tmp_path):
    (folder,) = read_folders(write_run(tmp_path / "run"))
    assert headline(folder) == "Harmful in 75.0% of responses in training’s round 2, 25.0% in round 1."
    assert "In no figure" not in summary_line(folder)
    last = {"round": 1, "harmful_share": 0.5, "exchanges": 9, "failed": 0, "empty_responses": 4, "unscored": 1}
    (folder,) = read_folders(write_run(tmp_path / "filtered", rounds=[last]))
    assert summary_line(folder).endswith("In no figure of harm in the last round: 4 empty, 1 not scored of 9.")


def test_an_unfinished_last_line_is_skipped(tmp_path):
    run = write_run(tmp_path / "run")
    for file in (run / "exchanges.jsonl", run / "rounds.jsonl"):
        with file.open("ab") as lines:
            lines.write(b'{"round": 3, "probe": "caf\xc3')
    assert len(data_of(run)["rows"]["probe"]) == 5


def damage(file, text):
    def change(run):
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).write_text(text, encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            damage("exchanges.jsonl", '{"round": 1}\n{"round": 2\n{}\n'),
            r"exchanges.jsonl', line 1 is damaged \(it is not an exchange\)",
        ),
        (damage("exchanges.jsonl", "[1]\n"), r"exchanges.jsonl', line 1 is damaged \(it holds list, not an object\)"),
        (
            damage("exchanges.jsonl", json.dumps(exchange([0, 0], "p", "r", round=1)) + "\n"),
            r"line 1 is damaged \(it is not an exchange\)",
        ),
        (
            damage("exchanges.jsonl", json.dumps(exchange([0], 5, "r", round=1)) + "\n"),
            r"line 1 is damaged \(it is not an exchange\)",
        ),
        (damage("rounds.jsonl", '{"round"\n{"round": 2}\n'), r"rounds.jsonl', line 1 is damaged \(Expecting"),
        (damage("config.yaml", "a: [\n"), "config.yaml' is damaged"),
        (damage("summary.json", "[]"), "summary.json' is damaged"),
        (
            damage("trainer_state.json", '{"log_history": [1]}'),
            "trainer_state.json' is damaged .log_history must be a list",
        ),
        (damage("evaluation/evaluation.json", '{"schema_version": 3}'), "has schema_version 3, and this .* reads 2"),
        (damage("evaluation/evaluation.json", '{"schema_version": 2}'), "no settings"),
        (
            damage("evaluation/evaluation.json", '{"schema_version": 2, "settings": {}}'),
            "harm and scorers must be names",
        ),
        (
            damage(
                "evaluation/evaluation.json",
                '{"schema_version": 2, "settings": {"harm": "h", "scorers": []}, "arms": [{"arm": "x"}]}',
            ),
            "arms must be a list of objects with arm, target",
        ),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, change, message):
    run = write_run(tmp_path / "run")
    change(run)
    with pytest.raises(InputError, match=message) as error:
        write_report([run], tmp_path / "report.html")
    assert "\n" not in str(error.value) and not (tmp_path / "report.html").exists()


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folders, message in (
        ([], "give a folder to report on"),
        ([tmp_path / "nowhere"], "is not a folder"),
        ([tmp_path / "empty"], "holds no run and no evaluation"),
    ):
        with pytest.raises(InputError, match=message):
            write_report(folders, tmp_path / "report.html")
    write_lines(tmp_path / "unfinished" / "exchanges.jsonl", [])
    with pytest.raises(InputError, match="evaluation without evaluation.json: evaluate again"):
        write_report(tmp_path / "unfinished", tmp_path / "report.html")


def test_of_too_many_exchanges_whole_trees_are_kept(tmp_path):
    lines = [exchange([i], f"p{tree}", "r", round=1, tree=tree) for tree in range(10) for i in range(4)]
    found = read_exchanges(read_folders(write_run(tmp_path / "run", lines)), limit=12)
    assert found.in_files == 40
    assert [tree[2] for tree in found.trees] == [0, 4, 8] and len(found.rows["probe"]) == 12
    assert len(found.probes[0][1]) == 40  # diversity is that of all


def test_small_files_are_whole_and_leave_their_room_to_large_ones(tmp_path):
    def run(name, trees):
        lines = [exchange([i], f"p{tree}", "r", round=1, tree=tree) for tree in range(trees) for i in range(4)]
        return write_run(tmp_path / name, lines)

    folders = read_folders([run("large", 30), run("small", 3), run("middle", 10)])
    kept = {most: len(read_exchanges(folders, most).rows["probe"]) for most in (172, 171, 112)}
    assert kept == {172: 172, 171: 112, 112: 12 + 40 + 60}


def test_the_page_is_one_file_that_lets_nothing_else_in(tmp_path):
    hostile = "</script><script>alert(1)</script><!-- script --> \u202e\ud800\u2028"
    folder = hostile.replace("/", "∕").replace("\ud800", "\udc80")  # as undecodable bytes of a name are read
    run = write_run(tmp_path / folder, [exchange([0], hostile, hostile, round=1)])
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2 and "alert(1)</script>" not in page
    assert "default-src 'none'; script-src 'sha256-" in page and "unsafe" not in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page) and "@import" not in page and "url(" not in page
    visible = "</script><script>alert(1)</script><!-- script --> ⟨U+202E⟩⟨U+D800⟩⟨U+2028⟩"
    assert visible in embedded(page)["texts"]
    assert "\u202e" not in page and "\u2028" not in page


def test_markdown_holds_figures_counts_and_three_conversations(tmp_path):
    text = markdown_report(write_evaluation(tmp_path / "e"))
    assert text.startswith(
        "**Harmful in 71.7% of responses; untrained 7.7%, openings alone 3.0%.** HFASTSystem against T"
    )
    assert "| | tester | untrained | openings alone | tester − untrained |\n|---|---:|---:|---:|---:|" in text
    assert "| Harmful responses | 71.7% \\[10.0, 90.0\\] | 7.7% \\[10.0, 90.0\\]" in text
    assert "| tester, T | 2 | 4 | 1 |" in text
    assert "\n```text\nopening: opening 0\ntester: tester asks\ntarget: answer to tester [harm 1.00]\n" in text
    assert text.count("```text") == 2


def test_markdown_and_html_in_model_text_stay_text(tmp_path):
    folder = write_evaluation(tmp_path / "e", targets=("a|b<img src=x>*x*[l](javascript:1)\n# h",))
    lines = [json.loads(line) for line in (folder / "exchanges.jsonl").read_text().splitlines()]
    for line in lines:
        if line["arm"] == "tester":
            line["response"] = "````\n# heading <b>\u202e\x1b[31m"
    write_lines(folder / "exchanges.jsonl", lines)
    text = markdown_report(folder)
    assert "against a\\|b&lt;img src=x&gt;\\*x\\*\\[l\\](javascript:1) \\# h on" in text
    outside, inside = (
        re.sub(r"\n(`{3,})text\n.*?\n\1\n", "\n", text, flags=re.S),
        re.findall(r"`{5}text\n.*?\n`{5}\n", text, re.S),
    )
    assert "<" not in outside and "heading" not in outside
    assert len(inside) == 2 and "target: ```` # heading <b>⟨U+202E⟩⟨U+001B⟩[31m [harm 1.00]" in inside[0]


def test_whose_machine_it_was_is_not_told(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text("output_dir: /home/alice/secret/runs/x\ntester: org/model\nbeta: 0.1\n")
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "alice" not in page and str(tmp_path) not in page
    assert "runs/x" in page and "org/model" in page
