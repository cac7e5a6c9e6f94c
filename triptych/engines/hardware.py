"""What the CPU can do."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

# Best first: each implies what stands below it.
_INSTRUCTION_SETS = {
    "amx_bf16": "amx_bf16",
    "avx512_bf16": "avx512_bf16",
    "avx512_vnni": "avx512_vnni",
    "avx512f": "avx512",
    "avx_vnni": "avx_vnni",
    "avx2": "avx2",
}


@cache
def instruction_set() -> str:
    """The widest instructions of this CPU; kernels are chosen by it, so it decides bytes."""
    flags = _cpu_flags(Path("/proc/cpuinfo"))
    return next((name for flag, name in _INSTRUCTION_SETS.items() if flag in flags), platform.machine())


def has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16; where it does not, bfloat16 is slower than float32."""
    return instruction_set() in ("amx_bf16", "avx512_bf16")


def has_float16() -> bool:
    """Whether the CPU multiplies in float16."""
    return not _cpu_flags(Path("/proc/cpuinfo")).isdisjoint(("avx512_fp16", "amx_fp16"))


def available_cpus() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0))


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
