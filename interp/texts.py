"""Many texts as a model reads them: documents one after another, cut into windows, in batches of equal length."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp import Unsuitable, store
from interp.model import LanguageModel
from interp.samples import TextSet

CHARACTERS = 2**17
"""How much text is looked at together."""
Array = np.ndarray


class Texts:
    """Documents in groups of about so many characters; very long ones in pieces. digest: of all there is in them."""

    def __init__(self, data: TextSet | Path, name: str, characters: int) -> None:
        self.data, self.characters = data, characters
        if isinstance(data, TextSet):
            self.digest = store.key_of("texts", data.texts)
        else:
            try:
                with open(data, "rb") as file:
                    self.digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as problem:
                raise Unsuitable(f"{data.name} can't be read: {problem.strerror}.") from None
        self.name = name or ("texts" if isinstance(data, TextSet) else data.name)

    def documents(self) -> Iterator[tuple[int, str]]:
        if isinstance(self.data, TextSet):
            yield from enumerate(self.data.texts)
            return
        try:
            with open(self.data, encoding="utf-8") as file:
                lines = (line.strip() for line in file)
                for number, line in enumerate(line for line in lines if line):
                    yield number, _text_of(json.loads(line)) if self.data.suffix == ".jsonl" else line
        except (ValueError, RecursionError) as problem:  # a number of too many digits is a ValueError
            if isinstance(problem, Unsuitable):
                raise
            raise Unsuitable(f"{self.data.name} is no UTF-8 text with a document in each line.") from None

    def groups(self) -> Iterator[list[tuple[int, str]]]:
        group: list[tuple[int, str]] = []
        held = 0
        for number, text in self.documents():
            for start in range(0, len(text), self.characters):
                group.append((number, text[start : start + self.characters]))
                held += len(group[-1][1])
                if held >= self.characters:
                    yield group
                    group, held = [], 0
        if group:
            yield group

    def __len__(self) -> int:
        return sum(1 for _ in self.groups())


def _text_of(line: Any) -> str:
    text = line.get("text") if isinstance(line, dict) else line
    if not isinstance(text, str):
        raise Unsuitable('Each line of a .jsonl file is a text, or an object with a "text".')
    return text


@dataclass(frozen=True)
class Windows:
    """The windows into which documents are cut, and their tokens in order, without special ones.

    windows: the token ids of each, begun as the tokenizer begins a text. ids, window, document: of each token that
    counts. number: of every token of every window, one after another, its number among those, or -1.
    """

    windows: list[list[int]]
    ids: Int[Array, token]
    window: Int[Array, token]
    document: Int[Array, token]
    number: Int[Array, any_token]

    @staticmethod
    def of(model: LanguageModel, group: Sequence[tuple[int, str]], context: int, begin: bool = False) -> Windows:
        """Cut these (number, text) into windows of at most so many tokens.

        begin: put the model's first token before each, where its tokenizer does not.
        """
        special = set(model.tokenizer.all_special_ids)
        first = getattr(model.tokenizer, "bos_token_id", None)
        beginning = [first] if begin and first is not None else []
        windows: list[list[int]] = []
        documents: list[int] = []
        texts = [text for _, text in group]
        found = model.tokenizer(texts, return_attention_mask=False)["input_ids"] if texts else []
        for (document, _), ids in zip(group, found, strict=True):
            lead = list(itertools.takewhile(special.__contains__, ids))
            ids, lead = ids[len(lead) :], (lead or beginning)[: context - 1]
            step = context - len(lead)
            for start in range(0, len(ids), step):
                windows.append(lead + ids[start : start + step])
                documents.append(document)
        lengths = np.array([len(each) for each in windows], np.int64)
        flat = np.array(list(itertools.chain.from_iterable(windows)), np.int64)
        counted = ~np.isin(flat, np.array(sorted(special), np.int64))
        number = np.where(counted, np.cumsum(counted) - 1, -1)
        window = np.repeat(np.arange(len(windows)), lengths)[counted]
        return Windows(windows, flat[counted], window, np.array(documents, np.int32)[window], number)

    def batches(self, size: int) -> Iterator[tuple[Int[Tensor, "window position"], Int[Array, "window position"]]]:
        """Windows of about equal length together: their ids, and the number of each token that counts, else -1.

        Padding stands at the right, where it has no effect on what stands before it in a causal model.
        """
        lengths = np.array([len(each) for each in self.windows], np.int64)
        flat = np.array(list(itertools.chain.from_iterable(self.windows)), np.int64)
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), size):
            some = order[start : start + size]
            column = np.arange(int(lengths[some].max()))
            inside = column < lengths[some, None]
            place = np.where(inside, starts[some, None] + column, 0)
            yield torch.from_numpy(np.where(inside, flat[place], flat[0])), np.where(inside, self.number[place], -1)
