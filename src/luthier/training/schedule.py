"""Learning-rate schedules: pure functions of the step, giving the factor that the rate is multiplied with.

Step 0 is the first. With warm-up the factor rises from 0 as step / warmup. Linear and cosine as in transformers; cosine: Loshchilov and
Hutter 2017, arXiv:1608.03983, eq. 5, one period; WSD (warm-up, stable, decay): Hu et al. 2024, arXiv:2404.06395, section 4, the
end a cosine. Noam: Vaswani et al. 2017, arXiv:1706.03762, eq. 3, in units of its highest rate, width^-0.5 * warmup^-0.5.
"""

import math

from luthier.training.settings import Training


def factor(training: Training, step: int, steps: int) -> float:
    """What the rate is multiplied with in `step` of `steps`."""
    warmup = warmup_steps(training, steps)
    if training.schedule == "noam":
        return noam(step + 1, max(1, warmup))
    if step < warmup:
        return step / warmup
    if training.schedule == "linear":
        return linear(step - warmup, steps - warmup)
    if training.schedule == "cosine":
        return cosine(step - warmup, steps - warmup, training.floor)
    if training.schedule == "wsd":
        decay = round(training.decay * steps)
        return cosine(step - (steps - decay), decay, training.floor)
    return 1.0


def warmup_steps(training: Training, steps: int) -> int:
    """Below 1 the setting is a share of all steps, else a number of steps."""
    return round(training.warmup * steps) if training.warmup < 1 else round(training.warmup)


def noam(number: int, warmup: int) -> float:
    """min(n^-0.5, n * warmup^-1.5) of step number n = 1, 2, ..., times warmup^0.5: 1 where n is warmup."""
    return min((warmup / number) ** 0.5, number / warmup)


def linear(step: int, steps: int) -> float:
    """From 1 down to 0 after `steps`."""
    return max(0.0, (steps - step) / max(1, steps))


def cosine(step: int, steps: int, floor: float = 0.0) -> float:
    """From 1 down to `floor` along half a cosine; 1 before, `floor` after."""
    if step >= steps:
        return floor
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * max(0, step) / max(1, steps)))
