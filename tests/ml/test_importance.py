"""What matters is measured on the rows that the model was trained on, and rounding spares it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM

from studio.errors import UserError
from studio.ml.gguf.architectures import read_shape
from studio.ml.gguf.header import read_header
from studio.ml.gguf.importance import LEAST, MOST_TOKENS, OUTPUT_TOKENS, Importance, measure, sequences, write
from studio.ml.gguf.quantizing import quantize
from studio.ml.gguf.weights import Weights
from studio.ml.tokens import load_tokenizer

ROWS = [[1, 5, 9, 200, 13, 7], [1, 90, 91, 92], list(range(60))]


class Transformers:
    """The model as transformers runs it, with hooks: other code than the reference's."""

    def __init__(self, folder: Path):
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def forward(
        self,
        sequences: Sequence[list[int]],
        *,
        seen: Callable[[str, torch.Tensor], None] | None = None,
        keep: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[np.ndarray[Any, Any]]:
        def heard(name: str) -> Callable[..., None]:
            return lambda _module, inputs: seen(name, inputs[0][0]) if seen else None

        linears = [(name, layer) for name, layer in self.model.named_modules() if isinstance(layer, torch.nn.Linear)]
        for name, layer in linears:
            layer.register_forward_pre_hook(heard(f"{name}.weight"))
        for number, ids in enumerate(sequences):
            with torch.inference_mode():
                found = self.model(torch.tensor([ids]), logits_to_keep=keep[number] if keep else 0).logits[0]
            if progress:
                progress(number + 1, len(sequences))
            yield found.numpy()


@pytest.fixture(scope="module")
def measured(tiny_model: Path) -> Importance:
    return measure(Transformers(tiny_model), ROWS)


def test_a_column_counts_as_much_as_the_mean_square_of_what_comes_into_it(tiny_model: Path, measured: Importance) -> None:
    with Weights.of_model(tiny_model) as weights:
        words = weights.whole("model.embed_tokens.weight")[np.concatenate([np.array(ids) for ids in ROWS])]
        norm = weights.whole("model.layers.0.input_layernorm.weight")
    inputs = norm * words / np.sqrt((words**2).mean(axis=1, keepdims=True) + 1e-6)
    means = measured.means()
    first = "model.layers.0.self_attn.q_proj.weight"
    assert means[first] == pytest.approx((inputs**2).mean(axis=0), rel=1e-4)
    assert measured.counts[first] == 70
    for other in ("k_proj", "v_proj"):
        assert np.array_equal(means[first], means[first.replace("q_proj", other)])
    assert all(vector.dtype == np.float32 and (vector > 0).all() for vector in means.values())
    assert means["model.layers.1.mlp.down_proj.weight"].shape == (128,)


def test_the_output_layer_is_measured_on_the_last_tokens(measured: Importance) -> None:
    assert measured.counts["lm_head.weight"] == 6 + 4 + OUTPUT_TOKENS


def test_a_silent_column_counts_a_little_all_the_same() -> None:
    class Silent:
        def forward(self, sequences: Sequence[list[int]], **asked: Any) -> Iterator[Any]:
            asked["seen"]("some.weight", torch.tensor([[0.0, 2.0, 4.0, 0.0]]))
            asked["seen"]("none.weight", torch.zeros(3, 2))
            yield None

    found = measure(Silent(), ROWS).means()
    assert found["some.weight"] == pytest.approx([5 * LEAST, 4, 16, 5 * LEAST])
    assert found["none.weight"] == pytest.approx([1 / 3, 1 / 3])


def test_activations_that_are_no_numbers_are_told() -> None:
    class Broken:
        def forward(self, sequences: Sequence[list[int]], **asked: Any) -> Iterator[Any]:
            asked["seen"]("some.weight", torch.tensor([[1.0, float("nan")]]))
            yield None

    with pytest.raises(UserError, match=r"before some\.weight is not a number"):
        measure(Broken(), ROWS)


@pytest.mark.parametrize("kind", ["Q4_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_rounding_spares_what_matters(kind: str) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((8, 512)).astype(np.float32)
    matters = (random.standard_normal(512) ** 4 + 1e-3).astype(np.float32)

    def error(importance: Any) -> float:
        made = quantize(rows, kind, name="blk.0.ffn_up.weight", importance=importance)
        return float(((dequantize(made, GGMLQuantizationType[kind]) - rows) ** 2 * matters).sum())

    assert error(matters) < 0.95 * error(None)


def test_the_file_is_one_that_llama_quantize_reads(tiny_model: Path, measured: Importance, tmp_path: Path) -> None:
    shape = read_shape(tiny_model)
    with Weights.of_model(tiny_model) as weights:
        names = {stored: name for stored in weights.places if (name := shape.tensor_name(stored))}
    path = tmp_path / "importance.gguf"
    write(path, measured, names=names, dataset="Replies v3")

    header = read_header(path)
    assert header.get("general.type") == "imatrix" and header.get("imatrix.datasets") == ["Replies v3"]
    assert header.get("imatrix.chunk_count") == 3
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    assert len(tensors) == 2 * 7 * 2  # sums and counts of each matrix of both layers; the embedding is the output, and is left out
    assert not [name for name in tensors if not name.startswith("blk.")]
    sums, counts = tensors["blk.1.ffn_down.weight.in_sum2"], tensors["blk.1.ffn_down.weight.counts"]
    assert sums.shape == (1, 128) and counts.shape == (1, 1) and counts[0, 0] == 70
    assert np.array_equal(sums[0] / counts[0, 0], measured.means()["model.layers.1.mlp.down_proj.weight"])


def test_not_more_rows_are_looked_at_than_are_needed(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    row = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Paris. " * 400}]}
    found = sequences([row] * 300, tokenizer)
    assert {len(ids) for ids in found} == {512} and len(found) == MOST_TOKENS // 512
    assert len(sequences([{"text": "Paris"}] * 300, tokenizer)) == 256
    assert sequences([], tokenizer) == []
