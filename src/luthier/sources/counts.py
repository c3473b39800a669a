"""How many parameters each preset has: computed on the meta device, kept in counts.json, so that `luthier list` shows them without torch.

`python -m luthier.sources.counts` writes the file anew; a test compares it with the models.
"""

import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("counts.json")


@cache
def kept() -> dict[str, int]:
    """Preset -> parameters, as they were last computed."""
    return json.loads(FILE.read_text())


def counted(preset: str) -> int:
    """Parameters of a preset, from the model itself; shared tensors count once."""
    from luthier.sources.describe import describe

    return describe(preset)["parameters"]


if __name__ == "__main__":
    from luthier.sources.describe import presets

    FILE.write_text(json.dumps({preset: counted(preset) for preset in presets()}, indent=1) + "\n")
