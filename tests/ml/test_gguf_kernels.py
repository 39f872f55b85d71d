"""Every variant of the kernels gives llama.cpp's bytes, and those of numpy; a library that does not is not used."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from studio.ml.gguf import fallback, kernels
from studio.ml.gguf.kernels import KINDS, NONE, WEIGHED, Array

ROOT = Path(kernels.__file__).resolve().parents[3]
BLOCKS = 7 * 3
"""An odd number of blocks of 256 in each row, and of rows: no variant's vectors come out even."""


def gauss(seed: int = 0, size: float = 0.02) -> Array:
    return (np.random.default_rng(seed).standard_normal((3, BLOCKS * 256)) * size).astype(np.float32)


def with_zeros(length: int) -> Array:
    rows = gauss()
    rows.reshape(-1, length)[::3] = 0
    return rows


def any_bits() -> Array:
    bits = np.random.default_rng(0).integers(0, 2**32, gauss().shape, dtype=np.uint32)
    return np.where(np.isfinite(bits.view(np.float32)), bits.view(np.float32), np.float32(0))


def almost_alike() -> Array:
    return np.where(np.random.default_rng(0).random(gauss().shape) < 0.1, -1, np.nextafter(np.float32(-1), np.float32(-2))).astype(
        np.float32
    )


WEIGHTS = {
    "gauss": gauss(),
    "student-t3": np.random.default_rng(0).standard_t(3, gauss().shape).astype(np.float32),
    "bf16": kernels.widen_bf16(kernels.narrow_bf16(gauss(), variant=NONE), variant=NONE),
    "zeros": gauss() * 0,
    "zeros between": np.where(np.arange(BLOCKS * 256) % 2, gauss(), np.float32(0)),
    "sub-blocks of zeros": with_zeros(16),
    "blocks of zeros": with_zeros(256),
    "all positive": np.abs(gauss()),
    "all negative": -np.abs(gauss()),
    "constant": np.full_like(gauss(), 0.3),
    "constant and negative": np.full_like(gauss(), -0.3),
    "whole numbers": np.round(gauss(size=2)),
    "far from zero": gauss(size=1e-6) - np.float32(1),
    "almost alike": almost_alike(),
    "outliers": np.where(np.arange(BLOCKS * 256) % 97, gauss(), np.float32(1000)),
    "negative outliers": np.where(np.arange(BLOCKS * 256) % 32, gauss(size=1e-3) - np.float32(1), np.float32(-1000)),
    "huge": gauss(size=1e37),
    "tiny": gauss(size=1e-15),
    "tinier": gauss(size=1e-30),
    "denormal": gauss(size=1e-39),
    "any bits": any_bits(),
}
ORDINARY = ("gauss", "student-t3", "bf16", "blocks of zeros", "constant", "tiny")

each_variant = pytest.mark.parametrize("variant", [*kernels.variants(), NONE])
MEASURED = np.abs(gauss(1, size=1)[0])
IMPORTANCES = {
    "measured": MEASURED,
    "some zero": np.where(np.arange(len(MEASURED)) % 3, MEASURED, np.float32(0)),
    "tiny": MEASURED * np.float32(1e-30),
}


def differing(kind: str, variant: str, importance: Array | None) -> list[str]:
    """Names of the weights that a variant writes otherwise than llama.cpp: whole, a single block of each row, and an odd number of them."""
    wrong = []
    for name, rows in WEIGHTS.items():
        rows = np.clip(rows, -65_000, 65_000) if kind == "F16" else rows
        for piece in (rows, rows[:, :256], rows[:1, : 5 * 256]):
            columns = None if importance is None else importance[: piece.shape[1]]
            expected = fallback.quantize(np.ascontiguousarray(piece), kind, columns)
            if not np.array_equal(kernels.quantize(piece, kind, columns, variant=variant), expected):
                wrong.append(name)
    return wrong


@each_variant
@pytest.mark.parametrize("kind", KINDS)
def test_a_type_has_llama_cpps_bytes(kind: str, variant: str) -> None:
    assert differing(kind, variant, None) == []


@each_variant
@pytest.mark.parametrize("importance", list(IMPORTANCES))
@pytest.mark.parametrize("kind", WEIGHED)
def test_a_type_has_llama_cpps_bytes_with_an_importance(kind: str, importance: str, variant: str) -> None:
    assert differing(kind, variant, IMPORTANCES[importance]) == []


@each_variant
def test_threads_do_not_change_the_bytes(variant: str) -> None:
    rows = [gauss(seed) for seed in range(8)]
    alone = [kernels.quantize(row, "Q4_K", variant=variant).tobytes() for row in rows]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda row: kernels.quantize(row, "Q4_K", variant=variant).tobytes(), rows)) == alone


@each_variant
@pytest.mark.parametrize("kind", [*KINDS, "F32", "IQ4_NL"])
def test_what_is_no_number_is_refused(kind: str, variant: str) -> None:
    for value in (np.nan, np.inf, -np.inf):
        rows = gauss()
        rows[2, -1] = value
        with pytest.raises(kernels.Unfit) as refusal:
            kernels.quantize(rows, kind, variant=variant)
        assert not np.isfinite(refusal.value.largest)


@each_variant
def test_what_a_type_cannot_hold_is_refused(variant: str) -> None:
    rows = gauss()
    rows[1, 7] = -65_520
    kernels.quantize(rows, "BF16", below=65_521, variant=variant)
    with pytest.raises(kernels.Unfit, match="65520"):
        kernels.quantize(rows, "F16", below=65_520, variant=variant)


@each_variant
def test_an_importance_of_another_model_is_refused(variant: str) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        kernels.quantize(gauss(), "Q4_K", gauss()[0, :-1], variant=variant)


@each_variant
@pytest.mark.parametrize("rank", [1, 8, 65])
@pytest.mark.parametrize(("count", "columns"), [(1, 1), (5, 7), (3, 100), (18, 576)])
def test_a_change_is_added_in_the_order_that_is_written_down(count: int, columns: int, rank: int, variant: str) -> None:
    generator = np.random.default_rng(rank)
    rows, b, a = (generator.standard_normal(shape).astype(np.float32) for shape in ((count, columns), (count, rank), (rank, columns)))
    total = np.zeros_like(rows)
    for k in range(rank):
        total = total + b[:, k, None] * a[k]
    expected = rows + np.float32(0.7) * total
    kernels.add_product(rows, b, a, 0.7, variant=variant)
    assert rows.tobytes() == expected.tobytes()


def test_a_change_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        kernels.add_product(gauss(), gauss()[:, :2], gauss()[:2, :-1], 1)


@each_variant
@pytest.mark.parametrize("columns", [1, 7, 16, 33, 576, 1000])
def test_lengths_of_rows_are_the_same_bytes_everywhere(columns: int, variant: str) -> None:
    rows = gauss()[:, :columns]
    lengths = kernels.row_lengths(rows, variant=variant)
    assert lengths.tobytes() == fallback.row_lengths(rows).tobytes()
    assert lengths == pytest.approx(np.linalg.norm(rows.astype(np.float64), axis=1), rel=1e-6)


@each_variant
def test_numbers_are_narrowed_to_the_nearest(variant: str) -> None:
    for name, rows in WEIGHTS.items():
        values = rows[:, :-5]
        assert kernels.narrow_f16(values, variant=variant).tobytes() == kernels.narrow_f16(values, variant=NONE).tobytes(), name
        assert kernels.narrow_bf16(values, variant=variant).tobytes() == kernels.narrow_bf16(values, variant=NONE).tobytes(), name
        assert kernels.largest(values, variant=variant) == np.abs(values).max(), name


@each_variant
def test_every_half_is_widened(variant: str) -> None:
    stored = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    half, brain = stored.view(np.float16), (stored.astype(np.uint32) << 16).view(np.float32)
    numbers = ~np.isnan(half)
    assert np.array_equal(kernels.widen_f16(half, variant=variant)[numbers], half[numbers].astype(np.float32))
    assert kernels.widen_bf16(stored, variant=variant).tobytes() == brain.tobytes()
    out = np.empty(len(stored), np.float32)
    assert kernels.widen_f16(half[:100], out=out[:100], variant=variant).base is out
    with pytest.raises(ValueError, match="cannot be written"):
        kernels.widen_f16(half, out=out[:-1], variant=variant)


@each_variant
def test_a_processor_that_was_told_to_skip_denormals_is_told_otherwise(variant: str) -> None:
    """torch.set_flush_denormal does so, for a whole thread."""
    import torch

    rows, expected = gauss(size=1e-39), fallback.quantize(gauss(size=1e-39), "Q6_K", None)
    torch.set_flush_denormal(variant != NONE)  # ggml itself, and numpy, do as the thread was told
    try:
        assert np.array_equal(kernels.quantize(rows, "Q6_K", variant=variant), expected)
    finally:
        torch.set_flush_denormal(False)


def test_the_known_answer_is_the_fallbacks() -> None:
    assert kernels._answer(NONE) == kernels.ANSWER


def test_a_library_that_answers_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kernels, "ANSWER", hashlib.sha256(b"another").hexdigest())
    fresh = kernels.variants.__wrapped__()
    assert fresh == ()
    assert ("answer wrongly" in caplog.text) == bool(kernels.variants())


def test_a_library_that_cannot_be_loaded_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"\x7fELF, but cut off")
    monkeypatch.setattr(kernels, "FILE", broken)
    assert kernels._library.__wrapped__() is None
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize("choice", [*kernels.variants(), NONE])
def test_the_environment_chooses_the_variant(choice: str) -> None:
    script = "from studio.ml.gguf import kernels; print(kernels.used())"
    environment = os.environ | {kernels.CHOICE: choice}
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == choice.replace(NONE, "")


def test_without_a_compiler_the_studio_is_installed_all_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    environment = {name: value for name, value in os.environ.items() if name != "CXX"} | {"PATH": str(tmp_path)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "There is no C++ compiler" in answer.stdout + answer.stderr
    assert not list(tmp_path.rglob("kernels.so"))
