"""The rows of the grids: `python -m benchmarks.claims.rows` writes them to runs/claims/data, from the sets in LUTHIER_DATA."""

import csv
import json
from collections import defaultdict

from benchmarks.claims._parts import RUNS, labelled, sample, source, write

DATA = RUNS / "data"
TESTED = {"sst2": 500, "trec": 500}


def classification() -> None:
    for name, tested in TESTED.items():
        write(DATA / f"{name}.jsonl", labelled(f"{name}/train.txt"))
        write(DATA / f"{name}-test.jsonl", sample(labelled(f"{name}/test.txt"), tested))
    write(DATA / "sst2-few-test.jsonl", sample(labelled("sst2/test.txt"), 200))
    write(DATA / "sst2-few.jsonl", sample(labelled("sst2/train.txt"), 32))


def restaurants() -> None:
    """E2E: one text of each meaning representation to learn from, and of the test's representations."""
    for name, file, count in (("e2e", "devset", 480), ("e2e-test", "testset_w_refs", 24)):
        texts = defaultdict(list)
        with source(f"e2e_nlg/{file}.csv").open(encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                texts[row["mr"]].append(row["ref"])
        rows = [{"prompt": meaning, "completion": references[0]} for meaning, references in texts.items()]
        write(DATA / f"{name}.jsonl", sample(rows, count))


def triples() -> None:
    """WebNLG: triples to text; the test's categories that training has seen, and those it has not."""
    seen = {True: "webnlg-seen", False: "webnlg-unseen"}
    for file in ("train", "test"):
        rows = defaultdict(list)
        for line in source(f"webnlg_2017/{file}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            said = " | ".join(" : ".join(part.replace("_", " ") for part in triple) for triple in row["triples"])
            name = "webnlg" if file == "train" else seen[row["seen_category"]]
            if row["size"] <= 3 and row["lex"]:
                rows[name].append({"prompt": said, "completion": row["lex"][0]})
        for name, each in rows.items():
            write(DATA / f"{name}.jsonl", sample(each, 480 if file == "train" else 40))


def main() -> None:
    classification()
    restaurants()
    triples()


if __name__ == "__main__":
    main()
