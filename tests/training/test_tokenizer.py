"""Each caption word is one token, and any other text can be encoded."""

import pytest

from training.tokenizer import MAX_TOKENS, new_tokenizer, words

TOKENIZER = new_tokenizer()


@pytest.mark.parametrize("word", words())
def test_every_caption_word_is_one_token(word: str) -> None:
    assert len(TOKENIZER.tokenize(word)) == 1


@pytest.mark.parametrize("text", ["", "Ünïcode 🎨 größer", "x" * 5000, "a\nb\tc", "\u0000"])
def test_any_text_is_encoded_to_a_full_row_of_known_tokens(text: str) -> None:
    ids = TOKENIZER(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == MAX_TOKENS
    assert all(0 <= i < len(TOKENIZER) for i in ids)
