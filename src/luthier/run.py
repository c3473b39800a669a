"""A run, from YAML to result, on one page: model x tuning x objective, over data. Importing this imports no torch.

    result = run(Run.from_yaml("run.yaml", ["training.rate=1e-4"]))

The run's folder is the whole story: config.yaml (every default filled in), manifest.json, metrics.jsonl, checkpoints/, adapter/ or
model/, predictions.jsonl, result.json, report.html.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import lookup
from luthier.config import RunFailed
from luthier.run_file import Run, make, section
from luthier.training import folder as folders
from luthier.training.settings import Training

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.data.stream import Stream
    from luthier.objectives._objective import Objective
    from luthier.sources.model import Model
    from luthier.training.loop import Evaluate, History, Line
    from luthier.training.stop import Stop
    from luthier.tuning._attached import Attached


@dataclass(frozen=True)
class Ready:
    """A run whose parts are made: nothing is trained or written yet."""

    model: "Model"
    attached: "Attached"
    objective: "Objective"
    stream: "Stream"
    measures: list[Any]


@dataclass(frozen=True)
class Result:
    """What came of a run. path: the adapter/ or model/ it handed over; None after a dry run, like the history."""

    folder: Path
    trainable: int
    parameters: int
    history: "History | None" = None
    path: Path | None = None


def run(config: Run, resume: str | Path | None = None, dry_run: bool = False) -> Result:
    """Does what the run file says.

    resume: "auto" or a checkpoint's folder; the weights then equal the uninterrupted run's to the bit. dry_run: everything is loaded and
    checked, nothing trained or written. ValueError or OSError for what is wrong with the input, RunFailed when the run itself fails,
    Interrupted after Ctrl-C.
    """
    from luthier.training.loop import last

    return last(steps(config, resume, dry_run))


def steps(
    config: Run,
    resume: str | Path | None = None,
    dry_run: bool = False,
    make_ready: "Callable[[Run], Ready] | None" = None,
    console: "Console | None" = None,
    stop: "Stop | None" = None,
) -> "Generator[Line, None, Result]":
    """`run`, pausing after every step, so that several runs may take turns.

    make_ready: `prepare`, or what shares parts with other runs. console: where progress is shown. stop: who asks the run to end; left
    out, it listens for Ctrl-C itself.
    """
    from luthier import doctor, report
    from luthier.training import checkpoint
    from luthier.training.loop import steps as training_steps
    from luthier.training.random import seed_all

    folder = Path(config.output).expanduser()
    folders.check(folder, resume)
    start = folders.start(folder, resume, checkpoint.newest(folder / folders.CHECKPOINTS))
    ready = (make_ready or prepare)(config)
    findings = doctor.check(config, ready.model, ready.stream, ready.objective)
    doctor.refuse(findings)
    result = Result(folder, count(ready.attached.parameters.values()), size_of(ready.model.net))
    if dry_run:
        return result
    describe(folder, config, ready)
    ask(folder, "before", config, ready)
    seed_all(config.seed)
    batches = ready.objective.batches(ready.stream, ready.model, size(config.training), config.data.length)
    parts = (ready.model, ready.attached, ready.objective, batches, config.training, folder)
    last_rows: list[dict[str, Any]] = []
    evaluate = evaluation(config, ready, last_rows)
    history = yield from training_steps(*parts, evaluate=evaluate, resume=start, console=console, stop=stop)
    ask(folder, "after", config, ready)
    handed_over = history.after is not None and history.after["step"] == history.steps  # are the weights that were evaluated last
    predict(folder, config, ready, last_rows if handed_over else [])
    result = Result(folder, result.trainable, result.parameters, history, hand_over(folder, ready))
    folders.write_json(folder / folders.RESULT, summary(result))
    report.write(folder)
    return result


def prepare(config: Run, stream: "Stream | None" = None, model: "Model | None" = None, drawn: dict[str, Any] | None = None) -> Ready:
    """Model, tuning, objective and data, made from their settings and fitted to each other.

    stream, model: where they are open already, the stream at its start and the model as `base` loads it. drawn: the state of the random
    generators behind that, where it took random numbers.
    """
    from luthier.data.stream import open_stream
    from luthier.data.template import choose
    from luthier.evaluation._measure import check_fit
    from luthier.training.random import restore, seed_all
    from luthier.tuning._tune import tune

    for folder in config.plugins:
        lookup.add_folder(folder)
    objective, method = make("objectives", config.objective), make("tuning", config.tuning)
    measures = [make("evaluation", measure) for measure in config.evaluation]
    seed_all(config.seed)
    stream = stream or open_stream(config.data, config.seed)
    check_held_out(config, stream)
    model = model or base(config)
    if drawn is not None:
        restore(drawn)
    if config.data.template is not None and model.tokenizer is not None:
        model.template = choose(config.data.template, model.tokenizer)
    objective = objective.prepare(stream)
    for measure in measures:
        check_fit(measure, objective, answers=True)
    for kind, labels in objective.heads().items():
        if kind not in model.net.heads:
            model.net.add_head(kind, labels)
    return Ready(model, tune(model, method), objective, stream, measures)  # type: ignore[arg-type]  # cached_property is a property


def base(config: Run) -> "Model":
    """The model that the run starts from; another run's adapter is folded into its base."""
    from luthier.tuning._load import load

    model = load(config.model, device=device(config.device))
    if model.attached is not None:
        model.merge()
    return model


def check_held_out(config: Run, stream: "Stream") -> None:
    wanted = {
        "training.evaluate_every": config.training.evaluate_every,
        "training.result": config.training.result == "best",
        "evaluation": config.evaluation,
        "samples": config.samples,
    }
    for key, value in wanted.items():
        if value and not stream.held_out:
            raise ValueError(
                f"{key} needs held-out rows, and there are none; set data.held_out to a file, a number of rows, or a share that is at least one row"
            )


def evaluation(config: Run, ready: Ready, last_rows: list[dict[str, Any]]) -> "Evaluate | None":
    """The held-out loss and every measure, as a function for the loop; None where nothing is held out.

    last_rows: takes what the model makes of each row in the run's last evaluation.
    """
    from luthier.evaluation._measure import measure
    from luthier.evaluation._predictions import Entries

    if not ready.stream.held_out:
        return None
    sizes: dict[str, Any] = {"length": config.data.length, "micro_tokens": config.training.micro_tokens}
    parts = (ready.model, ready.objective, ready.stream.held_out, ready.measures)

    def evaluate(final: bool) -> dict[str, float]:
        entries = Entries() if final else None
        figures = measure(*parts, **sizes, answer=writer(ready), entries=entries)
        last_rows[:] = entries.rows if entries is not None else []
        return figures

    return evaluate


def writer(ready: Ready) -> Callable[[Sequence[Any]], list[str]]:
    """Conversations to the model's likeliest answers."""

    def write(conversations: Sequence[Any]) -> list[str]:
        from luthier.sources.generate import generate_texts

        return generate_texts(ready.model, list(conversations), max_tokens=128, temperature=0.0)

    return write


def ask(folder: Path, when: str, config: Run, ready: Ready) -> None:
    """samples.json: the first held-out conversations, answered before and after training."""
    from luthier.evaluation._measure import evaluating, split
    from luthier.report import read_json
    from luthier.training.precision import lowered

    path = folder / "samples.json"
    if not config.samples or (when == "before" and path.exists()):
        return
    rows = ready.stream.held_out[: config.samples]
    cut, write = [split(row["messages"]) for row in rows], writer(ready)
    samples = read_json(path, [{"prompt": asked, "reference": reference} for asked, reference in cut])
    first = ready.attached.running()[0]  # of adapters in parallel, the first one answers
    with first, evaluating(ready.model), lowered(ready.model.net, config.training.precision if when == "after" else "fp32"):
        answers = ready.model.each_under([row.get("adapter", "") for row in rows], lambda mine: write([cut[i][0] for i in mine]))
    folders.write_json(path, [{**sample, when: answer.strip()} for sample, answer in zip(samples, answers, strict=True)])


def predict(folder: Path, config: Run, ready: Ready, rows: Sequence[dict[str, Any]] = ()) -> None:
    """predictions.jsonl: what the handed-over weights make of every held-out row. rows: that, where an evaluation of them has it."""
    from luthier.evaluation._predictions import predictions
    from luthier.training.precision import lowered

    if not ready.stream.held_out:
        return
    if not rows:
        sizes = {"length": config.data.length, "micro_tokens": config.training.micro_tokens}
        writes = any(measure.of not in ("likelihood", ready.objective.predicts) for measure in ready.measures)
        with ready.attached.running()[0], lowered(ready.model.net, config.training.precision):
            rows = predictions(ready.model, ready.objective, ready.stream.held_out, **sizes, answer=writer(ready) if writes else None)
    folders.write_lines(folder / folders.PREDICTIONS, rows)


def describe(folder: Path, config: Run, ready: Ready) -> None:
    """config.yaml and manifest.json; a run that goes on must fit those that are there."""
    model, data = ready.model, [source.path for source in config.data.sources]
    data += [config.data.held_out] if isinstance(config.data.held_out, str) else []
    prints = [part.fingerprint() if part is not None else None for part in (model.tokenizer, model.template)]
    settings = {**config.settings(), "objective": section("objectives", ready.objective)}  # with the label names found in the data
    manifest = folders.describe(data, prints[0], prints[1], model.source)
    if (folder / folders.CONFIG).exists():
        folders.check_same(folder, settings, manifest)
    folders.write_json(folder / folders.MANIFEST, manifest)
    folders.write_yaml(folder / folders.CONFIG, settings)


def hand_over(folder: Path, ready: Ready) -> Path:
    """The adapter, or the whole model where all of it trains."""
    path = folder / ("model" if ready.attached.whole else "adapter")
    try:
        (ready.model if ready.attached.whole else ready.attached).save(path)
    except OSError as error:
        kept = f"the weights are whole in {folder / folders.CHECKPOINTS}; make room and go on with --resume auto"
        raise RunFailed(f"cannot write {path}: {error.strerror or error}; {kept}") from error
    return path


def summary(result: Result) -> dict[str, Any]:
    from luthier.training.memory import peak

    assert result.history is not None
    assert result.path is not None
    sizes = {"trainable": result.trainable, "parameters": result.parameters, "memory_bytes": peak()}
    sizes["artefact_bytes"] = sum(path.stat().st_size for path in result.path.rglob("*") if path.is_file())
    return {**asdict(result.history), **sizes, "path": result.path.name}


# Parts


def size(training: Training) -> Any:
    from luthier.objectives._batch import Size

    return Size(training.tokens, training.rows, training.micro_tokens)


def device(name: str) -> str:
    import torch

    found = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=found).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the last: meta, which holds no values
        raise ValueError(f"device={name} is not here ({str(error).partition(chr(10))[0]}); take cpu or auto") from None
    return found


def count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def size_of(net: Any) -> int:
    """Every weight of a model, quantised ones included."""
    from luthier.core.frozen import FrozenLinear

    frozen = [module for module in net.modules() if isinstance(module, FrozenLinear)]
    return count(net.parameters()) + sum(module.in_features * module.out_features for module in frozen)
