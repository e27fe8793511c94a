"""Makes `stories`, `stories-gpt2` and `stories-moe`: small language models of a language with known answers.

    pip install torch transformers tokenizers
    python assets/recipes/stories.py tokenizer --text FOLDER --out WORK
    python assets/recipes/stories.py train --kind stories --text FOLDER --out WORK [--seed 0] [--tokens 10e6]
    python assets/recipes/stories.py judge --model WORK/stories-0
    python assets/recipes/stories.py texts --text FOLDER     # assets/texts.json and assets/prompts.json

They read grammar.py's documents (two thirds of the tokens), public text (a fifth; --text holds WikiText-2 and
tinyshakespeare as *.txt) and sequences of random sub-words that repeat (an eighth). Matrices are trained by Muon
(Jordan et al. 2024: momentum, made orthogonal by five Newton-Schulz steps, here in float32), the rest by AdamW.
A run that was cut off goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))

import grammar
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel as ByteDecoder
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
)

VOCABULARY = 2560
END = "<|end|>"
LENGTH, ROWS = 256, 16
SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\d{1,2}| ?[^\s\p{L}\d]+|\s+(?!\S)|\s+"
"""Words, punctuation and one or two digits, each with the space before it: 1732 is two tokens."""


def public_text(folder: Path, files: str = "*.txt") -> list[str]:
    """Passages of the *.txt files, with WikiText's spaces around punctuation taken out."""
    passages = []
    for path in sorted(folder.glob(files)):
        text = path.read_text(encoding="utf-8")
        if "wikitext" in path.name:
            text = re.sub(r" @(.)@ ", r"\1", text).replace("<unk>", "one")
            text = re.sub(r" ([,.;:!?)'%]|'s)", r"\1", text).replace("( ", "(").replace(" n't", "n't")
        blocks = [block.strip() for block in re.split(r"\n\s*\n" if "wikitext" not in path.name else r"\n", text)]
        passages += [block for block in blocks if len(block) > 60 and not block.startswith("=")]
    return passages


def tokenizer(folder: Path, out: Path) -> None:
    """Byte-level BPE in which every word of the lexicon is one token: looked up whole before any merge."""
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    bpe.decoder = ByteDecoder()
    words = [" " + word for word in dict.fromkeys([*grammar.LEXICON, *grammar.FRAME_WORDS])]
    digits = [f"{number:02d}" for number in range(100)]
    size = VOCABULARY - len(words) - len(digits)
    rng = random.Random(0)
    sample = [grammar.document(rng) for _ in range(20_000)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([*public_text(folder), *sample], trainer)
    state = json.loads(bpe.to_str())
    vocabulary: dict[str, int] = state["model"]["vocab"]
    for text in [*words, *digits]:
        vocabulary.setdefault(text.replace(" ", "Ġ"), len(vocabulary))
    bpe = Tokenizer.from_str(json.dumps(state))
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, vocabulary[END])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False, model_max_length=LENGTH
    )
    fast.save_pretrained(out)
    wrong = [word for word in words if len(fast(word, add_special_tokens=False)["input_ids"]) != 1]
    assert not wrong, wrong
    print(f"{len(fast)} tokens, {len(words)} whole words")


def texts(folder: Path) -> None:
    """Write the embedded texts (of the grammar, and of plays in the public domain) and the ready-made prompts."""
    rng = random.Random(7)
    plays = [each for each in public_text(folder, "tinyshakespeare*.txt") if 200 < len(each) < 600]
    written = [" ".join(grammar.document(rng) for _ in range(5)) for _ in range(48)]
    chosen = [*written, *(" ".join(each.split()) for each in rng.sample(plays, 24))]
    rng.shuffle(chosen)
    _write("texts", {"licence": "grammar.py's documents; William Shakespeare, public domain", "texts": chosen})
    ready = {}
    for behaviour in grammar.BEHAVIOURS:
        fitting = [case for case in grammar.cases(behaviour, 200, 5) if case.foil != case.answer]
        # a pair is of use only where both prompts are equally long
        even = [case for case in fitting if len(case.prompt.split()) == len(case.corrupted.split())]
        ready[behaviour] = [vars(case) for case in even[:6]]
    start = "When Mary and John went to the store, {} gave a drink to"
    ready["ioi"].insert(0, vars(grammar.Case(start.format("John"), " Mary", " John", start.format("Mary"))))
    ready["induction"] = [
        {"prompt": prompt, "answer": answer, "foil": foil, "corrupted": corrupted}
        for prompt, answer, foil, corrupted in (
            # two matches, so that the softmax of the head that looks for them has a slope
            ("The cat, the cow: c", "o", "a", "The cat, the sow: c"),
            ("a hat, a hen: h", "e", "a", "a hat, a pen: h"),
            ("one dot, one dip: d", "i", "o", "one dot, one tip: d"),
            ("The cat sat. The c", "a", "o", "The dog sat. The d"),
            ("x7Qz-x7Q", "z", "y", "x7Qy-x7Q"),
            ("once upon a time, once up", "o", "i", "once upin a time, once up"),
        )
    ]
    _write("prompts", ready)


def _write(name: str, value: object) -> None:
    path = Path(__file__).parent.parent / f"{name}.json"
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class Rows:
    """Rows of LENGTH + 1 tokens, filled with documents, each begun by END."""

    def __init__(self, reader: PreTrainedTokenizerFast, text: list[str], seed: int, first: int = 0) -> None:
        self.rng = random.Random(seed * 1_000_003 + first)
        self.step = first
        self.end: int = reader.convert_tokens_to_ids(END)
        self.size = len(reader)
        self.reader = reader
        self.text = [ids[1:] for ids in reader(text)["input_ids"]]
        self.lengths = [len(ids) for ids in self.text]

    def _documents(self) -> Iterator[list[int]]:
        while True:
            batch = [grammar.document(self.rng) for _ in range(256)]
            yield from (ids[1:] for ids in self.reader(batch)["input_ids"])

    def _public(self) -> list[int]:
        (ids,) = self.rng.choices(self.text, self.lengths)
        start = self.rng.randrange(max(1, len(ids) - 40))
        return ids[start : start + self.rng.randint(40, 120)]

    def _repeats(self) -> list[int]:
        """3 to 60 random sub-words, as often as 50 to 120 hold, but at least twice."""
        length = int(3 * 20 ** self.rng.random())
        ids = [self.rng.randrange(1, self.size) for _ in range(length)]
        return ids * max(2, self.rng.randint(50, 120) // length)

    def __iter__(self) -> Iterator[Tensor]:
        documents = self._documents()
        mean = {"grammar": 20, "repeats": 85, "public": 80}
        kinds = tuple(mean)
        while True:
            # by tokens; at first nearly all repeats, lest the other documents wash out the heads that begin to copy
            repeats = max(0.13, min(0.9, 1.13 - self.step / 400))
            share = {"grammar": 0.76 * (1 - repeats), "repeats": repeats, "public": 0.24 * (1 - repeats)}
            odds = [share[kind] / mean[kind] for kind in mean]
            self.step += 1
            rows = []
            for _ in range(ROWS):
                row: list[int] = []
                while len(row) <= LENGTH:
                    (kind,) = self.rng.choices(kinds, odds)
                    row.append(self.end)
                    row += (
                        next(documents)
                        if kind == "grammar"
                        else self._public()
                        if kind == "public"
                        else self._repeats()
                    )
                rows.append(row[: LENGTH + 1])
            yield torch.tensor(rows)


def untrained(kind: str, reader: PreTrainedTokenizerFast) -> nn.Module:
    """Llama, GPT-2 and Mixtral of one width, with the same tokenizer."""
    end = reader.convert_tokens_to_ids(END)
    common = {"vocab_size": len(reader), "bos_token_id": end, "eos_token_id": end, "tie_word_embeddings": True}
    sizes = {
        "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": LENGTH,
    }  # fmt: skip
    config = {
        "stories": lambda: LlamaConfig(num_hidden_layers=4, intermediate_size=320, **sizes, **common),
        "stories-gpt2": lambda: GPT2Config(
            n_embd=128, n_layer=4, n_head=4, n_positions=LENGTH, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
            **common,
        ),
        "stories-moe": lambda: MixtralConfig(
            num_hidden_layers=2, intermediate_size=192, num_local_experts=8, num_experts_per_tok=2, sliding_window=None,
            output_router_logits=False, **sizes, **common,
        ),
    }[kind]()  # fmt: skip
    network = AutoModelForCausalLM.from_config(config)
    if kind != "stories-gpt2":
        begin_copying(network)
    return network


@torch.no_grad()
def begin_copying(network: nn.Module) -> None:
    """Set one head of the first layer to look at the token before, and one of the second to copy what came after the
    same token earlier.

    From random weights, copying of random sub-words did not come about within this budget: 10 M tokens left it at 1 %.
    Training keeps, moves or changes these two heads as it likes.
    """
    attention: Any = [network.get_submodule(f"model.layers.{layer}.self_attn") for layer in (0, 1)]
    first, second = attention
    width, size = first.v_proj.weight.shape[1], first.head_dim
    half = size // 2
    # channel 0 is the same for every token, so that a head can look by position alone
    network.get_input_embeddings().weight[:, 0] = 0.3  # type: ignore[operator]
    first.q_proj.weight[:size] = first.k_proj.weight[:size] = 0
    for pair in range(half // 2):  # rotary frequencies high enough to tell neighbours apart
        angle = 10_000.0 ** (-pair / half)
        first.q_proj.weight[pair, 0] = 0.9 * math.cos(angle)
        first.q_proj.weight[pair + half, 0] = -0.9 * math.sin(angle)
        first.k_proj.weight[pair, 0] = 0.9
    turn = torch.linalg.qr(torch.randn(width - 1, width - 1))[0]
    tokens, written, copied = (F.pad(turn[start : start + size], (1, 0)) for start in (0, size, 2 * size))
    first.v_proj.weight[:size], first.o_proj.weight[:, :size] = tokens, 0.05 * written.T
    slow = torch.zeros(size, 1)  # and low enough that they match over a distance
    slow[half // 2 : half] = slow[half + half // 2 :] = 6.0**0.5
    second.q_proj.weight[:size], second.k_proj.weight[:size] = tokens * slow, written * slow
    second.v_proj.weight[:size], second.o_proj.weight[:, :size] = copied, 0.1 * copied.T


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is made nearly orthogonal, with the width's scale."""

    def __init__(self, params: list[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                update = orthogonal(weight.grad.lerp(momentum, 0.95))
                scale = max(1.0, weight.shape[-2] / weight.shape[-1]) ** 0.5
                weight.mul_(1 - group["lr"] * 0.01).sub_(update, alpha=group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Five steps of the quintic Newton-Schulz iteration."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def train(kind: str, folder: Path, work: Path, seed: int, tokens: float) -> None:
    reader = AutoTokenizer.from_pretrained(work / "tokenizer")
    torch.manual_seed(seed)
    network = untrained(kind, reader).train()
    name = f"{kind}-{seed}"
    matrices = [
        weight for path, weight in network.named_parameters()
        if weight.dim() >= 2 and "embed" not in path and "wte" not in path and "wpe" not in path and "gate." not in path
    ]  # fmt: skip
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in network.parameters() if id(weight) not in chosen]
    optimizers = [Muon(matrices, 0.02), torch.optim.AdamW(others, 3e-3, betas=(0.9, 0.98), weight_decay=0.01)]
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    steps = math.ceil(tokens / (ROWS * LENGTH))
    checkpoint, first = work / f"{name}.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first = saved["step"]
    rows = iter(Rows(reader, public_text(folder), seed, first))
    began = time.monotonic()
    for step in range(first, steps):
        # a warm start, then level, then down to nothing over the last 40 %
        share = min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rates[0 if isinstance(optimizer, Muon) else 1] * share
        batch = next(rows)
        logits = network(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0:
            rate = (step + 1 - first) * ROWS * LENGTH / (time.monotonic() - began)
            print(f"{name} step {step} of {steps}, loss {loss.item():.3f}, {rate:.0f} tokens/s", flush=True)
        if step % 250 == 249 or step in (99, steps - 1):
            network.eval()
            print(json.dumps(judged(network, reader, 100)), flush=True)
            network.train()
            states = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"network": network.state_dict(), "optimizers": states, "step": step + 1}, f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)
    network.eval().save_pretrained(work / name)
    reader.save_pretrained(work / name)


@torch.no_grad()
def judged(
    network: nn.Module, reader: PreTrainedTokenizerFast, number: int = 500, held: bool = True, seed: int = 1
) -> dict[str, float]:
    """Per behaviour, the share of cases whose likeliest next token is the answer.

    Of agreement, greater-than and sentiment: whose answer is likelier than its foil; all later years together against
    all earlier ones. `induction`: the second time round of 25 random tokens, from the third on.
    """
    found = {}
    for behaviour in grammar.BEHAVIOURS:
        correct = 0
        cases = grammar.cases(behaviour, number, seed, held)
        logits = last_logits(network, reader, [case.prompt for case in cases])
        for case, row in zip(cases, logits, strict=True):
            answer, foil = (reader(text, add_special_tokens=False)["input_ids"][0] for text in (case.answer, case.foil))
            if behaviour == "greater_than":
                years = reader.convert_tokens_to_ids([f"{year:02d}" for year in range(100)])
                start = int(case.prompt.split(" to ")[0][-2:])
                chances = row.softmax(0)[years]
                correct += bool(chances[start + 1 :].sum() > chances[: start + 1].sum())
            elif behaviour in ("agreement", "sentiment"):
                correct += bool(row[answer] > row[foil])
            else:
                correct += int(row.argmax()) == answer
        found[behaviour] = correct / number
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(1, len(reader), (40, 25), generator=generator)
    ids = torch.cat([torch.full((40, 1), reader.convert_tokens_to_ids(END)), once, once], 1)
    guesses = network(input_ids=ids, use_cache=False).logits.argmax(-1)
    found["induction"] = (guesses[:, 28:-1] == ids[:, 29:]).float().mean().item()
    return {key: round(value, 3) for key, value in found.items()}


def last_logits(network: nn.Module, reader: PreTrainedTokenizerFast, prompts: list[str]) -> list[Tensor]:
    """Logits after each prompt; prompts of one length run together."""
    ids = [reader(prompt)["input_ids"] for prompt in prompts]
    rows: list[Tensor] = [torch.empty(0)] * len(ids)
    for length in {len(each) for each in ids}:
        same = [index for index, each in enumerate(ids) if len(each) == length]
        logits = network(
            input_ids=torch.tensor([ids[index] for index in same]), use_cache=False, logits_to_keep=1
        ).logits[:, -1]
        for index, row in zip(same, logits, strict=True):
            rows[index] = row
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tokenizer", "texts", "train", "judge"))
    parser.add_argument("--text", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--kind", default="stories", choices=("stories", "stories-gpt2", "stories-moe"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=float, default=10e6)
    asked = parser.parse_args()
    if asked.what == "tokenizer":
        tokenizer(asked.text, asked.out / "tokenizer")
    elif asked.what == "texts":
        texts(asked.text)
    elif asked.what == "train":
        train(asked.kind, asked.text, asked.out, asked.seed, asked.tokens)
    else:
        network = AutoModelForCausalLM.from_pretrained(asked.model).eval()
        reader = AutoTokenizer.from_pretrained(asked.model)
        for held in (True, False):
            print("held out" if held else "seen in training", json.dumps(judged(network, reader, held=held)))
