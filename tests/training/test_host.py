"""What a worker tells about its machine, with torch and without."""

from pathlib import Path

import pytest

from studio.worker.host import (
    cpu_count,
    cpu_gflops,
    cpu_has_bf16,
    gpu_gflops,
    host_facts,
    memory_size,
    parse_gpus,
    torch_gflops,
    torch_traffic,
    training_environment,
)


def test_the_facts_of_this_machine_are_plausible():
    host = host_facts("slot-1", with_gpus=False)
    assert host.name == "slot-1" and host.cpus >= 1 and host.memory > 1 << 28
    assert host.gflops > 0.1 and host.traffic >= 0 and "pip" not in host.packages


def test_a_control_group_bounds_processors_and_memory(tmp_path: Path):
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("1000000000\n")
    assert cpu_count(tmp_path) == 1
    assert memory_size(tmp_path) == 1_000_000_000


def test_a_control_group_without_limits_bounds_nothing(tmp_path: Path):
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cpu_count(tmp_path) == cpu_count(tmp_path / "none")
    assert memory_size(tmp_path) == memory_size(tmp_path / "none") > 1 << 28


def test_an_older_control_group_bounds_memory_too(tmp_path: Path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000000000")
    assert memory_size(tmp_path) == 2_000_000_000


def test_bf16_is_told_from_the_processors_flags(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n")
    assert cpu_has_bf16(cpuinfo)
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu avx2\n")
    assert not cpu_has_bf16(cpuinfo)
    assert not cpu_has_bf16(tmp_path / "none")


def test_graphics_cards_are_read_and_strange_lines_passed_over():
    (gpu, capability), *rest = parse_gpus("NVIDIA H100 80GB HBM3, 81559, 9.0\nOdd card, [N/A], [N/A]\n\n")
    assert (gpu.name, gpu.memory, capability) == ("NVIDIA H100 80GB HBM3", 81559 << 20, 9.0) and not rest
    assert gpu_gflops(gpu.name) > gpu_gflops("Some other card")


def test_the_speed_of_matrices_is_measured_without_torch():
    assert cpu_gflops(size=256, seconds=0.02) > 0


@pytest.mark.torch
def test_the_speed_of_matrices_and_of_small_operations_is_measured():
    assert host_facts(with_gpus=False).traffic > 1e6
    assert torch_gflops(bf16=False, size=256, seconds=0.02) > 0
    assert torch_traffic(bf16=True, tokens=32, hidden=48, seconds=0.02) > 1e6


def test_a_workers_environment_keeps_threads_from_spinning_for_long():
    environment = training_environment()
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE" and 0 < int(environment["GOMP_SPINCOUNT"]) < 100_000
