"""What a build must not differ from: the model in transformers with PEFT's own adapter code, in float32, in the memory that there is.

Nothing here is shared with the code that merges.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studio.ml.gguf import architectures
from studio.ml.gguf.layerwise import Layerwise, base_name, logits, mark
from studio.ml.gguf.lora import read_adapter
from studio.ml.gguf.needs import memory_of_model
from studio.ml.gguf.weights import Array, Weights
from studio.training.job import Job

Seen = Callable[[str, Tensor], None]
Progress = Callable[[int, int], None]


class Reference:
    """The model in the folder `base`, with an adapter if there is one, on the CPU. Use it in a `with` block.

    `memory` is in bytes. Where the parameters fit in float32 they are held, else they are read layer by layer, once for each `forward`;
    then it takes memory for one layer and for its output layer, one after the other: 1.3 GB in all were measured for Llama 2 7B's shape.
    Raises UserError for a base that no GGUF is built from, and for an adapter that `read_adapter` refuses: PEFT sees no other.
    """

    def __init__(self, base: Path, adapter: Path | None, *, job: Job, memory: int):
        self._job = job
        self._weights = Weights.of_model(base)
        try:
            tied = architectures.read_shape(base).tied
            rows = _rows(adapter, self._weights, tied=tied) if adapter else None
            self._layerwise = None
            if not fits(self._weights, memory):
                job.note("The model is larger than the memory at hand, so it is read layer by layer. This takes longer.")
                self._layerwise = Layerwise(base, adapter, weights=self._weights, rows=rows)
            self._model: Any = self._layerwise.model if self._layerwise else _held(base, adapter, rows)
        except BaseException:
            self.close()
            raise

    @property
    def streamed(self) -> bool:
        """True where the weights are read from disk in each pass."""
        return self._layerwise is not None

    def __enter__(self) -> "Reference":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._weights.close()

    def forward(
        self,
        sequences: Sequence[list[int]],
        *,
        seen: Seen | None = None,
        keep: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Array]:
        """The logits of each sequence in turn, shape (tokens, vocabulary), float32.

        `seen(name, inputs)` is called for every linear layer with what goes into it, shape (tokens, columns), and the name of its weight
        in the base. `keep` says of how many of its last tokens each sequence's logits are wanted; of all without. `progress(done, total)`
        counts steps. Raises Stopped once a stop was asked for.
        """
        kept = [len(ids) for ids in sequences] if keep is None else keep

        def step(done: int, total: int) -> None:
            self._job.raise_if_stopped()
            if progress is not None:
                progress(done, total)

        with _watched(self._model, seen):
            if self._layerwise:
                yield from self._layerwise.forward(sequences, keep=kept, step=step)
                return
            for number, (ids, last) in enumerate(zip(sequences, kept, strict=True)):
                step(number, len(sequences))
                yield logits(self._model, last, input_ids=torch.tensor([ids]))


def fits(weights: Weights, memory: int) -> bool:
    """True where a forward pass in float32 keeps within `memory` bytes."""
    return memory_of_model(weights) <= memory


def _rows(adapter: Path, weights: Weights, *, tied: bool) -> int | None:
    with read_adapter(adapter, weights, tied=tied) as read:
        return read.rows


def _held(base: Path, adapter: Path | None, rows: int | None) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    mark(model)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, is_trainable=False, torch_device="cpu", use_safetensors=True).get_base_model()
    return model.eval()


@contextmanager
def _watched(model: nn.Module, seen: Seen | None) -> Iterator[None]:
    """Tells `seen` of what goes into linear layers inside the block."""
    if seen is None:
        yield
        return

    def tell(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen(f"{base_name(module)}.weight", inputs[0].reshape(-1, inputs[0].shape[-1]))

    hooks = [module.register_forward_pre_hook(tell) for module in model.modules() if isinstance(module, nn.Linear) and base_name(module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
