"""Parameters that several members of a composition train: one and the same for all of them."""

from collections.abc import Iterable, Sequence

from torch import nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.around import Around, Own
from luthier.anatomy.compose import adds
from luthier.tuning._attached import Attached
from luthier.tuning._common import task_sites
from luthier.tuning._lowrank import Decomposed
from luthier.tuning._own import NewRows
from luthier.tuning._stored import parts

ADDED = "added tokens"


def share(anatomy: Anatomy, stacks: Sequence[Sequence[str]], names: Sequence[str], members: Iterable[Attached]) -> None:
    """Heads and added tokens are one for all these adapters; other parameters for those of one stack.

    ValueError where two train unlike parts of one parameter, or where dora stands around a weight that another changes.
    """
    heads = {site.path for site in task_sites(anatomy)}
    same: dict[int, nn.Parameter] = {}
    for path, around in anatomy.arounds():
        for group in (names,) if path in heads else stacks:
            _one_for_all(path, around, group, same)
        _one_for_all(path, around, names, same, added=True)
        for group in stacks:
            _refuse_decomposed(path, around, group)
    for member in members:
        member.parameters = {name: same.get(id(value), value) for name, value in member.parameters.items()}


def _one_for_all(path: str, around: Around, names: Sequence[str], same: dict[int, nn.Parameter], added: bool = False) -> None:
    """The first member's parameter in place of the others' for the same part. ValueError where they cover unlike parts of one parameter."""
    first: dict[str, dict[str | None, tuple[str, nn.Parameter]]] = {}
    for name in names:
        for role, _, part in parts(around, name):
            if added and not isinstance(part, NewRows):
                continue
            for parameter, value in _owned(part):
                known = first.setdefault(parameter, {})
                cover = ADDED if isinstance(part, NewRows) else role
                unlike = [other for other in known if other != cover and {other, cover} & {None, ADDED}]  # two roles do not meet
                if unlike:
                    raise ValueError(
                        f"{known[unlike[0]][0]} and {name} train different parts of {path}.{parameter}: leave it out of one of them (roles, norms, also_train)"
                    )
                if cover not in known:
                    known[cover] = name, value
                elif known[cover][1] is not value:
                    same[id(value)] = known[cover][1]
                    _give(part, parameter, known[cover][1])


def _owned(part: nn.Module) -> list[tuple[str, nn.Parameter]]:
    if isinstance(part, NewRows):
        return [("weight", part.rows_KD)]
    return list(part.own.items()) if isinstance(part, Own) else []  # type: ignore[arg-type]


def _give(part: nn.Module, parameter: str, value: nn.Parameter) -> None:
    if isinstance(part, Own):
        part.own[parameter] = value
    elif isinstance(part, NewRows):
        part.rows_KD = value


def _refuse_decomposed(path: str, around: Around, names: Sequence[str]) -> None:
    """DoRA takes the norm of the base's own weight."""
    here = [(name, part, role) for name in names for role, _, part in parts(around, name) if adds(part)]
    for i, (name, part, role) in enumerate(here):
        others = here[:i] + [each for each in here[i + 1 :] if isinstance(each[1], Own) and "weight" in each[1].own]
        others = [each for each in others if each[2] == role or None in (each[2], role)]  # two roles of one projection do not meet
        if isinstance(part, Decomposed) and others:
            raise ValueError(
                f"{path}: {name} (dora) takes the norm of the model's own weight, which {others[0][0]} changes: let dora stand first, or leave "
                "the role out of one"
            )
