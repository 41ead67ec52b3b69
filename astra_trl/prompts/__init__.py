"""Named prompt sets, local files and Hub datasets as openings; importing this package loads nothing."""

from astra_trl.prompts.base import PromptSet, load_prompts

CONVOKIT_REDDIT_TRAIN = PromptSet("convokit-reddit", "train")
CONVOKIT_REDDIT_DEV = PromptSet("convokit-reddit", "dev")
CONVOKIT_REDDIT_TEST = PromptSet("convokit-reddit", "test")

__all__ = ["CONVOKIT_REDDIT_DEV", "CONVOKIT_REDDIT_TEST", "CONVOKIT_REDDIT_TRAIN", "PromptSet", "load_prompts"]
