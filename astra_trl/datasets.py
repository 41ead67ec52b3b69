"""Named prompt sets under the names of ASTRA-RL, loaded when first used. The TRL way is [`load_prompts`]."""

from astra_trl.prompts import CONVOKIT_REDDIT_DEV, CONVOKIT_REDDIT_TEST, CONVOKIT_REDDIT_TRAIN

__all__ = ["CONVOKIT_REDDIT_DEV", "CONVOKIT_REDDIT_TEST", "CONVOKIT_REDDIT_TRAIN"]
