"""Train the sandbox's tiny tester with CRT: `astra-trl sandbox run --system crt --algorithm ppo`.

`--reward '{"harm": 1, "likelihood": 0.1}'` makes it plain PPO. Needs TRL 1.12 or older, which has PPO.
"""

from astra_trl.cli.recipe import main
from astra_trl.sandbox.defaults import sandbox_defaults

DEFAULTS = sandbox_defaults("crt", "ppo")  # tree_depth 1, reward, kl_coef, ...

if __name__ == "__main__":
    main(DEFAULTS)
