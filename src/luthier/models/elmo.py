"""ELMo: a language model in each direction over words read by their characters. Peters et al. 2018, arXiv:1802.05365, section 3.

It learns by objective bilm; its states are what is used: the word's vector twice, then each layer's two directions, mixed by
tuning/features.py. N words, S of a sentence with its marks, L characters of a word, F filters, P width of one direction
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.attention import unpack_index
from luthier.core.cache import Cache
from luthier.core.heads import KINDS, LabelHead, LanguageHead
from luthier.core.names import Name, linear
from luthier.core.recurrence import Highway, ProjectedLSTM
from luthier.core.transformer import Net
from luthier.models._config import Reader

# Characters are the bytes of UTF-8, then these marks; all of them one more in a word's row, where 0 is no character at all.
SENTENCE, END, WORD, STOP, FILL = 256, 257, 258, 259, 260
FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))


@dataclass(frozen=True)
class ELMo:
    width: int = 512  # of one direction
    layers: int = 2
    hidden: int = 4096  # of the cells
    clip: float = 3.0  # of cells and outputs
    residual: bool = True  # from the second layer on, the input is added
    vectors: int = 16  # width of a character's vector
    filters: tuple[tuple[int, int], ...] = FILTERS  # (characters, how many)
    highways: int = 2
    letters: int = 50  # characters of a word, its marks counted
    act: str = "relu"
    vocab: int = 0  # words of the softmax that both directions share while they are pre-trained; 0: there is none

    types: ClassVar[tuple[str, ...]] = ("elmo",)
    verified: ClassVar[str] = "TensorFlow's activations of AllenNLP's fixture (30 sentences, carried state); lower layers by torch.nn.LSTM"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "elmo-original": {},
        "elmo-medium": {"width": 256, "hidden": 2048, "highways": 1},
        "elmo-small": {"width": 128, "hidden": 1024, "highways": 1},
    }

    def __post_init__(self) -> None:
        if self.letters < 3 or self.layers < 1 or not self.filters or max(size for size, _ in self.filters) > self.letters:
            raise ValueError(f"letters={self.letters}, layers={self.layers} and filters={self.filters} make no ELMo")

    def build(self) -> "BiLM":
        return BiLM(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ELMo":
        """Of options.json, as the weights were published with."""
        read, lstm, cnn = Reader(config), Reader(config.get("lstm", {})), Reader(config.get("char_cnn", {}))
        if cnn("n_characters") != 262 or read("char_cnn")["embedding"].keys() != {"dim"}:
            raise ValueError(f"options.json asks for {cnn('n_characters')} characters; ELMo as published in its final form has 262")
        if lstm("cell_clip") != lstm("proj_clip"):
            raise ValueError(
                f"options.json clips cells at {lstm('cell_clip')} and outputs at {lstm('proj_clip')}; here they are clipped alike"
            )
        if cnn("activation") not in ("relu", "tanh"):
            raise ValueError(f"options.json asks for activation={cnn('activation')!r}, which elmo here does not have; relu and tanh are")
        return cls(
            width=lstm("projection_dim"),
            layers=lstm("n_layers"),
            hidden=lstm("dim"),
            clip=float(lstm("cell_clip")),
            residual=bool(lstm("use_skip_connections")),
            vectors=cnn("embedding")["dim"],
            filters=tuple((size, count) for size, count in cnn("filters")),
            highways=cnn("n_highway"),
            letters=cnn("max_characters_per_token", 50),
            act=cnn("activation"),
            vocab=read("vocab_size", 0),
        )

    def fit(self, stored: set[str]) -> "ELMo":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return self if "softmax/W" in stored else replace(self, vocab=0)

    def saved(self) -> "ELMo":
        return self

    def to_config(self) -> dict[str, Any]:
        return {
            "architectures": ["ELMo"],
            "model_type": "elmo",
            "vocab_size": self.vocab,
            "lstm": {
                "projection_dim": self.width, "n_layers": self.layers, "dim": self.hidden, "cell_clip": self.clip, "proj_clip": self.clip,
                "use_skip_connections": self.residual,
            },
            "char_cnn": {
                "embedding": {"dim": self.vectors}, "filters": [list(pair) for pair in self.filters], "n_highway": self.highways,
                "n_characters": 262, "max_characters_per_token": self.letters, "activation": self.act,
            },
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        """Matrices are stored (in, out), filters (characters, vector, filter)."""
        table = {"embed.characters.weight": Name("char_embed")}
        for i in range(len(self.filters)):
            table |= {f"embed.filters.{i}.weight": Name(f"CNN/W_cnn_{i}", True), f"embed.filters.{i}.bias": Name(f"CNN/b_cnn_{i}")}
        for i in range(self.highways):
            for part in ("transform", "carry"):
                table[f"embed.highways.{i}.{part}.weight"] = Name(f"CNN_high_{i}/W_{part}", True)
                table[f"embed.highways.{i}.{part}.bias"] = Name(f"CNN_high_{i}/b_{part}")
        table |= {"embed.project.weight": Name("CNN_proj/W_proj", True), "embed.project.bias": Name("CNN_proj/b_proj")}
        for direction in range(2):
            for i in range(self.layers):
                ours, cell = f"blocks.{i}.{direction}.", f"RNN_{direction}/RNN/MultiRNNCell/Cell{i}/LSTMCell/"
                table |= {f"{ours}gates.weight": Name(f"{cell}W_0", True), f"{ours}gates.bias": Name(f"{cell}B")}
                table[f"{ours}project.weight"] = Name(f"{cell}W_P_0", True)
        if "lm" in heads:
            table |= {"heads.lm.out.weight": Name("softmax/W"), "heads.lm.out.bias": Name("softmax/b")}
        for kind in heads.keys() & KINDS.keys():
            table |= linear(f"heads.{kind}.out", "qa_outputs" if kind == "spans" else "classifier", True)
        return table

    def aliases(self, name: str) -> str | None:
        return None if (name.startswith("softmax") and not self.vocab) or re.fullmatch("(train|global)_.*", name) else name


class CharacterReader(nn.Module):
    """(N, L) characters to (N, P): filters over the characters, the strongest place of each, highways, a projection."""

    def __init__(self, arch: ELMo):
        super().__init__()
        self.characters = nn.Embedding(261, arch.vectors)
        self.filters = nn.ModuleList(nn.Conv1d(arch.vectors, count, size) for size, count in arch.filters)
        total = sum(count for _, count in arch.filters)
        self.highways = nn.ModuleList(Highway(total) for _ in range(arch.highways))
        self.project = nn.Linear(total, arch.width)
        self.act = {"relu": torch.relu, "tanh": torch.tanh}[arch.act]

    def forward(self, letter_NL: Tensor) -> Tensor:
        x_NLE = self.characters((letter_NL - 1).clamp(min=0)) * (letter_NL > 0)[..., None]
        x_NEL = x_NLE.transpose(1, 2)
        x = torch.cat([self.act(conv(x_NEL).amax(-1)) for conv in self.filters], -1)
        for highway in self.highways:
            x = highway(x)
        return self.project(x)


class BiLM(Net):
    """Reads characters, ids (B, T, L), or numbers of words that `learn_words` has been told, ids (B, T).

    blocks: for each layer an LSTM forwards and one backwards, which meet only in the states. The marks of a sentence's beginning and end
    are put around every row and taken away again.
    """

    spelling: Tensor
    directions, spells = 2, True

    def __init__(self, arch: ELMo):
        super().__init__()
        self.config, self.width, self.causal, self.pool = arch, 2 * arch.width, False, "first"
        self.embed = CharacterReader(arch)
        self.blocks = nn.ModuleList(
            nn.ModuleList(ProjectedLSTM(arch.width, arch.hidden, arch.width, arch.clip, bool(direction)) for direction in range(2))
            for _ in range(arch.layers)
        )
        self.heads = nn.ModuleDict({"lm": LanguageHead(nn.Linear(arch.width, arch.vocab))} if arch.vocab else {})
        self.recompute = False
        self.register_buffer("spelling", torch.zeros(0, arch.letters, dtype=torch.long))

    @property
    def vocab(self) -> int:  # type: ignore[override]
        return len(self.spelling)

    def learn_words(self, words: Sequence[str]) -> None:
        """From now on id i is the i-th of these words."""
        self.spelling = torch.tensor([self.spell(word) for word in words], device=self.spelling.device).view(-1, self.config.letters)

    def spell(self, word: str) -> list[int]:
        """The row of a word: its bytes between two marks, cut to the length there is."""
        return self._row(list(word.encode("utf-8")[: self.config.letters - 2]))

    def hidden(self, ids: Tensor, mask: Tensor | None = None, **inputs: Any) -> Tensor:  # type: ignore[override]
        return self.states(ids, mask, **inputs)[-1]

    def states(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        cache: Cache | None = None,
        types: Tensor | None = None,
        **others: Any,
    ) -> list[Tensor]:
        """The words' vectors (twice over) and each layer's states, layers + 1 tensors (B, T, 2P).

        cache: rows go on where those of the last call ended, in both directions, as the model was trained. There are no segments: types
        change nothing.
        """
        if refused := [name for name, value in others.items() if value is not None]:
            raise ValueError(f"ELMo reads words in a row, so it takes no {' and no '.join(refused)}")
        letters = self._letters(ids)
        if lengths is not None:
            place_RT = unpack_index(lengths, ids.device)
            rows = self.states(letters[0][place_RT.clamp(min=0)], place_RT >= 0, cache=cache)
            return [state[place_RT >= 0][None] for state in rows]
        real = torch.ones(letters.shape[:2], dtype=torch.bool, device=ids.device) if mask is None else mask.bool()
        framed, seen, at = self._framed(letters, real)
        x_BSP = self.embed(framed.flatten(0, 1)).view(*framed.shape[:2], -1)
        found = [torch.cat([x_BSP, x_BSP], -1)]
        pair = [x_BSP, x_BSP]
        for i, directions in enumerate(self.blocks):
            for d, lstm in enumerate(directions):  # type: ignore[arg-type]
                y = self._run(lstm, pair[d], seen, cache, 2 * i + d)
                pair[d] = y + pair[d] if i and self.config.residual else y
            found.append(torch.cat(pair, -1))
        return [state.gather(1, at[..., None].expand(-1, -1, state.shape[-1])) * real[..., None] for state in found]

    def add_head(self, kind: str, labels: int) -> None:
        if kind not in KINDS:
            raise ValueError(f"no head called {kind!r}; there are {', '.join(KINDS)}")
        parameter = self.embed.project.weight
        self.heads[kind] = LabelHead(self.width, labels).to(parameter.device, parameter.dtype)

    def _letters(self, ids: Tensor) -> Tensor:
        """(B, T, L) characters."""
        if ids.dim() == 3:
            return ids
        if not len(self.spelling):
            raise ValueError("ELMo reads characters, and was not told what words these ids are: net.learn_words([...]) first")
        return self.spelling[ids]

    def _framed(self, letters: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sentences between their marks, moved to the left (B, S, L); which places are real (B, S); where each word now stands (B, T)."""
        rows, words = real.shape
        at_BT = (real.cumsum(1) - 1).clamp(min=0) + 1
        framed = letters.new_zeros(rows, words + 2, letters.shape[-1])
        count_B = real.sum(1)
        row = torch.arange(rows, device=letters.device)[:, None].expand_as(at_BT)
        framed[row[real], at_BT[real]] = letters[real]
        framed[:, 0] = torch.tensor(self._row([SENTENCE]), device=letters.device)
        framed[torch.arange(rows, device=letters.device), count_B + 1] = torch.tensor(self._row([END]), device=letters.device)
        return framed, torch.arange(words + 2, device=letters.device)[None] < count_B[:, None] + 2, at_BT

    def _row(self, inside: list[int]) -> list[int]:
        row = [WORD, *inside, STOP]
        return [letter + 1 for letter in row + [FILL] * (self.config.letters - len(row))]

    def _run(self, lstm: ProjectedLSTM, x: Tensor, seen: Tensor, cache: Cache | None, place: int) -> Tensor:
        if cache is None:
            return lstm(x, seen)[0]
        before = cache.recalled.get(place)
        state = None if before is None else before.split([lstm.project.out_features, lstm.cell], -1)
        y, after = lstm(x, seen, state)
        cache.recalled[place] = torch.cat(after, -1).detach()
        return y
