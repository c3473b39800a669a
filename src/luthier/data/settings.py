"""What data a run learns from: which files, in which form, cut how long, and what is held out. Imports no torch."""

from dataclasses import dataclass

FORMS = (
    "messages",
    "sharegpt",
    "alpaca",
    "prompt",
    "translation",
    "text",
    "lines",
    "labelled",
    "scored",
    "tags",
    "extract",
    "choices",
    "captions",
)


@dataclass(frozen=True)
class Source:
    """One file of a mixture. Weights are shares of the rows drawn; give one to every file, or to none (then every row comes once an epoch)."""

    path: str
    weight: float | None = None


@dataclass(frozen=True)
class Data:
    """The `data:` section of a run."""

    path: str | tuple[str | Source, ...]
    length: int = 1024  # tokens of a row at most
    held_out: float | int | str = 0.05  # a share (0.05), a number of rows (200) or a file; never trained on
    form: str = "auto"
    template: str | None = None  # a built-in template's name, or a file of Jinja; None: the model's own
    system: str | None = None  # put before conversations that have no system message
    columns: dict[str, str | int] | None = None  # our name: the file's column, or its number in a file without a header line
    shuffle: bool = True
    validation: float | None = None  # a share of the training rows to measure on in place of the held-out ones, as a search does

    def __post_init__(self) -> None:
        assert isinstance(self.length, int)
        if self.length < 2:
            raise ValueError(f"data.length={self.length}: a row needs at least 2 tokens to predict one from another")
        if self.form not in ("auto", *FORMS):
            raise ValueError(f"data.form={self.form!r} is not known; choose auto or one of {', '.join(FORMS)}")
        self._check_held_out()
        self._check_sources()

    def _check_held_out(self) -> None:
        if self.validation is not None and not 0 < self.validation < 1:
            raise ValueError(f"data.validation={self.validation}: a share of the training rows lies between 0 and 1")
        if isinstance(self.held_out, bool) or (isinstance(self.held_out, int) and self.held_out < 0):
            raise ValueError(f"data.held_out={self.held_out}: give a share below 1 (0.05), a number of rows (200), 0 or a file")
        if isinstance(self.held_out, float) and not 0 <= self.held_out < 1:
            raise ValueError(f"data.held_out={self.held_out}: a share lies between 0 and 1; for a number of rows leave out the point")

    def _check_sources(self) -> None:
        weights = [source.weight for source in self.sources]
        if not weights:
            raise ValueError("data.path is an empty list; name at least one file")
        if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
            raise ValueError("data.path gives a weight to some files only; give one to every file or to none")
        if any(weight is not None and not weight > 0 for weight in weights):
            raise ValueError(f"data.path has weights {weights}; each must be above 0 (leave out a file you do not want)")

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files, each as a Source, however they were written."""
        entries = (self.path,) if isinstance(self.path, str) else tuple(self.path)
        return tuple(_source(entry) for entry in entries)


def _source(entry: str | Source | dict) -> Source:
    if isinstance(entry, Source):
        return entry
    if isinstance(entry, dict):  # from Python: Data(path=[{"path": ..., "weight": ...}])
        unknown = set(entry) - {"path", "weight"}
        if unknown or "path" not in entry:
            raise ValueError(f"data.path: an entry has path and weight, this one has {', '.join(sorted(entry))}")
        return Source(**entry)
    return Source(str(entry))
