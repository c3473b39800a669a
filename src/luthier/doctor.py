"""What is looked at before the first step, so that a run that cannot come out well does not start.

Each check is one small function over a Case: None where all is well, else a sentence with what, where and the way out. A check
stops the run, unless it is among NOTES, which are only told. What loading itself refuses (missing and unexpected tensors, damaged
files, an adapter of another model, rows that cannot be read) never comes this far.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

from luthier.core.heads import LabelHead
from luthier.core.transformer import Transformer
from luthier.core.virtual import FIRST as VIRTUAL
from luthier.data.settings import Data
from luthier.data.stream import Stream
from luthier.objectives._batch import Example, encode
from luthier.objectives._objective import Objective
from luthier.sources.model import Model
from luthier.training.settings import Training

ROWS = 256  # of the stream that are looked at: the first ones it will draw


class Planned(Protocol):
    """What the checks ask of a run: run.Run."""

    @property
    def model(self) -> Any: ...
    @property
    def data(self) -> Data: ...
    @property
    def training(self) -> Training: ...
    @property
    def output(self) -> Any: ...


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    sentence: str = ""
    level: Literal["fine", "note", "stop"] = "fine"


@dataclass(frozen=True)
class Case:
    """A run that is ready to start: model loaded and tuned, stream open, objective prepared."""

    run: Planned
    model: Model
    stream: Stream
    objective: Objective

    @cached_property
    def examples(self) -> list[list[Example]]:
        """By row, for the rows looked at; [] for a row with nothing to learn."""
        samples = [self.stream.at(i) for i in range(min(ROWS, self.stream.epoch_size))]
        return encode(self.objective, samples, self.model, self.length)

    @property
    def length(self) -> int:
        return self.run.data.length

    @property
    def labelled(self) -> list[Example]:
        return [example for example in chain.from_iterable(self.examples) if any(example.labels.values())]

    @property
    def generates(self) -> bool:
        """Whether the model learns to write text, and so has to learn where to end."""
        return self.objective.predicts == "tokens" and self.model.net.causal


def check(run: Planned, model: Model, stream: Stream, objective: Objective) -> list[Finding]:
    """One finding for every check, in order. After a check that stops, those that rest on it are left out."""
    case, findings = Case(run, model, stream, objective), []
    for look in CHECKS:
        try:
            sentence = look(case)
        except ValueError as error:  # of the objective or a row: a sentence already
            sentence = str(error)
        level = "fine" if sentence is None else "note" if look in NOTES else "stop"
        findings.append(Finding(look.__name__.replace("_", " "), sentence or "", level))
        if level == "stop" and look in FIRST:
            break
    return findings


def refuse(findings: list[Finding]) -> None:
    """ValueError with everything that stops the run; what is only worth knowing goes to stderr."""
    for finding in findings:
        if finding.level == "note":
            print(f"note: {finding.sentence}", file=sys.stderr)
    stops = [finding.sentence for finding in findings if finding.level == "stop"]
    if stops:
        raise ValueError("\n".join(stops))


# The checks, each named like what it looks at


def data(case: Case) -> str | None:
    if case.stream.epoch_size == 0:
        return f"{', '.join(case.stream.files)}: no row is left to train on; add rows, or hold out fewer (data.held_out)"
    return None


def objective_and_model(case: Case) -> str | None:
    case.objective.check(case.model)
    return None


def adapters(case: Case) -> str | None:
    """Rows may name the adapter they are for."""
    named = case.stream.adapters
    wrong = [f"{where}: {told}" for name, where in named.items() if (told := unknown(case.model, name))]
    if not wrong and named and case.objective.together:
        where = next(iter(named.values()))
        return f"{where}: objective {case.objective.kind} compares the rows of a step with each other, so no row can name an adapter of its own"
    return "\n".join(wrong) or None


def unknown(model: Model, adapter: str) -> str:
    try:
        model.running(adapter)
    except ValueError as error:
        return str(error)
    return ""


def heads(case: Case) -> str | None:
    present, declared = case.model.net.heads, case.objective.heads()
    for kind, labels in declared.items():
        if kind not in present:
            return f"objective {case.objective.kind} needs the head {kind!r} with {labels} labels, and the model has {spelt(present)}"
        head = present[kind]
        with case.model.running()[0]:  # each adapter in parallel has one of its own
            have = head.out.weight.shape[0] if isinstance(head, LabelHead) else labels
        if have != labels:
            return (
                f"the model's head {kind!r} has {have} labels and the data {labels}; "
                "train on data with the same labels, or start from the base model"
            )
    return None


def heads_that_learn_nothing(case: Case) -> str | None:
    if case.model.attached is not None and case.model.attached.whole:  # everything trains, what gets no gradient stays as it is
        return None
    read = {"lm"} if not case.objective.heads() else set(case.objective.heads())
    trained = {id(p) for kind in read & set(case.model.net.heads) for p in case.model.net.heads[kind].parameters()}
    for kind, head in case.model.net.heads.items():
        if any(p.requires_grad and id(p) not in trained for p in head.parameters()) and not (kind == "lm" and tied(case.model)):
            return (
                f"the head {kind!r} is set to train, and objective {case.objective.kind} does not declare it, so it would learn nothing; "
                "take it out of also_train, or choose an objective for it"
            )
    return None


def vocabulary(case: Case) -> str | None:
    assert case.model.tokenizer is not None
    written = chain.from_iterable(case.examples)
    places = {case.model.net.vocab} if case.model.net.sight is not None else set()  # of pictures
    highest = max((max((id for id in set(example.ids) - places if id < VIRTUAL), default=0) for example in written), default=0)
    if highest >= case.model.net.vocab:
        token = case.model.tokenizer.token(highest)
        return (
            f"the tokenizer writes the token {token!r} (id {highest}), and the model has vectors for {case.model.net.vocab}; "
            "use the tokenizer that came with the model, or let the vocabulary grow (tuning)"
        )
    return None


def positions(case: Case) -> str | None:
    net = case.model.net
    limit = net.embed.positions if isinstance(net, Transformer) else None
    longest = max((max(example.documents) for example in chain.from_iterable(case.examples)), default=0)
    if limit is None or longest + (taken := taken_before(case.model)) <= limit:
        return None
    beside = f" and the tuning method takes {taken} positions before it" if taken else ""
    way = f"set data.length={limit - taken}" if taken < limit else "give it fewer"
    return f"a row has {longest} tokens{beside}, and {case.model.source} has vectors for {limit} positions; {way}"


def taken_before(model: Model) -> int:
    """Positions that adapters take before a text: of those in parallel, what the longest takes."""
    found = []
    for running in model.running():
        with running:
            found.append(model.before_texts())
    return max(found)


def one_forward_pass(case: Case) -> str | None:
    """An objective that compares a step's rows with each other cannot have them in parts."""
    training, kind = case.run.training, case.objective.kind
    if not case.objective.together:
        return None
    if training.rows == 1:
        return f"objective {kind} compares the rows of a step with each other, and training.rows=1 leaves nothing to compare; take more"
    longest = max((len(example.ids) for example in case.labelled), default=0)
    tokens = training.tokens if training.rows is None else training.rows * longest
    assert tokens is not None
    if tokens > training.micro_tokens:
        most = f"training.tokens={tokens}" if training.rows is None else f"{training.rows} rows of up to {longest} tokens"
        return (
            f"objective {kind} needs a whole step in one forward pass, and {most} may be more than training.micro_tokens="
            f"{training.micro_tokens}; raise it to {tokens}, or make the step smaller"
        )
    return None


def something_to_learn(case: Case) -> str | None:
    if not case.labelled:
        return case.objective.nothing(len(case.examples), case.length)
    return None


def rows_without_labels(case: Case) -> str | None:
    empty = sum(not any(any(example.labels.values()) for example in examples) for examples in case.examples)
    if empty:
        return (
            f"{empty} of the first {len(case.examples)} rows have nothing to learn within data.length={case.length} tokens and are skipped"
        )
    return None


def cut_rows(case: Case) -> str | None:
    cut = sum(any(max(example.documents) >= case.length for example in examples) for examples in case.examples)
    if cut:
        return f"{cut} of the first {len(case.examples)} rows fill data.length={case.length} tokens; what is longer is cut"
    return None


def end_of_answers(case: Case) -> str | None:
    """One of the ways to end must be among the labels, or the model never learns to stop."""
    tokenizer, template = case.model.tokenizer, case.model.template
    whole = [example for example in case.labelled if len(example.ids) < case.length]
    if not case.generates or not whole or tokenizer is None:
        return None
    ends = [tokenizer.token(end) for end in dict.fromkeys((tokenizer.eos, *tokenizer.frame()[1])) if end is not None]
    if template is not None and "messages" in case.objective.needs:
        ends += [end.strip() for end in (template.end_of_turn, *template.stop) if end.strip()]
    learnt = [tokenizer.decode(list(chain.from_iterable(example.labels.values())), specials=True) for example in whole]
    if any(end in text for end in ends for text in learnt) or tokenizer.eos in chain.from_iterable(whole[0].labels.values()):
        return None
    name = f"template {template.name!r}" if template is not None and "messages" in case.objective.needs else "the tokenizer"
    return (
        f"the end of an answer is never learnt ({name} ends with {', '.join(map(repr, ends)) or 'nothing'}), so the model would not know "
        "where to stop; choose a template that writes an end-of-turn behind each answer (data.template)"
    )


def template_of_the_adapter(case: Case) -> str | None:
    """Going on from a run's folder: its manifest says which template the adapter knows."""
    if not isinstance(case.run.model, str | Path) or case.model.template is None or "messages" not in case.objective.needs:
        return None
    folder = Path(case.run.model).expanduser()
    for manifest in (folder / "manifest.json", folder.parent / "manifest.json"):
        if manifest.is_file():
            before = json.loads(manifest.read_text(encoding="utf-8")).get("template")
            now = case.model.template.fingerprint()
            if before and before != now:
                return (
                    f"{manifest}: the adapter was trained with another chat template than {case.model.template.name!r}; "
                    "name that one in data.template (it stands in the run's config.yaml), or start from the base model"
                )
    return None


def disk(case: Case) -> str | None:
    """Room for the checkpoints that are kept, the one being written, and the result."""
    if case.run.output is None:
        return None
    folder = existing(Path(case.run.output).expanduser().absolute())
    if not folder.is_dir():
        return f"{folder} is a file; output must be a folder"
    if not os.access(folder, os.W_OK):
        return f"{folder} cannot be written to; choose another output"
    needed, free = bytes_needed(case), shutil.disk_usage(folder).free
    if needed > free:
        return (
            f"{folder} has {free / 1e9:.1f} GB free, and the run may write {needed / 1e9:.1f} GB; "
            f"make room, keep fewer checkpoints (training.keep={case.run.training.keep}), or choose another output"
        )
    return None


CHECKS: tuple[Callable[[Case], str | None], ...] = (
    data, objective_and_model, adapters, heads, something_to_learn, one_forward_pass, vocabulary, positions, rows_without_labels, cut_rows, end_of_answers,
    heads_that_learn_nothing, template_of_the_adapter, disk,
)  # fmt: skip
FIRST = (data, objective_and_model, adapters, something_to_learn)  # the others rest on these
NOTES = (rows_without_labels, cut_rows)


# Parts


def bytes_needed(case: Case) -> int:
    """Of checkpoints (values, optimizer state, running mean) and of what is handed over at the end."""
    training, parameters = case.run.training, list(case.model.net.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    copies = {"adamw": 3, "sgd": 2, "adafactor": 2}[training.optimizer] + bool(training.ema)
    whole = case.model.attached is None or case.model.attached.whole
    result = sum(p.numel() * p.element_size() for p in parameters) if whole else 4 * trained
    return 4 * trained * copies * (training.keep + 2) + result


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def tied(model: Model) -> bool:
    """Whether the language-model head's matrix is the embedding's."""
    net = model.net
    return isinstance(net, Transformer) and "lm" in net.heads and any(p is net.embed.token.weight for p in net.heads["lm"].parameters())


def spelt(names: Any) -> str:
    return ", ".join(names) or "none"
