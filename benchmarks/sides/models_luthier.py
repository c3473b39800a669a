"""Luthier's side of the model benchmark: documents packed into one row, the loss without all logits at once."""

import sys

import torch

import luthier
from benchmarks.sides.models_transformers import LENGTHS, rows, run
from luthier.core.loss import linear_cross_entropy


def main(folder: str, name: str, dtype: str, kind: str) -> None:
    net = luthier.load(folder, dtype=dtype).net.train(kind != "forward")
    made = rows(name)
    ids = torch.tensor([token for row in made for token in row["ids"]])[None]
    labels = torch.tensor([label for row in made for label in row["labels"]])
    decoder = hasattr(net, "encoder")
    inputs = {"lengths": LENGTHS}
    if decoder:  # T5 begins its targets with the padding token
        shifted = torch.tensor([token for row in made for token in [0, *row["ids"][:-1]]])[None]
    elif net.causal:  # the state before a token predicts it
        first = torch.tensor([sum(LENGTHS[:i]) for i in range(len(LENGTHS))])
        labels = labels.clone()
        labels[first] = -100
        labels = labels.roll(-1)
    at = (labels != -100).nonzero()[:, 0]

    def forward() -> float:
        with torch.no_grad():
            more = {"decoder_ids": ids, "decoder_lengths": LENGTHS} if decoder else {}
            logits = net(ids, **inputs, **more)
        return logits.float().square().mean().item()

    def training() -> float:
        more = {"decoder_ids": shifted, "decoder_lengths": LENGTHS} if decoder else {}
        state = net.hidden(ids, **inputs, **more)[0, at]
        head = net.heads["lm"]
        loss = linear_cross_entropy(head.transform(state), head.out.weight, head.out.bias, labels[at]) / len(at)
        loss.backward()
        net.zero_grad()
        return loss.item()

    run(forward if kind == "forward" else training)


if __name__ == "__main__":
    main(*sys.argv[1:])
