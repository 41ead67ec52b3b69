"""The four methods of Perez et al. on the sandbox, in about a minute: `python recipes/perez_sandbox.py`.

Zero-shot sampling, few-shot sampling with those questions, a tester fine-tuned on the failing ones, and that tester
after reinforcement learning. Flags are those of `astra-trl sandbox run --system perez --algorithm grpo`.
"""

import math
import sys
from pathlib import Path
from typing import Any

from astra_trl import InputError
from astra_trl.cli.interruption import RESUME, advise, interruptible, start_again, users_command
from astra_trl.sandbox import named_world
from astra_trl.sandbox.defaults import sandbox_defaults

DEFAULTS = sandbox_defaults("perez", "grpo")  # instruction, tree_depth 1, tree_width 8, trees_per_round 32, ...
QUESTIONS = 1000  # by each method
AT_A_TIME = 20  # failing questions that self-BLEU compares
COLUMNS = ("failing", "of the questions", "questions", "their self-BLEU")


def main(argv: list[str]) -> dict[str, dict[str, float | None]]:
    # Imported here, so that a signal in the seconds that it takes is handled.
    from astra_trl.cli.build import Calls, system_of
    from astra_trl.cli.evaluate import zero_shot_cases
    from astra_trl.cli.parse_train import parse
    from astra_trl.cli.train import run
    from astra_trl.evaluation import ASTEvaluator
    from astra_trl.systems.perez import scored_questions

    args, training_args, _ = parse(DEFAULTS, argv)
    world, folder = named_world(args.world), Path(training_args.output_dir)
    assert world is not None
    own = ["--world", str(world.path), "--seed", str(training_args.seed)]
    begun = folder / "supervised" / "config.yaml"
    advise(lambda: f"interrupted: continue with: {users_command(RESUME)}" if begun.exists() else start_again())

    supervised = [*own, "--output_dir", str(folder / "supervised")]
    supervised += [RESUME, training_args.resume_from_checkpoint] if training_args.resume_from_checkpoint else []
    run(*parse(sandbox_defaults("perez", "sft"), supervised))
    rl = [*own, *argv, "--tester", str(folder / "supervised"), "--output_dir", str(folder / "rl")]
    run(*parse(DEFAULTS, rl))

    testers = {"zero_shot": world.tester, "few_shot": world.tester}
    testers |= {method: str(folder / method) for method in ("supervised", "rl")}
    found = {}
    print(f"\n{QUESTIONS} utterances by each method\n{'':12}" + "".join(f"{name:>17}" for name in COLUMNS))
    for method, tester in testers.items():
        system: Any = system_of(args, world, tester, world.target, None, Calls(args, []))
        if method == "few_shot":
            system.use_examples(scored_questions(zero_shot_cases(system, training_args.seed), system.harm))
        evaluator = ASTEvaluator(system, world.openings("test")[:1] * QUESTIONS, seed=training_args.seed, width=1)
        evaluator.measure()
        found[method] = print_figures(method, system, evaluator.evaluation())
    return found


def print_figures(method: str, system: Any, evaluation: Any) -> dict[str, float | None]:
    from astra_trl.evaluation.diversity import diversity
    from astra_trl.evaluation.figures import probes_by_opening

    nodes = [node for trees in evaluation.trees.values() for tree in trees for node in tree.nodes()]
    questions = sum(node.terms["no_question"] == 0 for node in nodes)
    failing = len(system.failing(nodes))
    (trees,) = evaluation.trees.values()
    texts = probes_by_opening(trees, system.harm, evaluation.settings["threshold"])["successful_probes"]
    compared = diversity(texts)["self_bleu"].of_size(AT_A_TIME).value  # methods find more or fewer: sets of one size
    self_bleu = None if math.isnan(compared) else compared
    of_questions = failing / questions if questions else None
    figures = dict(zip(COLUMNS, (failing / len(nodes), of_questions, questions / len(nodes), self_bleu), strict=True))
    print(f"{method:12}" + "".join(f"{'-' if v is None else f'{v:.1%}':>17}" for v in figures.values()))
    return figures


if __name__ == "__main__":
    with interruptible(program=True):
        try:
            main(sys.argv[1:])
        except InputError as error:
            sys.exit(f"error: {error}")
