"""The small operators of a training step, and a whole decoding step, compiled for this machine: core/native.cpp and core/decode.cpp, built
once where there is a C++ compiler.

torch runs a norm or a gated activation as five to fifteen passes over memory; here each is one, three to twelve times as fast on a CPU
(LOG.md). Callers ask `usable` and keep torch's operators for every other case: another device or dtype, no compiler, a compiling graph.
The library lies in the user's cache under a name that says source, compiler and processor. LUTHIER_NATIVE=0 turns it off.

N rows, D width, F hidden width, V vocabulary
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zlib
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# Sums may be reordered into vectors; infinities, NaN and denormals keep their meaning, which -ffast-math would take from the whole process.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros", "-freciprocal-math")
VECTORS = ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
SOURCES = [Path(__file__).with_name(name) for name in ("native.cpp", "decode.cpp", "native.h")]
P, I, F, C = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int
ARGUMENTS = {
    "rms_norm": (P, P, P, I, I, F, C),
    "rms_norm_backward": (P, P, P, P, I, I, F, C),
    "rms_norm_weight": (P, P, P, I, I, F, C),
    "swiglu": (P, I, P, I, P, I, I, C),
    "swiglu_backward": (P, I, P, I, P, P, I, I, C),
    "cross_entropy": (P, P, P, P, I, I, C, C),
    "softmax": (P, I, I, I, I, F, P, I, I, I, I, C),
    "softmax_backward": (P, P, I, I, F, P, I, I, I, I, C),
    "decode": (P, C),
    "rotate": (P, I, I, I, P, P, I, P, I, I, I, I, I, F, C),
}
_building = Lock()


def usable(*tensors: Tensor) -> bool:
    """Whether these can be given to the functions below: on a CPU, all float32 or all bfloat16, and the library is there."""
    first = tensors[0]
    if first.device.type != "cpu" or first.dtype not in NAMES or torch.compiler.is_compiling():
        return False
    return all(t.dtype == first.dtype and t.device.type == "cpu" for t in tensors) and library() is not None


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight; x of any leading shape, contiguous."""
    y = torch.empty_like(x_ND)
    _call("rms_norm", y, x_ND.data_ptr(), weight_D.data_ptr(), y.data_ptr(), x_ND.numel() // len(weight_D), len(weight_D), eps)
    return y


def rms_norm_backward(x_ND: Tensor, weight_D: Tensor, grad_ND: Tensor, eps: float) -> Tensor:
    """The gradient of x."""
    y, grad = torch.empty_like(x_ND), grad_ND.contiguous()
    rows = x_ND.numel() // len(weight_D)
    _call("rms_norm_backward", y, x_ND.data_ptr(), weight_D.data_ptr(), grad.data_ptr(), y.data_ptr(), rows, len(weight_D), eps)
    return y


def rms_norm_weight(x_ND: Tensor, weight_D: Tensor, grad_ND: Tensor, eps: float) -> Tensor:
    """The gradient of the weight."""
    y, grad = torch.empty_like(weight_D), grad_ND.contiguous()
    _call("rms_norm_weight", y, x_ND.data_ptr(), grad.data_ptr(), y.data_ptr(), x_ND.numel() // len(weight_D), len(weight_D), eps)
    return y


def swiglu(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """silu(gate) * up; of any leading shape, each may be columns of a wider tensor."""
    (gate, gate_row), (up, up_row), y = _rows(gate_NF), _rows(up_NF), gate_NF.new_empty(gate_NF.shape)
    _call("swiglu", y, gate.data_ptr(), gate_row, up.data_ptr(), up_row, y.data_ptr(), *gate.shape)
    return y


def swiglu_backward(gate_NF: Tensor, up_NF: Tensor, grad_NF: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up, side by side in one tensor."""
    (gate, gate_row), (up, up_row), grad = _rows(gate_NF), _rows(up_NF), grad_NF.contiguous()
    both = grad.new_empty(*grad.shape[:-1], 2 * grad.shape[-1])
    _call("swiglu_backward", both, gate.data_ptr(), gate_row, up.data_ptr(), up_row, grad.data_ptr(), both.data_ptr(), *gate.shape)
    left, right = both.chunk(2, -1)
    return left, right


def cross_entropy_(logits_NV: Tensor, label_N: Tensor, share_N: Tensor | None, wanted: bool) -> Tensor:
    """The losses, (N,) float32. Where the gradient is wanted, logits become share * (softmax - onehot); labels are int64."""
    loss, label = logits_NV.new_empty(len(label_N), dtype=torch.float32), label_N.contiguous()
    share = None if share_N is None else share_N.to(torch.float32).contiguous()
    pointer = None if share is None else share.data_ptr()
    _call("cross_entropy", logits_NV, logits_NV.data_ptr(), label.data_ptr(), pointer, loss.data_ptr(), *logits_NV.shape, int(wanted))
    return loss


def softmax_(scores_NS: Tensor, scale: float, period: int = 0, first: int = 0, bias_HTS: Tensor | None = None, prefix: int = 0) -> Tensor:
    """softmax(scale * scores + bias) in place; contiguous. With a period, row n sees the first `first + n % period + 1` columns, others
    become 0. bias: of the same dtype; N = H * T rows in this order, and the first `prefix` columns have none.
    """
    keys = scores_NS.shape[-1]
    rows = scores_NS.numel() // keys
    _call("softmax", scores_NS, scores_NS.data_ptr(), rows, keys, period, first, scale, *_places(bias_HTS, prefix))
    return scores_NS


def softmax_backward_(grad_NS: Tensor, share_NS: Tensor, scale: float, bias_HTS: Tensor | None = None, prefix: int = 0) -> Tensor:
    """The gradient of the scores, in place of that of their softmax `share`; both contiguous. The bias's is added to bias, float32."""
    keys = grad_NS.shape[-1]
    rows = grad_NS.numel() // keys
    _call("softmax_backward", grad_NS, grad_NS.data_ptr(), share_NS.data_ptr(), rows, keys, scale, *_places(bias_HTS, prefix))
    return grad_NS


def _places(bias_HTS: Tensor | None, prefix: int) -> tuple[int | None, int, int, int, int]:
    """Where a bias lies: its address, elements from head to head and from row to row, rows of a head, columns before its own."""
    if bias_HTS is None:
        return None, 0, 0, 1, 0
    assert bias_HTS.stride(2) == 1
    return bias_HTS.data_ptr(), bias_HTS.stride(0), bias_HTS.stride(1), bias_HTS.shape[1], prefix


def rotate(x_BHTK: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, sign: float) -> Tensor:
    """Pairs (i, i + R/2) of the first R dimensions turned by each position's angle times sign; contiguous. cos and sin (B or 1, T, R/2)."""
    y = torch.empty(x_BHTK.shape, dtype=x_BHTK.dtype)
    x = x_BHTK if x_BHTK.stride(-1) == 1 else x_BHTK.contiguous()
    cos, sin = cos_BTR.contiguous(), sin_BTR.contiguous()
    angles = 0 if len(cos) == 1 else cos.stride(0)
    strides, sizes = x.stride()[:3], (*x.shape, 2 * cos.shape[-1])
    _call("rotate", y, x.data_ptr(), *strides, cos.data_ptr(), sin.data_ptr(), angles, y.data_ptr(), *sizes, sign)
    return y


def decode(step: int, dtype: torch.dtype) -> None:
    """decode.cpp's step at this address, as core/step.py describes it."""
    found = library()
    assert found is not None
    getattr(found, f"decode_{NAMES[dtype]}")(step, torch.get_num_threads())


def crc32(data: memoryview, start: int = 0) -> int:
    """zlib.crc32, at the speed of memory where the processor multiplies without carries."""
    found = library()
    blocks = getattr(found, "crc32_blocks", None) if data.nbytes >= 1 << 16 else None
    if blocks is None:
        return zlib.crc32(data, start)
    blocks.argtypes, blocks.restype = (P, I, ctypes.c_uint32), ctypes.c_uint32
    whole = data.nbytes // 16 * 16
    address = np.frombuffer(data, dtype=np.uint8).ctypes.data
    return zlib.crc32(data[whole:], blocks(address, whole, start ^ 0xFFFFFFFF) ^ 0xFFFFFFFF)


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """(N, F) and the elements from row to row."""
    rows = x.flatten(0, -2)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    return rows, rows.stride(0)


def _call(name: str, like: Tensor, *arguments: object) -> None:
    found = library()
    assert found is not None
    getattr(found, f"{name}_{NAMES[like.dtype]}")(*arguments, torch.get_num_threads())


def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they are turned off or cannot be built."""
    with _building:
        return _library()


@cache
def _library() -> ctypes.CDLL | None:
    compiler = next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)
    if os.environ.get("LUTHIER_NATIVE") == "0" or sys.platform != "linux" or compiler is None:
        return None
    try:
        found = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None
    for name, kinds in ARGUMENTS.items():
        for dtype in NAMES.values():
            function = getattr(found, f"{name}_{dtype}")
            function.argtypes, function.restype = kinds, None
    return found


def _built(compiler: str) -> Path:
    """The library's file, compiled if it is not there; about ten seconds, once for each machine."""
    told = "\0".join(
        [*(source.read_text(encoding="utf-8") for source in SOURCES), compiler, *FLAGS, *VECTORS, _processor(), torch.__version__]
    )
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier"
    path = folder / f"native-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = Path(torch.__file__).parent / "lib" / "libgomp.so.1"  # one pool of threads with torch's operators
    threads = ["-fopenmp", *([str(own), f"-Wl,-rpath,{own.parent}"] if own.is_file() else [])]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / path.name
        subprocess.run(
            [compiler, *FLAGS, *VECTORS, *threads, "-shared", "-fPIC", *map(str, SOURCES[:2]), "-o", str(made)],
            check=True,
            capture_output=True,
            timeout=300,
        )
        os.replace(made, path)
    return path


def _processor() -> str:
    """What -march=native depends on."""
    try:
        flags = next(
            line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.machine()} {flags}"
