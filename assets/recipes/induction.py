"""Makes `induction`: a two-layer, attention-only GPT-2 whose weights are set by hand, so that its circuit is known.

    pip install torch transformers tokenizers
    python assets/recipes/induction.py --out assets/models/induction

Characters are tokens. The residual stream has a channel for each token, each position, each token before, each token to
be said, and a few that nothing reads:

    layer 0 head 1   looks one position back and writes which token stands there     (previous-token head)
    layer 1 head 2   looks where the token before was the present one and says what stands there   (induction head)
    layer 0 head 0, layer 1 head 3   write as much into channels that nothing reads  (decoys)
    all other heads write nothing

So after "...ab...a" it says b; where nothing matches, the induction head rests on the first token and says nothing.
"""

from __future__ import annotations

import argparse
import math
import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

TOKENS = ["<|begin|>", "<|other|>", "\n", *(each for each in string.printable if each.isprintable())]
COUNT = len(TOKENS)
WIDTH, HEADS = 400, 4
SIZE = WIDTH // HEADS
POSITIONS = 98
UNREAD = WIDTH - 3 * COUNT - POSITIONS
TOKEN, POSITION = 0, COUNT
BEFORE, SAID = COUNT + POSITIONS, 2 * COUNT + POSITIONS
SPARE = 3 * COUNT + POSITIONS
SURE = 60.0
"""How far the score of the right key stands above all others."""
LOUD = 12.0


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character; what is not ASCII is <|other|>."""
    words = Tokenizer(models.WordLevel({each: index for index, each in enumerate(TOKENS)}, unk_token="<|other|>"))
    words.normalizer = normalizers.NFC()
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    words.decoder = decoders.Fuse()
    words.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<|begin|>", eos_token="<|begin|>", unk_token="<|other|>",
        clean_up_tokenization_spaces=False, model_max_length=POSITIONS,
    )  # fmt: skip


@torch.no_grad()
def network() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=COUNT, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=POSITIONS, n_inner=1, bos_token_id=0,
        eos_token_id=0, tie_word_embeddings=False, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    for weight in model.parameters():
        weight.zero_()
    inner = model.transformer
    tokens, places = torch.arange(COUNT), torch.arange(POSITIONS)
    inner.wte.weight[tokens, TOKEN + tokens] = 1
    inner.wpe.weight[places, POSITION + places] = 1

    first, second = inner.h
    # with a token and a position the stream has the same mean and spread everywhere: the norms give it back unchanged;
    # behind the first layer what was the token before and a channel that nothing reads have come to it
    for norm, ones in ((first.ln_1, 2), (second.ln_1, 4), (first.ln_2, 4), (second.ln_2, 4)):
        mean = ones / WIDTH
        norm.weight.fill_(math.sqrt(mean - mean**2 + norm.eps))
        norm.bias.fill_(mean)

    def head(block: torch.nn.Module, number: int) -> tuple[torch.Tensor, ...]:
        """W_Q, W_K, W_V [width, size] and W_O [size, width] of a head, as views; and the biases of q."""
        weight, out, bias = block.attn.c_attn.weight, block.attn.c_proj.weight, block.attn.c_attn.bias
        at = slice(number * SIZE, (number + 1) * SIZE)
        q, k, v = weight[:, :WIDTH][:, at], weight[:, WIDTH : 2 * WIDTH][:, at], weight[:, 2 * WIDTH :][:, at]
        return q, k, v, out[at], bias[:WIDTH][at]

    strength = math.sqrt(SURE * math.sqrt(SIZE))
    q, k, v, out, _ = head(first, 1)
    q[POSITION + places[1:], places[1:] - 1] = strength  # q at p asks for p - 1
    k[POSITION + places, places] = strength
    v[TOKEN + tokens, tokens] = 1
    out[tokens, BEFORE + tokens] = 1

    q, k, v, out, bias = head(second, 2)
    q[TOKEN + tokens, tokens] = strength
    k[BEFORE + tokens, tokens] = strength
    # the first token is half as good a match for everything, so that the head rests there where there is no other; it
    # has itself for a token before, and must not be taken for a repetition
    bias[SIZE - 1] = strength
    k[TOKEN + 0, SIZE - 1] = strength / 2
    k[BEFORE + 0, 0] = 0
    v[TOKEN + tokens[1:], tokens[1:]] = 1
    out[tokens, SAID + tokens] = LOUD

    for block, number in ((first, 0), (second, 3)):
        q, k, v, out, _ = head(block, number)
        v[TOKEN + tokens, tokens % UNREAD] = 1  # all scores are zero: it looks everywhere alike
        spare = torch.arange(UNREAD)
        out[spare, SPARE + spare] = 1
    inner.ln_f.weight.fill_(1)
    model.lm_head.weight[tokens, SAID + tokens] = 1
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    network().save_pretrained(asked.out)
    tokenizer().save_pretrained(asked.out)
