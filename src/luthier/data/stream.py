"""An endless, deterministic stream of rows: sample i of epoch e depends on (seed, e, i) alone.

An epoch draws as many samples as there are rows. Without weights every row comes once an epoch; with weights a file is drawn in proportion
to its own, its rows still all seen before any comes again. A position is one number, so a run goes on exactly where it stopped.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from luthier.data import forms, illustrated
from luthier.data.pictures import check_pictures
from luthier.data.read import Rows, read
from luthier.data.settings import Data, Source

CHECKED = 20_000  # rows of a file that are looked at before a run starts


@dataclass(frozen=True, slots=True)
class Sample:
    """One row, and which draw it is."""

    row: dict
    epoch: int
    index: int
    seed: int

    def key(self, salt: str = "") -> int:
        """63 random bits that belong to this draw, for seeding a generator."""
        name = f"{self.seed}/{self.epoch}/{self.index}/{salt}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1

    def rng(self, salt: str = "") -> random.Random:
        """Random numbers that belong to this draw."""
        return random.Random(self.key(salt))


class Part:
    """One file of the mixture: its rows, normalised when asked for, and which of them are trained on."""

    def __init__(self, rows: Rows, data: Data):
        self.rows, self.columns, self.system = rows, data.columns, data.system
        self.form = forms.detect(self._readable(20)) if data.form == "auto" else data.form
        self.train = np.arange(len(rows))
        self.adapters: dict[str, int] = {}  # that rows name -> the first row that does

    def __getitem__(self, index: int) -> dict:
        try:
            return illustrated.placed(forms.normalise(self._renamed(index), self.form, self.system), self.rows.path.parent)
        except (KeyError, TypeError, IndexError) as error:
            where = self.rows.where(index)
            raise ValueError(f"{where}: not a row of the form {self.form!r} ({type(error).__name__}: {error}); mend it") from error
        except ValueError as error:
            if str(error).startswith(str(self.rows.path)):
                raise
            raise ValueError(f"{self.rows.where(index)}: {error}") from error

    def check(self) -> None:
        """Looks at the rows (evenly spread ones of a very large file); the first bad one raises."""
        for index in np.unique(np.linspace(0, len(self.rows) - 1, min(CHECKED, len(self.rows))).astype(int)):
            self.adapters.setdefault(self.look(int(index)).get("adapter", ""), int(index))
        self.adapters.pop("", None)

    def look(self, index: int) -> dict:
        """A row, once it is sure that its pictures are there."""
        row = self[index]
        try:
            check_pictures(illustrated.pictures(row))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.rows.where(index)}: {error}") from error
        return row

    def hold_out(self, count: int, seed: int) -> list[dict]:
        """Takes `count` rows, chosen by the seed, away from training and returns them."""
        if count >= len(self.rows):
            raise ValueError(
                f"{self.rows.path}: held_out takes {count} of {len(self.rows)} rows, which leaves none to train on; hold out fewer"
            )
        chosen = np.sort(_rng(seed, "held out").permutation(len(self.rows))[:count])
        self.train = np.setdiff1d(self.train, chosen)
        return [self[int(index)] for index in chosen]

    def validate(self, share: float, seed: int) -> list[dict]:
        """Takes a share of the rows that are left, one at least, away from training and returns them."""
        count = max(1, round(share * len(self.train)))
        if count >= len(self.train):
            raise ValueError(
                f"{self.rows.path}: data.validation={share} takes {count} of {len(self.train)} rows, which leaves none to train on"
            )
        chosen = np.sort(_rng(seed, "validation").permutation(self.train)[:count])
        self.train = np.setdiff1d(self.train, chosen)
        return [self[int(index)] for index in chosen]

    def _readable(self, most: int) -> list[dict]:
        """The good ones of the first rows; where there are none, what is wrong with the first."""
        found = []
        for index in range(min(most, len(self.rows))):
            try:
                found.append(self._renamed(index))
            except ValueError:
                continue
        return found or [self._renamed(0)]

    def _renamed(self, index: int) -> dict:
        row = self.rows[index]
        try:
            return row if self.columns is None else forms.rename(row, self.columns)
        except ValueError as error:
            raise ValueError(f"{self.rows.where(index)}: {error}") from error


class Stream:
    """The training rows in their order, for ever. Iterate it; `state` and `restore` carry it over a restart."""

    def __init__(self, parts: Sequence[Part], shares: Sequence[float] | None, seed: int, shuffle: bool, held_out: list[dict]):
        self.parts, self.seed, self.shuffle, self.held_out = list(parts), seed, shuffle, held_out
        self.sizes = np.array([len(part.train) for part in parts])
        self.epoch_size = int(self.sizes.sum())
        self.quotas = self.sizes if shares is None else _quotas(shares, self.epoch_size, self.parts)
        self.position = 0
        self._epoch = -1

    @property
    def form(self) -> str:
        """The form of the rows, by the first file."""
        return self.parts[0].form

    @property
    def adapters(self) -> dict[str, str]:
        """The adapters that rows name, and where the first one does."""
        held_out = {row.get("adapter", ""): f"held-out row {i + 1}" for i, row in reversed([*enumerate(self.held_out)])}
        trained = {name: part.rows.where(index) for part in reversed(self.parts) for name, index in part.adapters.items()}
        return {name: where for name, where in (held_out | trained).items() if name}

    @property
    def epoch(self) -> float:
        """How many times the data has been gone through."""
        return self.position / self.epoch_size

    @cached_property
    def files(self) -> list[str]:
        """One line for each file: name, form, rows trained on."""
        return [f"{part.rows.path} ({part.form}, {len(part.train)} rows)" for part in self.parts]

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        sample = self.at(self.position)
        self.position += 1
        return sample

    def at(self, position: int) -> Sample:
        """The sample at a position, without moving there."""
        epoch, index = divmod(position, self.epoch_size)
        if epoch != self._epoch:
            self._order, self._epoch = self._order_of(epoch), epoch
        part, row = self._order[:, index]
        return Sample(self.parts[part][int(row)], epoch, index, self.seed)

    def state(self) -> dict:
        """What `restore` needs, as JSON."""
        return {"position": self.position, "seed": self.seed, "sizes": self.sizes.tolist(), "quotas": self.quotas.tolist()}

    def restore(self, state: dict) -> None:
        """Goes on where `state` was taken. Raises ValueError where the data is not the same any more."""
        mine = self.state()
        for key, word in (("seed", "seed"), ("sizes", "rows per file"), ("quotas", "draws per file")):
            if state[key] != mine[key]:
                raise ValueError(f"the data changed since the checkpoint: {word} {state[key]} then, {mine[key]} now; start a new run")
        self.position = int(state["position"])

    def _order_of(self, epoch: int) -> np.ndarray:
        """(2, epoch_size): file and row of each draw of an epoch."""
        turns = np.repeat(np.arange(len(self.parts)), self.quotas)
        if self.shuffle:
            turns = _rng(self.seed, "turns", epoch).permutation(turns)
        else:  # evenly interleaved where weights ask for it, one file after the other where none do
            ranks = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in self.quotas])
            turns = turns if (self.quotas == self.sizes).all() else turns[np.argsort(ranks, kind="stable")]
        rows = np.empty_like(turns)
        for number, quota in enumerate(self.quotas):
            rows[turns == number] = self._draws(number, epoch * quota, quota)
        return np.stack([turns, rows])

    def _draws(self, number: int, start: int, count: int) -> np.ndarray:
        """Rows of one file at its own draws start, start + 1, ...: permutations of all its rows, one after the other."""
        size, train = int(self.sizes[number]), self.parts[number].train
        rounds = range(start // size, (start + count - 1) // size + 1)
        whole = [_rng(self.seed, "rows", number, turn).permutation(train) if self.shuffle else train for turn in rounds]
        return np.concatenate(whole)[start - rounds[0] * size :][:count]


def open_stream(data: Data, seed: int) -> Stream:
    """Reads, checks and splits what `data` names. Raises FileNotFoundError or ValueError with file, line and the way out."""
    sources = data.sources
    parts = [_open(source, data) for source in sources]
    kinds = {part.form: str(part.rows.path) for part in parts}
    shapes = {shape(part[0]): str(part.rows.path) for part in parts}
    if len(shapes) > 1:
        told = ", ".join(f"{path} ({form})" for form, path in kinds.items())
        raise ValueError(f"these files hold different things and cannot be mixed: {told}; name data.form if one was taken for another")
    held_out = _hold_out(parts, data, seed)
    if data.validation is not None:
        held_out = [row for part in parts for row in part.validate(data.validation, seed)]
    weights = [source.weight for source in sources]
    return Stream(parts, None if weights[0] is None else [float(weight or 0) for weight in weights], seed, data.shuffle, held_out)


def shape(row: dict) -> frozenset[str]:
    """What a row holds beside what it may leave out."""
    return frozenset(row) - {"pair", "adapter"}


def _open(source: Source, data: Data) -> Part:
    numbered = data.columns is not None and all(isinstance(name, int) for name in data.columns.values())
    part = Part(read(source.path, data.form, header=not numbered), data)
    part.check()
    return part


def _hold_out(parts: list[Part], data: Data, seed: int) -> list[dict]:
    if isinstance(data.held_out, str):
        if any(Path(data.held_out).resolve() == part.rows.path.resolve() for part in parts):
            raise ValueError(f"data.held_out={data.held_out} is also trained on; give another file, or a share")
        part = _open(Source(data.held_out), data)
        if shape(part[0]) != shape(parts[0][0]):
            raise ValueError(
                f"data.held_out={data.held_out} is {part.form!r}, the training rows are {parts[0].form!r}; give rows of the same form"
            )
        return [part[i] for i in range(len(part.rows))]
    sizes = [len(part.rows) for part in parts]
    if isinstance(data.held_out, int):
        counts = _apportion(data.held_out, sizes)
    else:
        counts = [max(1, round(data.held_out * size)) if data.held_out and size > 1 else 0 for size in sizes]
    return [row for part, count in zip(parts, counts, strict=True) if count for row in part.hold_out(count, seed)]


def _quotas(shares: Sequence[float], draws: int, parts: Sequence[Part]) -> np.ndarray:
    quotas = np.array(_apportion(draws, shares))
    if (quotas == 0).any():
        path = parts[int(np.argmin(quotas))].rows.path
        raise ValueError(f"{path}: its weight is too small to be drawn once in {draws} samples; raise it or leave the file out")
    return quotas


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion (largest remainder)."""
    exact = np.array(weights, float) / sum(weights) * total
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[index] += 1
    return counts.tolist()


def _rng(seed: int, *names: str | int) -> np.random.Generator:
    key = hashlib.blake2b("/".join(map(str, (seed, *names))).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
