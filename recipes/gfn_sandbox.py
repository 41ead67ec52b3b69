"""Train the sandbox's tiny tester with GFN on a CPU: the same as `astra-trl sandbox run --algorithm gfn`.

It finds all weaknesses evenly. `--world wide` has 24 of them, the rarest in one turn in 5,000.
"""

from astra_trl.cli.recipe import main
from astra_trl.sandbox.defaults import SANDBOX

DEFAULTS = SANDBOX["gfn"]  # tree_width 4, tree_depth 3, trees_per_round 7, learning_rate, ...

if __name__ == "__main__":
    main(DEFAULTS)
