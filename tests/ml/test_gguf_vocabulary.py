"""Every kind of tokenizer that the families bring reads the same ids in llama.cpp; one of another structure is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from studio.errors import UserError
from studio.ml.gguf import pretokenizers
from studio.ml.gguf.alike import caveats, comparable, name_mark
from studio.ml.gguf.exporting import export
from studio.ml.gguf.header import read_header
from studio.ml.gguf.sentencepiece import BYTES
from studio.ml.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, chat_template, entries, special_tokens
from studio.ml.llamacpp import Model
from studio.ml.tokenizer_proof import TEXTS

SPECIAL = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MORE = ["<|im_start|>user\n  Hi there <|im_end|>\n", "a<tool>b</tool> c", " <s> x </s> y"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
ROWS = 3
"""Rows of the embedding beyond the tokens."""


def byte_level(*steps: Any, own: bool = False, ignore_merges: bool = False, normalizer: Any = None) -> Tokenizer:
    """Trained on the spot: letters as bytes, split by `steps`; `own` by GPT-2's own expression as well."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    return tokenizer


def split(expression: str, behavior: str = "isolated", *, invert: bool = False) -> Any:
    return pre_tokenizers.Split(Regex(expression), behavior, invert)


def sentencepiece(normalizer: Any, *steps: Any) -> Tokenizer:
    """Pieces with scores, and the pairs that each is merged of in their order, as transformers makes them of a SentencePiece model."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False, limit_alphabet=200)
    trained.train_from_iterator([text for text in TEXTS if "<" not in text] * 2, trainer)
    pieces = [piece for piece, _ in sorted(trained.get_vocab().items(), key=lambda pair: pair[1])]
    names = ["<unk>", "<s>", "</s>", *BYTES, "▁▁", "▁▁▁▁", *pieces]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    merges = [(piece[:cut], piece[cut:]) for piece in vocabulary for cut in range(1, len(piece))]
    merges = [pair for pair in merges if all(part in vocabulary for part in pair) and "".join(pair) not in (*SPECIAL, *BYTES)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if steps:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    return tokenizer


PREPENDING = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
KINDS: dict[str, tuple[str, Callable[[], Tokenizer]]] = {
    "GPT-2": ("gpt-2", lambda: byte_level(own=True)),
    "SmolLM2 and Granite 3": ("smollm", lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), own=True)),
    "Llama 3 and SmolLM3": ("llama-bpe", lambda: byte_level(split(pretokenizers.LLAMA3), ignore_merges=True)),
    "OLMo 2": ("dbrx", lambda: byte_level(split(pretokenizers.LLAMA3, "removed", invert=True))),
    "Qwen2 and Qwen3": ("qwen2", lambda: byte_level(split(pretokenizers.QWEN2), normalizer=normalizers.NFC())),
    "Mistral's tekken": ("tekken", lambda: byte_level(split(pretokenizers.TEKKEN), ignore_merges=True)),
    "Phi-4-mini": ("gpt-4o", lambda: byte_level(split(pretokenizers.GPT4O, "removed", invert=True))),
    "Llama 2, TinyLlama, Phi-3, Mistral": ("default", lambda: sentencepiece(PREPENDING)),
    "Gemma 2 and 3": (
        "default",
        lambda: sentencepiece(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")),
    ),
    "Mistral 0.3": ("default", lambda: sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False))),
    "Metaspace without a space in front": (
        "default",
        lambda: sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
    ),
}


def base_with(tokenizer: Tokenizer, folder: Path, *, template: str = TEMPLATE, **settings: Any) -> Path:
    """A model as small as can be, with rows to spare, and the tokenizer's files."""
    size = tokenizer.get_vocab_size(with_added_tokens=True) + ROWS
    config = LlamaConfig(
        vocab_size=size, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, tie_word_embeddings=True
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    return folder


def opened(base: Path, *, name: str = "tiny") -> Model:
    export(base=base, adapter=None, quantization="f32", target=base / "f32.gguf", name=name)
    return Model(base / "f32.gguf")


def different(tokenizer: Tokenizer, model: Model, texts: list[str]) -> list[str]:
    """Texts that the two read differently, whether names of special tokens are tokens or letters."""
    found = []
    for letters in (False, True):
        tokenizer.encode_special_tokens = letters
        read = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        found += [text for text, ids in zip(texts, read, strict=True) if ids != model.tokenize(text, special=not letters)]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_llamacpp_reads_every_text_as_the_tokenizer_does(tmp_path: Path, kind: str) -> None:
    name, make = KINDS[kind]
    tokenizer = make()
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=False)])
    base = base_with(tokenizer, tmp_path)
    assert entries(base, rows=tokenizer.get_vocab_size() + ROWS)["tokenizer.ggml.pre"].value == name
    made = comparable(base)
    with opened(base) as model:
        assert different(tokenizer, model, [made(text) for text in [*TEXTS, *MORE]]) == []
    if name not in pretokenizers.WITHOUT_MARKS and "0.3" not in kind:
        assert [made(text) for text in TEXTS if made(text) != text] == (
            [] if name != "qwen2" else [made("e\u0301 é n\u0303 ñ ﬁ ﬀ ½ ² ™ € £ ¥")]
        )


def test_mistral_0_3_without_a_template_of_its_own_begins_texts_with_a_space(tmp_path: Path) -> None:
    tokenizer = KINDS["Mistral 0.3"][1]()
    base = base_with(tokenizer, tmp_path, template="")
    texts = ["Hello", "a  b", *TEXTS]
    with opened(base) as model:
        assert different(tokenizer, model, [comparable(base)(text) for text in texts]) == []
        assert model.tokenize("Hello") == tokenizer.encode("Hello", add_special_tokens=False).ids


def test_what_llamacpp_reads_otherwise_is_said(tmp_path: Path) -> None:
    tekken = base_with(KINDS["Mistral's tekken"][1](), tmp_path / "tekken")
    assert "combining marks" in caveats(tekken)[0] and comparable(tekken)("हिन्दी e\u0301") == "हनद e"
    gemma = KINDS["Gemma 2 and 3"][1]()
    gemma.add_tokens([AddedToken("<eos>", normalized=False)])
    plain = base_with(gemma, tmp_path / "gemma")
    assert caveats(plain) == ["llama.cpp takes <eos> for control tokens, which they are not in this model."]
    assert comparable(plain)("a<eos>b") == "ab"
    assert caveats(base_with(KINDS["GPT-2"][1](), tmp_path / "gpt-2")) == []


def test_a_word_that_no_text_is_read_as_is_no_end_of_an_answer(tmp_path: Path) -> None:
    """Qwen's vocabulary holds </s> as a word; its expression keeps letters and signs apart, so no text has it."""
    tokenizer = byte_level(split(pretokenizers.QWEN2))
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    content = json.loads(file.read_text())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != "</s>"]
    file.write_text(json.dumps(content))
    base = base_with(Tokenizer.from_file(str(file)), tmp_path / "base", eos_token="<|im_end|>")
    (base / "tokenizer.json").write_bytes(file.read_bytes())
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": SPECIAL.index("<|im_end|>")}))
    with opened(base) as model:
        assert different(Tokenizer.from_file(str(file)), model, ["a </s> b", "</s>"]) == []
        assert not model.ends(SPECIAL.index("</s>"))


def test_types_and_roles_of_tokens_are_kept(tmp_path: Path) -> None:
    tokenizer = KINDS["Llama 2, TinyLlama, Phi-3, Mistral"][1]()
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    base = base_with(tokenizer, tmp_path, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = {text: tokenizer.token_to_id(text) for text in ("<|im_end|>", "</s>", "<|endoftext|>", "<tool>", "<0x0A>", "a")}
    ends = [ids["<|endoftext|>"], ids["</s>"], ids["<|im_end|>"]]
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    rows = tokenizer.get_vocab_size() + ROWS
    found = entries(base, rows=rows)
    types: Any = found["tokenizer.ggml.token_type"].value
    assert [types[ids[text]] for text in ("<|im_end|>", "<tool>", "<0x0A>", "a")] == [CONTROL, USER_DEFINED, BYTE, NORMAL]
    assert types[0] == UNKNOWN and types[rows - ROWS :] == [UNUSED] * ROWS
    roles = {role: found[f"tokenizer.ggml.{role}_token_id"].value for role in ("bos", "eos", "eot", "eom", "unknown", "padding")}
    assert roles == {"bos": 1, "eos": ends[2], "eot": ends[0], "eom": ends[1], "unknown": 0, "padding": ends[0]}
    assert found["tokenizer.ggml.add_bos_token"].value is True and found["tokenizer.ggml.add_space_prefix"].value is True
    assert chat_template(base) == found["tokenizer.chat_template"].value == TEMPLATE
    with opened(base) as model:
        assert all(model.ends(number) for number in ends)
        assert model.tokenize("a", begin=True)[0] == 1


def test_a_tokenizer_that_took_the_bases_place_counts_and_the_bases_ends_stay(tmp_path: Path) -> None:
    base = base_with(KINDS["GPT-2"][1](), tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [SPECIAL.index("<|im_end|>")]}))
    grown = KINDS["GPT-2"][1]()
    grown.add_special_tokens([AddedToken("<|grown|>", special=True)])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    grown.save(str(adapter / "tokenizer.json"))
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    rows = grown.get_vocab_size()
    found = entries(base, rows=rows, tokenizer=adapter)
    tokens: Any = found["tokenizer.ggml.tokens"].value
    assert tokens[-1] == "<|grown|>" and found["tokenizer.ggml.eos_token_id"].value == SPECIAL.index("<|im_end|>")
    assert found["tokenizer.chat_template"].value == TEMPLATE
    assert special_tokens(base, grown.get_vocab(), rows=rows, tokenizer=adapter).ends == [SPECIAL.index("<|im_end|>")]


def test_blanks_that_phi_3_swallows_are_swallowed_in_llamacpp_too(tmp_path: Path) -> None:
    tokenizer = KINDS["Llama 2, TinyLlama, Phi-3, Mistral"][1]()
    content = json.loads(tokenizer.to_str())
    for entry in content["added_tokens"]:
        entry["rstrip"] = entry["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    swallowing = Tokenizer.from_str(json.dumps(content))
    texts = ["<|im_start|>\n Hi <|im_end|>\n\n<|im_start|>", "</s>  x", "<s>  x", "<|endoftext|>\nx"]
    for made, mark in ((swallowing, " (phi-3)"), (tokenizer, "")):
        base = base_with(made, tmp_path / (mark or "plain"))
        assert name_mark(base) == mark
        with opened(base, name="phi3-mine") as model:
            assert different(made, model, texts) == []
        assert str(read_header(base / "f32.gguf").get("general.name")).endswith(f"phi_3-mine{mark}")


def changed(base: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads((base / "tokenizer.json").read_text())
    change(content)
    (base / "tokenizer.json").write_text(json.dumps(content))
    return base


REFUSED: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "Unigram": ("GPT-2", lambda content: content["model"].update(type="Unigram"), "of type Unigram"),
    "no model": ("GPT-2", lambda content: content.update(model=None), "of type None"),
    "ends of words": ("GPT-2", lambda content: content["model"].update(end_of_word_suffix="</w>"), "marks or drops"),
    "no steps": ("GPT-2", lambda content: content.update(pre_tokenizer=None), "splits text in a way"),
    "a space in front": ("GPT-2", lambda content: content["pre_tokenizer"].update(add_prefix_space=True), "no known name"),
    "whole words first": ("GPT-2", lambda content: content["model"].update(ignore_merges=True), "no known name"),
    "numbers in one": (
        "SmolLM2 and Granite 3",
        lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False),
        "no known name",
    ),
    "another expression": (
        "Qwen2 and Qwen3",
        lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\p{L}+"}),
        "no known name",
    ),
    "cuts at the expression": (
        "Qwen2 and Qwen3",
        lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        "no known name",
    ),
    "small letters": ("GPT-2", lambda content: content.update(normalizer={"type": "Lowercase"}), "by Lowercase"),
    "another normalizer": ("Gemma 2 and 3", lambda content: content.update(normalizer={"type": "NFKC"}), "handles spaces"),
    "words cut at spaces": (
        "Mistral 0.3",
        lambda content: content["pre_tokenizer"].update(split=True),
        "handles spaces",
    ),
    "no bytes": ("Gemma 2 and 3", lambda content: content["model"]["vocab"].pop("<0x41>"), "no token for some bytes"),
    "a token twice": ("GPT-2", lambda content: content["added_tokens"][0].update(content="a"), "a token twice"),
    "an id beyond the rows": ("GPT-2", lambda content: content["model"]["vocab"].update(far=10**6), "the id 1000000"),
    "an id that is no number": ("GPT-2", lambda content: content["model"]["vocab"].update(far="x"), "the id x"),
    "a token that stands alone": ("GPT-2", lambda content: content["added_tokens"][0].update(single_word=True), "must stand alone"),
    "merges of three": ("GPT-2", lambda content: content["model"]["merges"].append(["a", "b", "c"]), "merges that a GGUF cannot hold"),
    "merges with a blank": ("GPT-2", lambda content: content["model"]["merges"].append(["a b", "c"]), "merges that a GGUF cannot hold"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tokenizer_that_llamacpp_cannot_have_is_refused(tmp_path: Path, case: str) -> None:
    kind, change, sentence = REFUSED[case]
    tokenizer = KINDS[kind][1]()
    base = changed(base_with(tokenizer, tmp_path), change)
    with pytest.raises(UserError, match=sentence):
        entries(base, rows=tokenizer.get_vocab_size() + ROWS)
