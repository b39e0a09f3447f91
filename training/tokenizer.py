"""The CLIP tokenizer of the family: one token for each word of the captions, and bytes for other text."""

from __future__ import annotations

from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from training.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES

MAX_TOKENS = 32
_OTHER_WORDS = ("a", "an", "and", "on", "the", "with", "background", "of", "picture", "photo", "two", "shape")
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """All words with a token of their own."""
    known = [*SHAPES, *COLOURS, *TEXTURES, *SIZES, *BACKGROUNDS, *" ".join(RELATIONS).split(), *_OTHER_WORDS]
    return sorted(set(known))


def _segment(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The pieces of a word after the given merges, applied in their order of priority."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    rank = {pair: i for i, pair in enumerate(merges)}
    while len(pieces) > 1:
        pairs = [(rank.get(p, len(rank)), i) for i, p in enumerate(pairwise(pieces))]
        best, i = min(pairs)
        if best == len(rank):
            break
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def new_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's format. It can encode any text; each caption word is one token.

    Each word is segmented with the existing merges before missing merges are added. Otherwise merges would conflict:
    the ``ri`` of *right* breaks *triangle*.
    """
    alphabet = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in words():
        pieces = _segment(word, merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _segment(word, merges)
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges)]
    vocabulary = {t: i for i, t in enumerate(dict.fromkeys([*tokens, _BOS, _EOS]))}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=MAX_TOKENS,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_EOS,
        unk_token=_EOS,
    )
    broken = [w for w in words() if len(tokenizer.tokenize(w)) != 1]
    if broken:
        raise AssertionError(f"these caption words have several tokens: {broken}")
    return tokenizer
