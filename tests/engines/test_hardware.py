from __future__ import annotations

import platform

import pytest

from triptych.engines import hardware


@pytest.fixture(autouse=True)
def fresh():
    hardware.instruction_set.cache_clear()
    yield
    hardware.instruction_set.cache_clear()


@pytest.mark.parametrize(
    ("flags", "name", "bfloat16"),
    [
        ("fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16", "amx_bf16", True),
        ("fpu sse2 avx2 avx512f avx512_vnni avx512_bf16", "avx512_bf16", True),
        ("fpu sse2 avx2 avx512f avx512_vnni", "avx512_vnni", False),
        ("fpu sse2 avx2 avx512f", "avx512", False),
        ("fpu sse2 avx avx2", "avx2", False),
        ("fpu sse2", "riscv64", False),
    ],
)
def test_the_widest_instructions_name_the_cpu(monkeypatch, tmp_path, flags, name, bfloat16):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n", encoding="utf-8")
    monkeypatch.setattr(hardware, "Path", lambda _: cpuinfo)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")

    assert hardware.instruction_set() == name
    assert hardware.has_bfloat16() is bfloat16


@pytest.mark.parametrize(
    ("flags", "float16"), [("avx512f avx512_bf16", False), ("avx512f avx512_fp16", True), ("amx_fp16", True)]
)
def test_few_cpus_multiply_in_float16(monkeypatch, tmp_path, flags, float16):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: fpu {flags}\n", encoding="utf-8")
    monkeypatch.setattr(hardware, "Path", lambda _: cpuinfo)
    assert hardware.has_float16() is float16


def test_without_cpuinfo_it_is_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "Path", lambda _: tmp_path / "missing")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert hardware.instruction_set() == "arm64"


def test_at_least_one_cpu_is_available():
    assert hardware.available_cpus() >= 1
