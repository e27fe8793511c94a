"""Where transport was published."""

from interp.method import Paper

ATO = Paper(
    "Szablewski, Andrzej and Masiak, Marek",
    "Activation Transport Operators",
    2025,
    "arXiv",
    "https://arxiv.org/abs/2508.17540",
)
