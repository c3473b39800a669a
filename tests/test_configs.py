"""Every file of configs/ is a run that works: two steps of each, on rows of its form, with its own model."""

import json
from pathlib import Path
from typing import Any

import pytest

import luthier.lookup as lookup
import shown
import tiny
from luthier.run import Run, run
from tinyrun import chats, write_rows

FOLDER = Path(__file__).parents[1] / "configs"
TEXTS = [
    "The lute was tuned with care.",
    "A viol has six strings and frets.",
    "Nobody liked the broken drum at all.",
    "What a fine harp!",
] * 5
ROWS: dict[str, list[dict[str, Any]]] = {
    "chat": chats(20),
    "text": [{"text": f"{text} {i}"} for i, text in enumerate(TEXTS)],
    "labelled": [{"text": text, "label": ["good", "bad"][i % 2]} for i, text in enumerate(TEXTS)],
    "tags": [{"tokens": text.split(), "tags": ["B-X", *["O"] * (len(text.split()) - 1)]} for text in TEXTS],
    "extract": [
        {"question": "Which?", "context": text, "answers": [{"text": text.split()[1], "start": text.index(" ") + 1}]} for text in TEXTS
    ],
    "pairs": [{"source": f"{text} {i}", "target": text} for i, text in enumerate(TEXTS)],
    "choices": [{"question": text, "choices": ["lute", "viol", "harp"], "answer": i % 3} for i, text in enumerate(TEXTS)],
    "scored": [{"text": text, "pair": TEXTS[i - 1], "score": i / 4} for i, text in enumerate(TEXTS)],
}  # fmt: skip
TINY = ["model.width=16", "model.layers=2", "model.heads=2", "model.hidden=24"]
SMALL = {
    "pretrain": [*TINY, "model.kv_heads=1"],
    "bilm": ["model.width=8", "model.hidden=12", "model.filters=[[1,4],[2,4]]"],
    "masked": TINY,
    "permute": TINY,
    "translate": [*TINY, "model.decoder_layers=2"],
    "diffuse": [*TINY, "model.kv_heads=1"],
}
SHOWN = {"captions": shown.captioned, "shown": shown.conversations}
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SLOW = ("chat", "chat-bf16", "rank")  # 135 million parameters


def packaged(config: Run) -> None:
    """Skips where the package that carries the model is not installed."""
    source = config.model if isinstance(config.model, str) else config.model.get("tokenizer", config.model.get("start", ""))
    if not source.startswith("pkg://"):
        return
    package, _, file = source.removeprefix("pkg://").partition("/")
    tiny.packaged(package, file)


def parts(name: str, folder: Path) -> list[str]:
    """Trained parts of picture models, made small."""
    if name == "see":
        voice = tiny.tiny_chat()
        voice.save(folder / "voice")
        shown.tiny_eyes(voice.tokenizer).save(folder / "eyes")
        return [f"model.eyes={folder / 'eyes'}", f"model.voice={folder / 'voice'}"]
    if name == "see-chat":
        test_two_steps_of_each("see", folder / "see")
        return [f"model={folder / 'see' / 'out'}"]
    return []


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES])
def test_two_steps_of_each(name: str, tmp_path: Path) -> None:
    form = Path(Run.from_yaml(FOLDER / f"{name}.yaml").data.sources[0].path).stem
    tmp_path.mkdir(exist_ok=True)
    data = write_rows(tmp_path / f"{form}.jsonl", SHOWN[form](tmp_path) if form in SHOWN else ROWS[form])
    changes = [f"data.path={data}", f"output={tmp_path / 'out'}", "data.held_out=4", "training.epochs=null", "training.steps=2"]
    changes += ["training.rows=4", "training.tokens=null"]
    changes += [*SMALL.get(name, []), *parts(name, tmp_path)]
    changes += [f"tuning.cache={tmp_path / 'states'}"] if name == "features" else []
    config = Run.from_yaml(FOLDER / f"{name}.yaml", changes)
    packaged(config)
    result = run(config)
    assert result.history is not None
    assert result.history.steps == 2
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(found["after"]) > {"step", "loss"} or not config.evaluation
    assert result.path is not None
    assert list(result.path.iterdir())


def test_every_objective_has_a_config() -> None:
    used = {Run.from_yaml(FOLDER / f"{name}.yaml").settings()["objective"]["kind"] for name in NAMES}
    assert used == set(lookup.names("objectives"))
