"""What models for pictures and texts share: a ViT and a Q-Former as parts of them, under BLIP-2's names."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.core.names import Name
from luthier.core.transformer import Sight
from luthier.lookup import lookup

VISION, QUERYING = "vision_model.", "qformer."
OUTSIDE = ("query_tokens", "embeddings.")  # of a Q-Former, and stored beside it


def part(name: str, settings: Mapping[str, Any]) -> Any:
    """The architecture of that file with these settings."""
    return lookup("models", name)(**settings)


def read_part(name: str, config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The settings of a part, out of its share of config.json."""
    return vars(lookup("models", name).from_config({**config, **more}))


def eyes(settings: Mapping[str, Any]) -> Any:
    """The ViT that looks for another model: BLIP-2's files hold it in EVA's form."""
    vit = part("vit", settings)
    if vit.kind != "blip_2_vision_model" or vit.pooler:
        raise ValueError(
            "the ViT of a model for pictures and texts has EVA's form; write vision: {kind: blip_2_vision_model, pooler: false, ...}"
        )
    return vit


def sight(vision: Mapping[str, Any], tokens: int = 0) -> Sight:
    """What a model with such a ViT asks of pictures."""
    eyes = part("vit", vision)
    return Sight(eyes.image, tokens, "vit" if eyes.kind == "vit" else "clip")


def prefixed(table: Mapping[str, Name], ours: str, theirs: str, outside: tuple[str, ...] = ()) -> dict[str, Name]:
    """A part's table of names inside a larger model; stored names that begin with `outside` stay as they are."""
    return {
        f"{ours}{mine}": name if name.path.startswith(outside or ("\0",)) else replace(name, path=f"{theirs}{name.path}")
        for mine, name in table.items()
    }
