"""What this process holds, and the most that it has held: on CUDA the devices' memory, else what is resident."""

import sys
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def known() -> bool:
    """Whether peaks can be begun anew."""
    return torch.cuda.is_available() or (STATUS.exists() and RESET.exists())


def held() -> int:
    """Bytes now; where a system does not tell, the most so far."""
    return sum(torch.cuda.memory_allocated(i) for i in devices()) if torch.cuda.is_available() else resident("VmRSS")


def peak() -> int:
    """The most bytes since `begin`, or so far."""
    return sum(torch.cuda.max_memory_allocated(i) for i in devices()) if torch.cuda.is_available() else resident("VmHWM")


def begin() -> None:
    if torch.cuda.is_available():
        for i in devices():
            torch.cuda.reset_peak_memory_stats(i)
    else:
        RESET.write_text("5")


def devices() -> range:
    return range(torch.cuda.device_count())


def resident(key: str) -> int:
    """VmRSS, now, or VmHWM, the most. Linux's getrusage is no measure of it: its peak counts that of the process that started this one, too."""
    if not STATUS.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024
