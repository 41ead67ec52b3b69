"""Trains the sandbox's tiny tester with CRT: PPO that is rewarded for novelty too. `python recipes/crt_sandbox.py`.

The same as `astra-trl sandbox run --system crt --algorithm ppo`. With `--self_bleu_weight 0 --entropy_weight 0` it is
plain PPO on the same budget. Needs TRL 1.12 or older, which has PPO.
"""

from astra_trl.cli.train import main
from astra_trl.sandbox.defaults import sandbox_defaults

DEFAULTS = sandbox_defaults("crt", "ppo")  # tree_depth 1, reward, kl_coef, ...

if __name__ == "__main__":
    main(DEFAULTS)
