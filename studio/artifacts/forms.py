"""The form "Take it home": what can be built, how large it gets, and what was typed. Services decide whether it is built."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from django.http import QueryDict

from studio.artifacts import buildable, quantizations
from studio.artifacts.models import Artifact, Build
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.training import ModelFacts

COMMON = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
"""Types that are offered at first sight; the others are folded."""
FILE, ADAPTER, WEIGHTS = Build.Kind.GGUF.value, Build.Kind.GGUF_ADAPTER.value, Build.Kind.MERGED.value
BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class KindChoice:
    """A kind of file, and the name of the form's field with its types."""

    value: str
    title: str
    text: str
    field: str
    obstacle: str = ""
    """Why it cannot be chosen."""
    chosen: bool = False


KINDS = (
    KindChoice(
        FILE,
        "One file that runs",
        "Base model and adapter become one GGUF. llama.cpp, Ollama and LM Studio run it as it is.",
        "quantization",
    ),
    KindChoice(
        ADAPTER,
        "An adapter for a base that stays",
        "A small GGUF that llama.cpp puts on a base model's GGUF. Several share one base, and are swapped while it runs.",
        "adapter_precision",
    ),
    KindChoice(
        WEIGHTS,
        "Weights for further work",
        "Safetensors with the adapter merged in, to train on, or to serve with vLLM and transformers.",
        "merged_precision",
    ),
)


@dataclass(frozen=True)
class TypeChoice:
    name: str
    sentence: str
    size: int
    """Bytes it is expected to have; 0 where nobody can say."""
    recommended: bool
    chosen: bool
    there: str = ""
    """Whether it is there already, or on its way."""

    @property
    def badge(self) -> str:
        return "Recommended" if self.recommended else ""


@dataclass
class BuildForm:
    """The form "Take it home" of an artifact, or of a base model as it is, as somebody typed it or with its defaults."""

    facts: ModelFacts
    source: Artifact | None = None
    typed: QueryDict = field(default_factory=QueryDict)
    builds: list[Build] = field(default_factory=list)
    """What was asked for before, each with its order."""
    error: UserError | None = None

    @classmethod
    def of(cls, made_from: Artifact | BaseModel, *, builds: Iterable[Build], typed: QueryDict | None = None) -> "BuildForm":
        """Raises UserError for what no file is built from, such as a rehearsal or a base model that is not here yet."""
        source, base = (made_from, None) if isinstance(made_from, Artifact) else (None, made_from)
        return cls(buildable.facts_of(source, base), source, typed if typed is not None else QueryDict(), list(builds))

    @property
    def unsupported(self) -> str:
        """Why nothing can be built of it, with the list of what can be; empty where it can."""
        try:
            quantizations.refuse_unsupported(self.facts)
        except UserError as problem:
            return problem.message
        return ""

    @cached_property
    def kinds(self) -> list[KindChoice]:
        """Without an adapter there is nothing to merge, and the weights lie there already: then none is to be chosen."""
        if self.source is None or self.source.kind != Artifact.Kind.ADAPTER:
            return []
        possible = buildable.kinds_of(self.source)
        return [
            replace(choice, chosen=choice.value == self.kind, obstacle="" if choice.value in possible else self._obstacle)
            for choice in KINDS
        ]

    @property
    def _obstacle(self) -> str:
        held = buildable.merged_only(self.source) if self.source else []
        return f"Not of this one: it holds {', '.join(held)}, which llama.cpp cannot add to a running model."

    @property
    def kind(self) -> str:
        typed = str(self.typed.get("kind", ""))
        return typed if typed in Build.Kind.values else FILE

    @property
    def asked(self) -> list[str]:
        """The types that were chosen for the kind that was chosen."""
        return self._chosen(self.kind)

    def _chosen(self, kind: str) -> list[str]:
        name = next(choice.field for choice in KINDS if choice.value == kind)
        return [str(typed) for typed in self.typed.getlist(name)]

    @property
    def importance(self) -> bool:
        return self.typed.get("importance") == "on" and self.kind == FILE

    @property
    def training_rows(self) -> int:
        """Rows that the importance of weights can be measured on."""
        version = self.source.dataset_version if self.source else None
        return int((version.facts or {}).get("split", {}).get("train", 0)) if version else 0

    @property
    def careless(self) -> list[str]:
        """Types that measured importance changes nothing in."""
        return [name for name in quantizations.choices(FILE) if not quantizations.uses_importance(FILE, name)]

    @property
    def types(self) -> list[TypeChoice]:
        return [choice for choice in self._types(FILE) if choice.name in COMMON]

    @property
    def more_types(self) -> list[TypeChoice]:
        return [choice for choice in self._types(FILE) if choice.name not in COMMON]

    @property
    def more_chosen(self) -> bool:
        return any(choice.chosen for choice in self.more_types)

    @property
    def adapter_precisions(self) -> list[TypeChoice]:
        return self._types(ADAPTER)

    @property
    def merged_precisions(self) -> list[TypeChoice]:
        return self._types(WEIGHTS)

    def _types(self, kind: str) -> list[TypeChoice]:
        best = quantizations.recommended(kind, self.facts)
        there = self._there(kind)
        asked = self._chosen(kind) if self.typed else [best] if best not in there else []
        return [
            TypeChoice(
                name=name,
                sentence=sentence,
                size=self._size(kind, name),
                recommended=name == best,
                chosen=name in asked,
                there=there.get(name, ""),
            )
            for name, sentence in quantizations.choices(kind).items()
        ]

    def _there(self, kind: str) -> dict[str, str]:
        """Types that need not be asked for again, each with what is to be said of it."""
        plain = [build for build in self.builds if build.kind == kind and not build.importance]
        coming = {build.quantization: "on its way" for build in plain if build.order.is_live}
        return coming | {build.quantization: "there already" for build in plain if build.passed}

    def _size(self, kind: str, name: str) -> int:
        if kind == FILE:
            return quantizations.estimated_size(self.facts, name)
        return self.facts.parameters * BYTES[name] if kind == WEIGHTS else 0
