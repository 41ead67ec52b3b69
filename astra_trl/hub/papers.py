"""The papers that a run rests on, for its card."""

from collections.abc import Iterator
from typing import Any, NamedTuple


class Paper(NamedTuple):
    """A paper's id on arXiv and how it is cited."""

    key: str
    arxiv: str
    year: int
    title: str
    authors: str

    @property
    def bibtex(self) -> str:
        """Its BibTeX entry."""
        return (
            f"@article{{{self.key},\n"
            f"    title   = {{{{{self.title}}}}},\n"
            f"    author  = {{{self.authors}}},\n"
            f"    year    = {self.year},\n"
            f"    journal = {{arXiv preprint arXiv:{self.arxiv}}}\n"
            "}"
        )


SYSTEMS = {
    "astprompter": Paper(
        "hardy2024astprompter",
        "2407.09447",
        2024,
        "ASTPrompter: Weakly Supervised Automated Language Model Red-Teaming to Identify Low-Perplexity Toxic Prompts",
        "Amelia F. Hardy and Houjun Liu and Bernard Lange and Duncan Eddy and Mykel J. Kochenderfer",
    ),
    "perez": Paper(
        "perez2022red",
        "2202.03286",
        2022,
        "Red Teaming Language Models with Language Models",
        "Ethan Perez and Saffron Huang and Francis Song and Trevor Cai and Roman Ring and John Aslanides and Amelia "
        "Glaese and Nat McAleese and Geoffrey Irving",
    ),
    "crt": Paper(
        "hong2024curiosity",
        "2402.19464",
        2024,
        "Curiosity-driven Red-teaming for Large Language Models",
        "Zhang-Wei Hong and Idan Shenfeld and Tsun-Hsuan Wang and Yung-Sung Chuang and Aldo Pareja and James Glass "
        "and Akash Srivastava and Pulkit Agrawal",
    ),
}
ALGORITHMS = {
    "dpo": Paper(
        "rafailov2023direct",
        "2305.18290",
        2023,
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "Rafael Rafailov and Archit Sharma and Eric Mitchell and Stefano Ermon and Christopher D. Manning and "
        "Chelsea Finn",
    ),
    "ipo": Paper(
        "azar2023general",
        "2310.12036",
        2023,
        "A General Theoretical Paradigm to Understand Learning from Human Preferences",
        "Mohammad Gheshlaghi Azar and Mark Rowland and Bilal Piot and Daniel Guo and Daniele Calandriello and "
        "Michal Valko and Rémi Munos",
    ),
    "grpo": Paper(
        "shao2024deepseekmath",
        "2402.03300",
        2024,
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        "Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Mingchuan Zhang and Y. K. Li "
        "and Y. Wu and Daya Guo",
    ),
    "rloo": Paper(
        "ahmadian2024back",
        "2402.14740",
        2024,
        "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
        "Arash Ahmadian and Chris Cremer and Matthias Gallé and Marzieh Fadaee and Julia Kreutzer and Olivier "
        "Pietquin and Ahmet Üstün and Sara Hooker",
    ),
    "ppo": Paper(
        "schulman2017proximal",
        "1707.06347",
        2017,
        "Proximal Policy Optimization Algorithms",
        "John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov",
    ),
}
TRL = """\
@software{vonwerra2020trl,
    title  = {{TRL: Transformers Reinforcement Learning}},
    author = {Leandro von Werra and Younes Belkada and Lewis Tunstall and Edward Beeching and Tristan Thrush and \
Nathan Lambert and Shengyi Huang and Kashif Rasul and Quentin Gallouédec},
    year   = {2020},
    url    = {https://github.com/huggingface/trl}
}"""


def papers_of(system: str, algorithm: str, loss_type: Any) -> Iterator[Paper]:
    """The papers of a run's system, its algorithm and, for DPO's IPO, its loss."""
    losses = [loss_type] if isinstance(loss_type, str) else loss_type or []
    for name, known in ((system, SYSTEMS), (algorithm, ALGORITHMS), ("ipo" if "ipo" in losses else "", ALGORITHMS)):
        if name in known:
            yield known[name]
