"""chrF and chrF++ against sacrebleu."""

import pytest
import sacrebleu

from luthier.evaluation.chrf import ChrF


@pytest.mark.parametrize(("word_order", "beta"), [(0, 2), (2, 2), (0, 1)])
def test_equals_sacrebleu_on_random_corpora_with_several_references(corpora: list, word_order: int, beta: int) -> None:
    for predictions, references in corpora:
        streams = [list(stream) for stream in zip(*references, strict=True)]
        expected = sacrebleu.corpus_chrf(predictions, streams, word_order=word_order, beta=beta).score
        ours = ChrF(word_order=word_order, beta=beta).score(predictions, references)["chrf"]
        assert ours == pytest.approx(expected, abs=1e-9)


def test_equals_sacrebleu_on_real_text(real_texts: tuple[list[str], list[str]]) -> None:
    predictions, references = real_texts
    assert ChrF().score(predictions, references)["chrf"] == pytest.approx(sacrebleu.corpus_chrf(predictions, [references]).score, abs=1e-9)


def test_empty_predictions_score_0_and_identical_ones_100() -> None:
    assert ChrF().score(["", ""], ["a b", "c"])["chrf"] == 0
    assert ChrF().score(["你好世界"], ["你好世界"])["chrf"] == pytest.approx(100)
