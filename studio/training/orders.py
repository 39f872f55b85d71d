"""The JSON file that a worker process is started with, and the lines that it answers."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from studio.training.facts import DatasetFacts, HostFacts, ModelFacts
from studio.training.scoring import Metric

Kind = Literal[
    "train",
    "base_model",
    "dataset",
    "revision",
    "mix",
    "tokens",
    "token_view",
    "synthesis",
    "fetch",
    "build",
    "adapter",
    "evaluation",
    "trial",
    "comparison",
    "survey",
    "extraction",
]


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class TrainPayload(Wire):
    plugin: str
    config: dict[str, Any]
    base: str
    """Folder of the base model."""
    model: ModelFacts
    rows: str
    """The version's rows.parquet."""
    data: DatasetFacts
    host: HostFacts
    prompts: list[str] = []
    lineage: dict[str, Any] = {}
    """Written into the result: ids, hashes and names of what it was made from."""
    checkpoints: str = ""
    """The order's folder of states, which every attempt saves into and the next one goes on from; empty takes one of the attempt's own."""
    cache: str = ""
    """A folder for what the next run on the same rows can use; empty keeps nothing."""


class BaseModelPayload(Wire):
    source: str
    """package:NAME, path:FOLDER, hub:OWNER/NAME@REVISION, or base:FOLDER for a base model that gets `tokens`."""
    tokens: list[str] = []
    """What is added to the vocabulary of base:FOLDER."""
    name: str = ""
    """What that one is called."""
    license: str = ""
    revision: str = ""
    cache: str
    """A folder that outlives the attempt, so that a download can go on where it stopped."""
    hub: str = ""
    """Address of the hub; empty takes the library's own."""


class SplitRules(Wire):
    """What the split goes by, beyond share and seed."""

    stratify: str = ""
    """Column of which every value gives its share to validation; empty: none."""
    together: str = ""
    """Column whose equal values stay on one side of the split, such as a conversation's number; empty: none."""
    near_duplicates: bool = True
    """Whether near-duplicates stay on one side."""


class Remote(Wire):
    url: str
    size: int = Field(ge=0)
    sha256: str = ""
    """Empty where nobody announced it."""
    headers: dict[str, str] = {}
    signs_in: bool = False
    """Whether the token goes along."""


class FetchPayload(Wire):
    name: str
    place: str
    """Where it is fetched from, for sentences."""
    files: list[Remote] = Field(min_length=1)
    target: str
    join: Literal["", "lines", "bytes", "parquet"] = ""
    """How several files become one."""
    private: list[str] = []
    """Hosts that are asked although their addresses are not public."""


class DatasetPayload(Wire):
    file: str
    filename: str
    """What the person called it: a label, and a hint about the format."""
    mapping: dict[str, str] = {}
    """Canonical field -> column, where the person chose."""
    validation_percent: float = Field(5.0, ge=0, le=50)
    seed: int = 42
    refused: Literal["skip", "stop"] = "skip"
    encoding: Literal["", "utf-8", "cp1252"] = ""
    """How the person chose to read text; empty stops at text that is not UTF-8, so that they are asked."""
    sheet: str = ""
    """The sheet of a workbook that the person chose; empty takes the first."""
    rules: SplitRules = SplitRules()
    base: str = ""
    """Folder of a base model whose tokenizer measures the rows; empty where there is none yet."""


class RevisionPayload(Wire):
    rows: str
    """The parent's rows.parquet."""
    number: int
    """The parent's, for a sentence."""
    shape: Literal["chat", "text", "preference"]
    changes: str = ""
    """A JSON file with `edited`, `dropped`, `added`, `kept` and `rules`; empty takes the parent's rows as they are."""
    validation_percent: float = Field(5.0, ge=0, le=50)
    seed: int = 42
    rules: dict[str, Any] = {}
    """What the split goes by beyond share and seed, as the version has it."""
    strata: dict[int, str] = {}
    """What the hashes of strata stand for, as far as that is known."""


class MixPart(Wire):
    version: str
    """Its id."""
    name: str
    rows: str
    """Its rows.parquet."""
    train: int = Field(ge=0)
    """Rows to take of those to train on; more than it has repeats them."""
    validation: int = Field(ge=0)
    origin: str = ""
    """Its dataset, where equal values in the column of what stays together mean the same in that dataset only."""


class MixPayload(Wire):
    shape: Literal["chat", "text", "preference"]
    parts: list[MixPart] = Field(min_length=1)
    without: list[str] = []
    """Each a rows.parquet whose rows are left out."""
    keep: bool = True
    """Rows keep their splits; else they are split anew."""
    validation_percent: float = Field(ge=0, le=50)
    seed: int
    near_duplicates: bool = True
    """They stay on one side of the split."""
    strata: dict[int, str] = {}
    """What the hashes of strata stand for, as far as that is known."""


class TokensPayload(Wire):
    rows: str
    base: str
    limit: int = 0
    """Tokens that the base model reads at most; 0 where nobody said."""
    first: int = Field(0, ge=0, le=1000)
    """How many of the first rows are written down token by token."""


class TokenViewPayload(Wire):
    rows: str
    """The version's rows.parquet."""
    base: str
    begin: int = Field(ge=0)
    """Index of the first row."""
    count: int = Field(ge=1, le=1000)


class SynthesisPayload(Wire):
    shape: Literal["chat", "text"]
    seeds: list[dict[str, Any]]
    """Canonical rows that show what is wanted; may be none where the instruction says it all."""
    instruction: str = ""
    target: int = Field(ge=1, le=2000)
    temperature: float = Field(0.9, ge=0, le=2)
    seed: int = 42
    seconds: float = 3600
    """After so long it ends with what it has."""
    rows: Path | None = None
    """The version's rows.parquet: what stands there is not written again."""
    writer_name: str
    base: Path = Path()
    """Folder of a base model of the studio's, which writes where there is no `url`."""
    adapter: Path | None = None
    cache: Path = Path()
    """Where files for llama.cpp are kept."""
    context: int = 4096
    url: str = ""
    """Of an OpenAI-compatible endpoint, up to /v1."""
    model: str = ""
    private: list[str] = []
    """Hosts of private addresses that the operator allows."""


BuildKind = Literal["gguf", "gguf_adapter", "merged"]
Quantization = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q2_k", "iq4_nl", "iq4_xs", "mxfp4"
]
"""From the largest to the smallest, then the special ones."""


class BuildAbout(Wire):
    """What is written into the file about where it comes from. Everything may be empty."""

    title: str = ""
    """How people call it."""
    author: str = ""
    """The workspace."""
    license: str = ""
    """SPDX identifier, or what the base model's maker calls it."""
    base_name: str = ""
    base_source: str = ""
    """hub:OWNER/NAME@REVISION and the like, as in BaseModel.source."""
    dataset: str = ""
    version: str = ""
    """The first twelve digits of the source's hash."""
    languages: list[str] = []


class BuildPayload(Wire):
    base: str
    adapter: str = ""
    """Folder of the adapter; empty builds the base as it is."""
    kind: BuildKind = "gguf"
    quantizations: list[Quantization] = Field(default=["q8_0"], min_length=1)
    """All are written in one pass. Each becomes a folder of its own in the result, named by it. A GGUF adapter is f16 or f32."""
    importance: bool = False
    """Measure on the training rows which weights matter, and round those with more care. Types that it does not change are made without."""
    name: str
    """File name without suffix: letters, digits, dots and dashes."""
    rows: str = ""
    """The version's stored rows, to take held-out and training rows from."""
    model: ModelFacts
    state: str = ""
    """A folder that outlives the attempt: what a killed attempt had written is gone on from."""
    about: BuildAbout = BuildAbout()


class AdapterPayload(Wire):
    """An adapter that was trained elsewhere, to be looked through."""

    upload: str
    """The file as it came: safetensors, or a zip of the adapter's folder."""
    config: str = ""
    """The text of adapter_config.json, where it came apart from the weights."""
    base: str
    model: ModelFacts
    room: int | None = None
    """Bytes that its files may have; None where the client has no limit."""


class EvaluatedModel(Wire):
    """A release as it is measured: what answers, and what it is asked with."""

    name: str
    base: str
    """Folder of a whole model."""
    adapter: str = ""
    """Folder of the adapter that is put on it; empty where there is none."""
    parameters: int = 0
    """0 where nobody knows; so is the context."""
    context: int = 0
    """Tokens that it reads at most."""
    system: str = ""
    """Stands before every conversation that has no system message of its own."""
    stop: list[str] = []
    learnt: str = ""
    """The rows.parquet that it was trained on; empty where nobody knows."""


class EvaluationPayload(Wire):
    rows: str
    """The held-out version's rows.parquet."""
    split: Literal["", "validation"] = ""
    """Which of its rows; empty takes all."""
    shape: Literal["chat", "text", "preference"]
    release: EvaluatedModel
    before: EvaluatedModel | None = None
    """The release in production."""


class ComparedResult(Wire):
    """What an arm became with one seed."""

    seed: int
    model: EvaluatedModel
    size: int = 0
    """Bytes of its folder."""
    gguf_size: int | None = None
    """Bytes, about, that it takes as a GGUF, merged where it is an adapter; None where none can be built."""
    gguf_adapter: bool = False
    """Whether it can be built as a GGUF adapter."""


class ComparedArm(Wire):
    number: int = Field(ge=0)
    rows: str
    """The rows.parquet that it was trained on, and whose validation rows are held out."""
    base: EvaluatedModel
    """The untouched base model that it began from."""
    results: list[ComparedResult] = Field(min_length=1)


class ComparisonPayload(Wire):
    arms: list[ComparedArm] = Field(min_length=1)
    probe: str = ""
    """A rows.parquet of general rows; empty takes those that the studio brings along."""
    probe_name: str = ""
    metrics: list[Metric] = []
    judges: dict[str, EvaluatedModel] = {}
    """By the name of the metric that asks it."""
    rows: int = Field(default=48, ge=1, le=2000)
    """Held-out rows that are measured at most."""
    general: int = Field(default=64, ge=0, le=2000)
    """Rows of the probe that are measured at most."""
    prompts: int = Field(default=16, ge=0, le=200)
    """Held-out rows that are asked at most."""
    answer_tokens: int = Field(default=64, ge=1, le=1024)
    beginnings: int = Field(default=16, ge=0, le=200)
    """Training rows whose beginnings are given at most."""
    state: Path
    """A folder that outlives the attempt: what was measured is not measured again."""


class AskedModel(Wire):
    """One column of a trial: what answers, and what it is asked with."""

    name: str
    base: str = ""
    """Folder of a whole model, or a GGUF file; empty where it is gone."""
    adapter: str = ""
    system: str = ""
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, le=4096)
    """Of each answer."""
    stop: list[str] = []


class TrialPayload(Wire):
    prompts: list[list[str]] = Field(min_length=1)
    """Each one conversation, question by question."""
    columns: list[AskedModel] = Field(min_length=1, max_length=4)
    seed: int = 0
    cache: Path
    """Where files for llama.cpp are kept."""
    state: Path
    """A folder that outlives the attempt: what was answered is not asked again."""


class ExtractionPayload(Wire):
    """A fully trained model, and the adapters that are to be taken out of it."""

    name: str
    """What people call the model."""
    base: str
    """Folder of the base model that it was trained from."""
    source: str
    """Its own folder."""
    model: ModelFacts
    """Of the base."""
    ranks: list[int] = Field(min_length=1, max_length=12)
    """Each gives an adapter in a folder of its own; 0 is the full rank."""
    tables: bool = False
    """Whether the tables of words go along whole where they changed."""
    rows: str = ""
    """The version's rows.parquet, whose held-out rows they are measured on; empty measures nothing."""
    state: str
    """A folder that outlives the attempt: what a killed one had done is not done again."""


class SurveyPayload(Wire):
    """A base model, and the rows that it is to look at."""

    rows: str
    """The version's rows.parquet."""
    train: int = Field(ge=0)
    """Rows of its training split."""
    base: str
    model: ModelFacts


class Order(Wire):
    id: str
    kind: Kind
    attempt: int
    first_seq: int
    """Number of the first event that this attempt writes."""
    folder: str
    """The attempt's own folder: order.json, events.jsonl, log.txt, work/, out/."""
    target: str
    """Where the sealed result is to stand."""
    payload: dict[str, Any]


class Event(BaseModel):
    """One line that a worker reports. `type` decides which other keys stand in it."""

    model_config = ConfigDict(extra="allow")

    seq: int
    attempt: int
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    type: Literal["phase", "progress", "metric", "sample", "rows", "checkpoint", "artifact", "note", "end"]
