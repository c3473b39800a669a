"""counts.json says what the models themselves count."""

import pytest

from luthier.sources.counts import counted, kept
from luthier.sources.describe import presets


def test_every_preset_is_counted_and_nothing_else():
    assert kept().keys() == presets().keys(), "run python -m luthier.sources.counts"


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(presets()))
def test_the_kept_count_is_the_models_own(preset: str):
    assert kept()[preset] == counted(preset), "run python -m luthier.sources.counts"
