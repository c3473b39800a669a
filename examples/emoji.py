"""MiniGPT-4 in small: pictures of emoji and their names, then photographs and questions about them.

A ViT and a Q-Former learn contrastively which name belongs to which picture; then one linear projection, and nothing else, learns to show a
language model what they see, first on the names, then on conversations. LUTHIER_DATA: the folder of emoji_captions and tiny_coco_train.
What comes out lies in runs/emoji; a second start goes on where the first stopped.
"""

import json
import os
from math import comb
from pathlib import Path

import torch

import luthier
from luthier.objectives._batch import once
from luthier.run import Run, prepare, run

CONFIGS, ASKED = Path(__file__).parents[1] / "configs", ("Describe this picture.", "What do you see?", "What is shown here?")


def learn(name: str, folder: Path, *changes: str) -> Run:
    """The run of configs/NAME.yaml in the folder, unless it is there already."""
    config = Run.from_yaml(CONFIGS / f"{name}.yaml", [f"output={folder}", *changes])
    if not (folder / "result.json").exists():
        run(config, resume="auto" if (folder / "checkpoints").exists() else None)
    return config


def first_of(among: int, scores_NN: torch.Tensor) -> torch.Tensor:
    """(N,) for each picture the chance that its own caption comes first among so many, the others drawn at random."""
    better, others = (scores_NN > scores_NN.diag()[:, None]).sum(1).tolist(), len(scores_NN) - 1
    return torch.tensor([comb(others - count, among - 1) / comb(others, among - 1) for count in better])


@torch.no_grad()
def judge(config: Run, folder: Path) -> None:
    ready, model = prepare(config), luthier.load(folder)
    (batch,) = once(ready.objective, ready.stream.held_out, model, config.data.length)
    right = first_of(min(20, batch.rows), ready.objective.forward(model.net, batch).scores_NN)
    print(f"the right caption first among 20: {right.mean():.1%} +- {1.96 * right.std() / len(right) ** 0.5:.1%}, by chance 5.0%")


def conversations(data: Path, pictures: slice, path: Path) -> Path:
    rows = [json.loads(line) for line in (data / "captions.jsonl").read_text().splitlines()][pictures]
    asked = [(str(data / row["image"]), ASKED[i % 3], text) for row in rows for i, text in enumerate(row["captions"])]
    turns = [(image, [{"role": "user", "content": ask}, {"role": "assistant", "content": text}]) for image, ask, text in asked]
    path.write_text("".join(json.dumps({"image": image, "messages": messages}) + "\n" for image, messages in turns))
    return path


def main(data: Path, folder: Path = Path("runs/emoji"), short: tuple[str, ...] = (), eyes: tuple[str, ...] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    emoji = f"data.path={data / 'emoji_captions' / 'captions.jsonl'}"
    judge(learn("contrastive", folder / "eyes", emoji, *short, *eyes), folder / "eyes")
    named = learn("see", folder / "see", emoji, f"model.eyes={folder / 'eyes'}", *short)
    shown = conversations(data / "tiny_coco_train", slice(4, None), folder / "shown.jsonl")
    kept = conversations(data / "tiny_coco_train", slice(4), folder / "kept.jsonl")  # held out by picture: each has several captions
    learn("see-chat", folder / "chat", f"model={folder / 'see'}", f"data.path={shown}", f"data.held_out={kept}", *short)
    rows = prepare(named).stream.held_out[:6]
    said = luthier.generate(luthier.load(folder / "see"), ["<image>"] * len(rows), 12, 0.0, images=[[row["image"]] for row in rows])
    print("\n".join(f"{row['text']}: {text.strip()}" for row, text in zip(rows, said, strict=True)))


if __name__ == "__main__":
    main(Path(os.environ["LUTHIER_DATA"]).absolute())
