"""Texts to score: random ones that hit every rule of the tokenisers, and real ones from LUTHIER_DATA."""

import json
import os
import random
from pathlib import Path

import pytest

PIECES = ["the", "cat", "Sat", "a", "3,000", "1.5", "x-ray", "3-4", "don't", "(so)", "&amp;", '"quoted"', "end.", "-", "...", "e.g."]
PIECES += ["$5", "a&b", "[x]", "{y}", "`z`", "~", "été", "\n", "“so”", "—", "http://a.b/c"]
PIECES += ["我", "今天天气", "很好，", "。", "《书》", "GPT4模型", "３", "→", "𠀀", "ｱ", "한글"]


def sentence(rng: random.Random, most: int = 12) -> str:
    return " ".join(rng.choice(PIECES) for _ in range(rng.randint(0, most))) + rng.choice(["", ".", " "])


def noised(rng: random.Random, text: str) -> str:
    words = [w for w in text.split(" ") if rng.random() > 0.2]
    return " ".join(w if rng.random() > 0.2 else rng.choice(PIECES) for w in words)


@pytest.fixture
def corpora() -> list[tuple[list[str], list[list[str]]]]:
    """60 small corpora of (predictions, several references a row), some rows empty."""
    made = []
    for seed in range(60):
        rng = random.Random(seed)
        references = [[sentence(rng) for _ in range(1 + seed % 3)] for _ in range(rng.randint(1, 8))]
        made.append(([noised(rng, rng.choice(row)) for row in references], references))
    return made


@pytest.fixture(params=["en", "zh"])
def real_texts(request: pytest.FixtureRequest) -> tuple[list[str], list[str]]:
    """Answers paired with the same answers half shuffled and cut."""
    if "LUTHIER_DATA" not in os.environ:
        pytest.skip("LUTHIER_DATA is not set: no real texts to score")
    folder = Path(os.environ["LUTHIER_DATA"]) / f"alpaca_gpt4_{request.param}"
    text = next(path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".jsonl")).read_text()
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    references = [row["output"][:400] for row in rows[:40]]
    rng = random.Random(0)
    return [
        "".join(rng.sample(parts := r.split(" "), len(parts) // 2)) if i % 3 else r[10:-20] for i, r in enumerate(references)
    ], references
