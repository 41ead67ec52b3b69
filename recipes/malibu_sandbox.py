"""Train the tiny tester against a target that is rude two turns later: `astra-trl sandbox run --system malibu`.

With `--system astprompter` the tester is rewarded only for the next response.
"""

from astra_trl.cli.recipe import main
from astra_trl.sandbox.defaults import sandbox_defaults

DEFAULTS = sandbox_defaults("malibu", "dpo")  # world "delayed", tree_depth 4, ...

if __name__ == "__main__":
    main(DEFAULTS)
