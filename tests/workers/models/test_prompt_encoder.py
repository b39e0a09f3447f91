"""Encodings of prompts are kept by tenant, within a bound of memory."""

from __future__ import annotations

import pytest

from testing.tiny_transformers import flux_pipeline
from weir.prompts import parsed
from workers.models import prompt_encoder
from workers.models.architectures.registry import adapt
from workers.models.prompt_encoder import PromptEncoder


def test_the_encodings_that_were_not_used_for_longest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder = adapt(flux_pipeline()), PromptEncoder()
    texts = [("tenant", parsed(it, "plain")) for it in ("a", "b", "c")]
    [one] = model.encode([texts[0][1]])
    monkeypatch.setattr(prompt_encoder, "_BOUND_BYTES", 2 * one.size_bytes)
    first = encoder.read(model, texts[:2])
    assert encoder.read(model, texts[:1])[texts[0]] is first[texts[0]]
    encoder.read(model, texts[2:])  # makes room of the second
    again = encoder.read(model, texts[:1])
    assert again[texts[0]] is first[texts[0]]
    assert encoder.read(model, texts[1:2])[texts[1]] is not first[texts[1]]


def test_tenants_share_no_encodings() -> None:
    model, encoder = adapt(flux_pipeline()), PromptEncoder()
    both = [(tenant, parsed("a red circle", "plain")) for tenant in ("a", "b")]
    encodings = encoder.read(model, both)
    assert encodings[both[0]] is not encodings[both[1]]
