"""A model in transformers whose weights stay on disk: every sequence goes through one layer before the next layer is read.

The model's own forward pass is run, once for each layer and sequence. Layers before the one whose turn it is hand on what that
sequence had become, and the pass ends behind it; so masks, positions and scales are whatever the family makes of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from studio.errors import UserError
from studio.ml.gguf.weights import Array, Weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class _Parked(Exception):
    """A sequence has left the layer whose turn it is."""

    def __init__(self, state: Tensor):
        self.state = state


def mark(model: nn.Module) -> None:
    """Writes its name in the model on every module; adapters rename modules, and copies keep what is written on them."""
    for name, module in model.named_modules():
        vars(module)["base_name"] = name


def base_name(module: nn.Module) -> str | None:
    """What `mark` wrote on this very module; a wrapper answers for the one inside it otherwise."""
    found: str | None = vars(module).get("base_name")
    return found


class Layerwise:
    """The model in the folder `base` with PEFT's adapter, in float32. `rows` is the size of a vocabulary that grew in training."""

    def __init__(self, base: Path, adapter: Path | None, *, weights: Weights, rows: int | None):
        self.weights = weights
        self.model: Any = _empty(base, rows)
        mark(self.model)
        self._words: nn.Module = self.model.model.embed_tokens
        self._unread: set[nn.Parameter] = set()
        if adapter:
            self.model = self._adapted(adapter)
        else:
            self._put_placeholders(self.model.modules())
        self.model.eval()
        self._layers: list[nn.Module] = list(self.model.model.layers)
        self._turn, self._state = 0, torch.empty(0)
        for number, layer in enumerate(self._layers):
            layer.forward = partial(self._visit, number, layer.forward)

    def forward(self, sequences: Sequence[list[int]], *, keep: Sequence[int], step: Callable[[int, int], None]) -> Iterator[Array]:
        """Logits of the last `keep` tokens of each sequence, in turn. `step(done, total)` is called before each piece of work."""
        states: list[Tensor | None] = [None] * len(sequences)
        total = len(sequences) * (len(self._layers) + 1)
        for turn, layer in enumerate(self._layers):
            with self._embedding_present(sequences if turn == 0 else []), self._present(_used(layer)):
                for number, ids in enumerate(sequences):
                    step(turn * len(sequences) + number, total)
                    states[number] = self._through(turn, ids, states[number])
        with self._present(self._outside()):
            for number, (state, last) in enumerate(zip(states, keep, strict=True)):
                step(len(self._layers) * len(sequences) + number, total)
                assert state is not None
                self._turn, self._state = len(self._layers), state
                yield logits(self.model, last, inputs_embeds=state)
                states[number] = None

    def _through(self, turn: int, ids: list[int], state: Tensor | None) -> Tensor:
        self._turn = turn
        try:
            if state is None:
                logits(self.model, 1, input_ids=torch.tensor([ids]))
            else:
                self._state = state
                logits(self.model, 1, inputs_embeds=state)  # only its shape counts: the first layer hands the state on
        except _Parked as parked:
            return parked.state
        raise RuntimeError(f"{type(self.model).__name__} did not ask its layer {turn}")

    def _visit(self, number: int, forward: Callable[..., Tensor], states: Tensor, *args: Any, **options: Any) -> Tensor:
        """What a layer does instead of its own forward."""
        if number < self._turn:
            return self._state
        raise _Parked(forward(self._state if number else states, *args, **options))

    def _adapted(self, adapter: Path) -> Any:
        """PEFT puts its layers in while all is empty, then loads them. It wants them where the base's weights are."""
        from peft import PeftConfig, PeftModelForCausalLM, set_peft_model_state_dict
        from peft.utils.save_and_load import load_peft_weights

        config: Any = PeftConfig.from_pretrained(str(adapter))
        config.inference_mode = True
        if getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None):
            self._put_placeholders([self.model.get_input_embeddings(), self.model.get_output_embeddings()])  # whose rows PEFT copies
        model = PeftModelForCausalLM(self.model, config, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
        self._put_placeholders(self.model.modules())
        found = load_peft_weights(str(adapter), device="cpu", use_safetensors=True)
        set_peft_model_state_dict(model, found, low_cpu_mem_usage=True)
        return model.get_base_model()

    def _put_placeholders(self, modules: Iterable[nn.Module]) -> None:
        """Empty weights become weights of the right shape that take no memory: one zero, seen everywhere."""
        for module in modules:
            for part, parameter in module._parameters.items():
                if parameter is not None and parameter.device.type == "meta":
                    placeholder = nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
                    module._parameters[part] = placeholder
                    self._unread.add(placeholder)

    def _outside(self) -> list[nn.Module]:
        inside = {module for root in [*self._layers, self.model.model.embed_tokens] for module in root.modules()}
        return [module for module in _used(self.model) if module not in inside]

    @contextmanager
    def _embedding_present(self, sequences: Sequence[list[int]]) -> Iterator[None]:
        """The table of words. Only the rows that the sequences name are read; DoRA needs the lengths of its columns, so all rows."""
        table = self.model.model.embed_tokens
        dora = any("lora_magnitude_vector" in name for name, _ in table.named_parameters())
        words = None if dora else sorted({number for ids in sequences for number in ids})
        with self._present(_used(table) if sequences else [], words=words):
            yield

    @contextmanager
    def _present(self, modules: Iterable[nn.Module], *, words: list[int] | None = None) -> Iterator[None]:
        """Weights of these modules are there in float32 inside the block."""
        away: list[tuple[nn.Module, str, nn.Parameter]] = []
        try:
            for module in modules:
                for part, parameter in list(module._parameters.items()):
                    if parameter is not None and (parameter in self._unread or parameter.dtype != torch.float32):
                        module._parameters[part] = nn.Parameter(self._read(module, part, parameter, words), requires_grad=False)
                        away.append((module, part, parameter))
            yield
        finally:
            for module, part, parameter in away:
                module._parameters[part] = parameter

    def _read(self, module: nn.Module, part: str, parameter: nn.Parameter, words: list[int] | None) -> Tensor:
        if parameter not in self._unread:
            return parameter.float()
        name = f"{base_name(module)}.{part}"
        if name == HEAD and HEAD not in self.weights.places:  # one table for words and output
            shared = self._words._parameters["weight"]
            if shared is not None and shared not in self._unread:  # the adapter brought all of it
                return shared.float()
            name = EMBEDDING
        if name not in self.weights.places:
            raise UserError(f"The adapter or its base lacks {name}. Train it again.")
        if name in (EMBEDDING, HEAD):
            return torch.from_numpy(self._table(name, tuple(parameter.shape), words))
        return torch.from_numpy(self.weights.whole(name))

    def _table(self, name: str, shape: tuple[int, ...], words: list[int] | None) -> Array:
        """A table with a row for each token; a row that is not read stays a page of zeros that the system has not even made."""
        stored = self.weights.places[name].shape[0]
        if words is None and stored == shape[0]:
            return self.weights.whole(name)
        table = np.zeros(shape, np.float32)  # training may have made the vocabulary larger or smaller
        if words is None:
            table[:stored] = self.weights.rows(name, 0, min(stored, len(table)))
        for number in words or []:
            if number < min(stored, len(table)):
                table[number] = self.weights.rows(name, number, number + 1)[0]
        return table


def logits(model: Any, last: int, **inputs: Tensor) -> Array:
    """Of the last tokens of one sequence, shape (last, vocabulary), float32."""
    with torch.inference_mode():
        found: Array = model(**inputs, use_cache=False, logits_to_keep=last).logits[0].float().numpy()
    return found


def _empty(base: Path, rows: int | None) -> Any:
    from peft.utils.integrations import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    config.vocab_size = rows or config.vocab_size
    with init_empty_weights(include_buffers=False):
        made: Any = AutoModelForCausalLM.from_config  # untyped
        return made(config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False)


def _used(root: nn.Module) -> list[nn.Module]:
    """Its modules without those that a trained copy stands in for."""
    return [module for name, module in root.named_modules() if "original_module" not in name.split(".")]
