"""Perplexity against closed forms: a model that gives every token the same probability."""

import math

import pytest

from luthier.evaluation.perplexity import Perplexity


def test_a_uniform_model_over_v_tokens_has_perplexity_v() -> None:
    counts = [(7, 20), (1, 3), (100, 251)]
    scores = Perplexity().score([tokens * math.log(50) for tokens, _ in counts], counts)
    assert scores["perplexity"] == pytest.approx(50)
    assert scores["loss"] == pytest.approx(math.log(50))


def test_a_uniform_model_over_bytes_needs_8_bits_a_byte() -> None:
    assert Perplexity().score([12 * math.log(256)], [(12, 12)])["bits_per_byte"] == pytest.approx(8)


def test_every_token_weighs_the_same_however_rows_are_cut() -> None:
    whole = Perplexity().score([10.0], [(11, 30)])
    assert Perplexity().score([1.0, 9.0], [(1, 10), (10, 20)]) == pytest.approx(whole)


def test_rows_without_a_learnt_token_are_refused() -> None:
    with pytest.raises(ValueError, match="no token to score"):
        Perplexity().score([0.0], [(0, 5)])
