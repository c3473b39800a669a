"""Keys and values of the tokens a causal model has already read, so that each new token costs one step only.

One call of the model is `positions = cache.begin(rows, new, mask)`, then `cache.update(layer, k, v)` once in every layer.
Rows may be padded on the left or between turns: `keys` says which stored positions are real, and a token's position is the number
of real tokens before it in its row. Legend: B rows, G key heads, T new tokens, S stored tokens (the new ones included), K width of a head.
"""

import torch
from torch import Tensor


class Cache:
    """Grows by doubling, so that a token costs no copy of what is stored; `capacity` is room for so many tokens from the start."""

    def __init__(self, layers: int, capacity: int = 256) -> None:
        self.length = 0
        self.capacity = capacity
        self.stored: list[Tensor | None] = [None] * layers  # per layer (2, B, G, capacity, K): keys, then values
        self._real_BS: Tensor | None = None  # (B, length); None while every stored position is real
        # Of an encoder's text, for decoders that look at one: its last states and which are real, and each layer's keys and values of it.
        self.memory: tuple[Tensor, Tensor | None] | None = None
        self.crossed: dict[int, tuple[Tensor, Tensor]] = {}
        self.recalled: dict[int, Tensor] = {}  # per layer (B, M, D): the states that a recurrent model is trained with
        self.notes: dict[str, Tensor] = {}  # (B, ...) what a model keeps of each row from step to step

    @property
    def keys(self) -> Tensor | None:
        """(B, S) bool, True where a real token stands; None when all are real, so that no mask is needed."""
        return self._real_BS

    def begin(self, rows: int, new: int, mask_BT: Tensor | None = None) -> Tensor:
        """Make room for `new` tokens in each row and return their positions: (1, T), or (B, T) when some row holds padding.

        A padding token gets the position of the next real one in its row; nobody may look at it, so the value does not matter.
        """
        start, self.length = self.length, self.length + new
        if mask_BT is not None and mask_BT.all():
            mask_BT = None
        if mask_BT is None and self._real_BS is None:
            return torch.arange(start, self.length)[None]
        device = mask_BT.device if mask_BT is not None else self._real_BS.device  # type: ignore[union-attr]
        before_BS = self._real_BS if self._real_BS is not None else torch.ones(rows, start, dtype=torch.bool, device=device)
        new_BT = mask_BT.bool() if mask_BT is not None else torch.ones(rows, new, dtype=torch.bool, device=device)
        self._real_BS = torch.cat([before_BS, new_BT], dim=1)
        return before_BS.sum(1, keepdim=True) + new_BT.cumsum(1) - new_BT.long()

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; returns views of everything stored: two of (B, G, S, K)."""
        start = self.length - k_BGTK.shape[2]
        assert start >= 0, "cache.begin comes before cache.update"
        kv = self.room(layer, k_BGTK, start)
        kv[0, :, :, start : self.length] = k_BGTK
        kv[1, :, :, start : self.length] = v_BGTK
        return kv[0, :, :, : self.length], kv[1, :, :, : self.length]

    def room(self, layer: int, like_BGTK: Tensor, start: int) -> Tensor:
        """One layer's storage (2, B, G, capacity, K), grown so that `length` tokens fit; the first `start` are kept."""
        old = self.stored[layer]
        if old is not None and old.shape[3] >= self.length:
            return old
        rows, heads, _, width = like_BGTK.shape
        self.capacity = max(self.capacity, self.length if old is None else 2 * self.length)
        grown = like_BGTK.new_empty(2, rows, heads, self.capacity, width)
        if old is not None:
            grown[..., :start, :] = old[..., :start, :]
        self.stored[layer] = grown
        return grown

    def recall(self, layer: int, x_BTD: Tensor, most: int) -> Tensor:
        """What a layer was given, the last `most` tokens of before and then these, (B, M + T, D); no gradient goes into the former."""
        old = self.recalled.get(layer)
        whole = x_BTD if old is None else torch.cat([old, x_BTD], 1)
        self.recalled[layer] = whole[:, max(0, whole.shape[1] - most) :].detach()
        return whole

    def rows(self, index_B: Tensor) -> None:
        """Keep these rows in this order: beams choose their parents, finished rows leave, one prompt becomes many samples."""
        self.notes = {name: note.index_select(0, index_B) for name, note in self.notes.items()}
        for layer, old in enumerate(self.stored):
            if old is not None:
                grown = old.new_empty(2, len(index_B), *old.shape[2:])
                grown[..., : self.length, :] = old[..., : self.length, :].index_select(1, index_B)
                self.stored[layer] = grown
        if self._real_BS is not None:
            self._real_BS = self._real_BS.index_select(0, index_B)
        self.recalled = {layer: states.index_select(0, index_B) for layer, states in self.recalled.items()}
        if self.memory is not None:
            states, real = self.memory
            self.memory = states.index_select(0, index_B), None if real is None else real.index_select(0, index_B)
            self.crossed = {layer: (k.index_select(0, index_B), v.index_select(0, index_B)) for layer, (k, v) in self.crossed.items()}

    def cut(self, length: int) -> None:
        """Forget everything after the first `length` tokens: the next prompt shares only so much with the last one."""
        assert 0 <= length <= self.length, f"cannot cut a cache of {self.length} tokens to {length}"
        self.length = length
        if self._real_BS is not None:
            self._real_BS = self._real_BS[:, :length]
