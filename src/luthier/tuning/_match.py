"""Which modules a peft configuration means: its own matching rules, written again (peft 0.21, tuners_utils.check_target_module_exists)."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from luthier.tuning._names import suffixes


def targets(config: Mapping[str, Any], module: str) -> bool:
    """Whether target_modules, exclude_modules, layers_to_transform and layers_pattern choose this module."""
    excluded = config.get("exclude_modules") or []
    if (isinstance(excluded, str) and re.fullmatch(excluded, module)) or (not isinstance(excluded, str) and _ends(excluded, module)):
        return False
    if any(re.match(rf"(^|.*\.){saved}($|\..*)", module) for saved in config.get("modules_to_save") or []):
        return False
    wanted = config.get("target_modules") or []
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    if module in wanted:
        return True
    return _ends(wanted, module) and _in_layers(config, module)


def choose(wanted: set[str], everything: Iterable[str], config: dict[str, Any], whole: set[str]) -> dict[str, Any]:
    """target_modules, short where the short names mean exactly the wanted modules; layers_to_transform where that is what selects them.

    whole: those among them that stand outside the blocks, which are always named by their full path.
    """
    everything = list(everything)
    inner = wanted - whole
    layers = sorted({number for module in inner if (number := _layer(module)) is not None})
    for depth in range(3):
        short = sorted({list(suffixes(module))[min(depth, module.count("."))] for module in inner} | whole)
        for chosen in (None, layers):
            attempt = {"target_modules": short, "layers_to_transform": chosen}
            if {module for module in everything if targets(config | attempt, module)} == wanted:
                return attempt
    return {"target_modules": sorted(wanted), "layers_to_transform": None}


def pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value that rank_pattern or alpha_pattern holds for a module."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def patterns(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """The other way round: entries for the modules whose value is not the default, short where all modules of that end share it."""
    out: dict[str, Any] = {}
    for module, value in values.items():
        if value == default or pattern(out, module, default) == value:
            continue
        for end in suffixes(module):
            if all(other == value for name, other in values.items() if re.match(rf"(.*\.)?({end})$", name)):
                out[end] = value
                break
    return out


def _ends(names: Iterable[str], module: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _in_layers(config: Mapping[str, Any], module: str) -> bool:
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    named = config.get("layers_pattern") or []
    number = _layer(module, [named] if isinstance(named, str) else named)
    return number is not None and number in ([layers] if isinstance(layers, int) else layers)


def _layer(module: str, named: Iterable[str] = ()) -> int | None:
    """The first number in a path."""
    found = (
        [re.match(rf"(?:^|.*?\.){name}\.(?P<layer>\d+)\.", module) for name in named]
        if named
        else [re.match(r".*?\.[^.]*\.(?P<layer>\d+)\.", module)]
    )
    match = next((match for match in found if match), None)
    return None if match is None else int(match["layer"])
