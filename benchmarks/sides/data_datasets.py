"""The peer's side of the data benchmark: datasets.map in two processes, transformers' tokenizer, labels -100 on the prompt."""

import resource
import sys
import tempfile
import time

import datasets
from transformers import AutoTokenizer

from benchmarks._rounds import serve

LENGTH, TOKENS = 1024, 8192


def main(folder: str, file: str) -> None:
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(rows: dict) -> dict:
        prompts, whole = [], []
        for instruction, text, output in zip(rows["instruction"], rows["input"], rows["output"], strict=True):
            user = {"role": "user", "content": instruction + ("\n\n" + text if text else "")}
            prompts.append([user])
            whole.append([user, {"role": "assistant", "content": output}])
        heads = tokenizer(tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True), add_special_tokens=False)
        ids = tokenizer(tokenizer.apply_chat_template(whole, tokenize=False), add_special_tokens=False)["input_ids"]
        # the last token is the line feed behind the end of the turn, which nobody learns
        labels = [[-100] * len(head) + found[len(head) : -1] + [-100] for head, found in zip(heads["input_ids"], ids, strict=True)]
        ids, labels = [found[:LENGTH] for found in ids], [found[:LENGTH] for found in labels]
        return {"input_ids": ids, "labels": labels}

    def pack(rows: dict) -> dict:
        packed: dict = {"input_ids": [[]], "labels": [[]], "lengths": [[]]}
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
            if packed["input_ids"][-1] and len(packed["input_ids"][-1]) + len(ids) > TOKENS:
                for column in packed.values():
                    column.append([])
            packed["input_ids"][-1] += ids
            packed["labels"][-1] += labels
            packed["lengths"][-1].append(len(ids))
        return packed

    def work() -> dict:
        with tempfile.TemporaryDirectory() as cache:
            begun, before = time.perf_counter(), cpu_seconds()
            rows = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
            rows = rows.shuffle(seed=0)
            rows = rows.map(encode, batched=True, num_proc=2, remove_columns=rows.column_names)
            batches = rows.map(pack, batched=True, num_proc=2, remove_columns=rows.column_names).with_format("torch")
            tokens = learnt = count = 0
            for batch in batches:
                tokens += batch["input_ids"].shape[-1]
                learnt += int((batch["labels"] != -100).sum())
                count += len(batch["lengths"])
            seconds = time.perf_counter() - begun
            return {"rows": count, "tokens": tokens, "learnt": learnt, "seconds": seconds, "cpu": cpu_seconds() - before}

    serve({}, work)


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    main(*sys.argv[1:])
