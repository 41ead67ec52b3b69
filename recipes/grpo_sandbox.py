"""Train the sandbox's tiny tester with GRPO on a CPU: the same as `astra-trl sandbox run --algorithm grpo`."""

from astra_trl.cli.recipe import main
from astra_trl.sandbox.defaults import SANDBOX

DEFAULTS = SANDBOX["grpo"]  # tree_width 4, tree_depth 3, trees_per_round 7, learning_rate, ...

if __name__ == "__main__":
    main(DEFAULTS)
