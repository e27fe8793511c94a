"""Makes the transport operators that come with `stories`: between all its residual streams, for each policy.

    pip install -r requirements.txt
    python assets/recipes/transport.py --work WORK [same previous attention]

Fitted on 40,000 documents of grammar.py, drawn with another seed than any that the model, an SAE or an index was made
with (some of the short ones are the same all the same: the language has only so many): three of every five are fitted
on, one chooses penalties, one judges. A few minutes each. A run that was cut off goes on from what it left in WORK.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import grammar

from interp import transport, zoo
from interp.methods.transport.transport_operator import transport_operator
from interp.samples import TextSet

DOCUMENTS, SEED = 40_000, 2_000_003
POLICIES = ("same", "previous", "attention")


def documents() -> TextSet:
    """Texts of the language that `stories` speaks."""
    rng = random.Random(SEED)
    return TextSet(tuple(grammar.document(rng) for _ in range(DOCUMENTS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where what is unfinished lies")
    parser.add_argument("policies", nargs="*", metavar="policy", help=", ".join(POLICIES))
    options = parser.parse_args()
    os.environ["ACTISCOPE_STORE"] = str(options.work.resolve())
    model, texts = zoo.load("stories"), documents()
    for policy in options.policies or POLICIES:
        key = transport_operator(model, texts, policy=policy, name=f"{DOCUMENTS:,} stories")
        place = transport.SHELF / "stories" / f"{policy}.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(transport.folder() / f"{key}.safetensors", place)
        found = transport.Operators(place)
        print(f"{place}: {found.tokens:,} tokens, {found.held_out:,} held out, {place.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
