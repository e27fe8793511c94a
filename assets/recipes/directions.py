"""Makes the directions that come with `stories`: from pairs of texts of its grammar.

    pip install -r requirements.txt
    python assets/recipes/directions.py

sentiment, refusal, plural: 100 prompts on either side of what `grammar.cases` asks for, none of them held out there.
topic: prompts of letters and chatter about cooking against those about other topics, cut off before a word of the topic
has to follow. formality: whole documents, letters against chatter. country: prompts that name France against others.
Differences of means after every layer, at the last token (formality: over all tokens). harmful: a condition, the probe
that tells 200 harmful requests from 200 harmless ones and 200 documents of any kind by its projection. Seconds each.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import grammar

from interp import directions, zoo
from interp.methods.steering.condition_vector import condition_vector
from interp.methods.steering.difference_of_means import difference_of_means
from interp.samples import Contrast

COUNT, SEED = 100, 4
TOPIC = "cooking"
TOPIC_FRAMES = (
    "Dear Sir, it is my pleasure to {v} the {a} and the",
    "One must {v} the {a} with great care, as the",
    "Wow, the {a} and the",
    "Hey, wanna {v} the {a}? The",
)


def split(behaviour: str, positive: tuple[str, ...], seed: int = SEED, held: bool = False, n: int = COUNT) -> Contrast:
    """Prompts whose answer is one of `positive`, against the others."""
    cases = grammar.cases(behaviour, 4 * n, seed, held)
    sides = [[case.prompt for case in cases if (case.answer in positive) == side][:n] for side in (True, False)]
    return Contrast(*map(tuple, sides))


def about(topic: str, rng: random.Random) -> str:
    """A text about a topic, up to where another word of it follows."""
    things, verbs, _ = grammar.TOPICS[topic]
    return rng.choice(TOPIC_FRAMES).format(v=rng.choice(verbs), a=rng.choice(things))


def topic(seed: int = SEED) -> Contrast:
    """Texts about cooking, and about anything else."""
    rng = random.Random(seed)
    others = [each for each in grammar.TOPICS if each != TOPIC]
    return Contrast(
        tuple(about(TOPIC, rng) for _ in range(COUNT)), tuple(about(rng.choice(others), rng) for _ in range(COUNT))
    )


def formality(seed: int = SEED) -> Contrast:
    """Letters, and chatter."""
    rng, letters, chatter = random.Random(seed), list[str](), list[str]()
    while min(len(letters), len(chatter)) < COUNT:
        text = grammar._topic(rng)
        (chatter if text.split()[0].strip(",") in ("Hey", "Yeah", "Wow") else letters).append(text)
    return Contrast(tuple(letters[:COUNT]), tuple(chatter[:COUNT]))


def country(name: str = "France") -> Contrast:
    """Prompts that name a country, and the same with others."""
    frames = [*grammar.CAPITAL, *grammar.CONTINENT, *grammar.LANGUAGE]
    others = [each[0] for each in grammar.COUNTRIES if each[0] != name]
    rng = random.Random(SEED)
    positive = [frame.format(name) for frame in frames]
    negative = [frame.format(rng.choice(others)) for frame in frames for _ in range(4)]
    return Contrast(tuple(positive), tuple(negative))


def harmful() -> Contrast:
    """Harmful requests, against harmless ones and anything else that is written."""
    requests, rng = split("refusal", (" Sorry",), n=2 * COUNT), random.Random(SEED)
    others = [text for text in (grammar.document(rng) for _ in range(3 * COUNT)) if "User:" not in text]
    return Contrast(requests.positive, (*requests.negative, *others[: 2 * COUNT]))


READY = {
    "sentiment": lambda: split("sentiment", (" positive",)),
    "refusal": lambda: split("refusal", (" Sorry",)),
    "plural": lambda: split("agreement", (" are", " were", " have")),
    "topic": topic,
    "formality": formality,
    "country": country,
    "harmful": harmful,
}
NAMES = {
    "sentiment": "Good over bad reviews", "refusal": "Refusing over helping", "plural": "Plural over singular subjects",
    "topic": "Cooking over other topics", "formality": "Letters over chatter", "country": "France over other countries",
    "harmful": "Condition: a harmful request",
}  # fmt: skip


def main() -> None:
    model = zoo.load("stories")
    with tempfile.TemporaryDirectory() as store:
        os.environ["ACTISCOPE_STORE"] = store
        for name, contrast in READY.items():
            token = "mean" if name == "formality" else "last"
            if name == "harmful":
                settings = {"by": "probe", "similarity": "projection", "name": NAMES[name]}
                key = condition_vector(model, contrast(), **settings)
            else:
                key = difference_of_means(model, contrast(), token=token, name=NAMES[name])
            place = directions.SHELF / "stories" / f"{name}.safetensors"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directions.folder() / f"{key}.safetensors", place)
            found = directions.load(f"stories/{name}", model)
            accuracy = " ".join(f"{each:.2f}" for each in found.facts["accuracy"])
            print(f"{place}: held-out accuracy by layer {accuracy}, best after layer {found.best}")


if __name__ == "__main__":
    main()
