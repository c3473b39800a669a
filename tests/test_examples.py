"""The examples run from end to end, a few steps of each."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

import shown
from tiny import minilm_path, smollm2_path

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_emoji_goes_through_all_its_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    minilm_path(), smollm2_path()
    for name, rows in (("emoji_captions", shown.captioned), ("tiny_coco_train", shown.captioned)):
        (tmp_path / name).mkdir()
        found = [{"image": row["image"], "captions": [row["caption"]]} for row in rows(tmp_path / name)]
        shown.write(tmp_path / name / "captions.jsonl", found)
    short = ("training.steps=2", "training.epochs=null", "training.rows=2", "data.held_out=4")
    example("emoji").main(tmp_path, tmp_path / "out", short, ("model.vision.width=16", "model.vision.layers=1", "model.vision.hidden=16"))
    told = capsys.readouterr().out
    assert "the right caption first among 20" in told
    assert len(json.loads((tmp_path / "out" / "chat" / "samples.json").read_text())) == 4


def test_the_expected_share_of_first_places_is_that_of_all_draws() -> None:
    torch, emoji = pytest.importorskip("torch"), example("emoji")
    from itertools import combinations

    scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    for i, chance in enumerate(emoji.first_of(3, scores).tolist()):
        draws = list(combinations([j for j in range(7) if j != i], 2))
        assert chance == pytest.approx(sum(bool(scores[i, i] > scores[i, list(pair)].max()) for pair in draws) / len(draws))


@pytest.mark.slow
def test_digits_are_told_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    digits = example("digits")
    monkeypatch.setattr(digits, "FOLDER", tmp_path)
    digits.main(steps=4)
    assert (tmp_path / "digits.png").is_file()
