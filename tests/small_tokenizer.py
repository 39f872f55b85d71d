"""A base model's tokenizer, small and made on the spot, for tests that need no weights."""

import json

from studio.basemodels.models import BaseModel

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


def give_tokenizer(base: BaseModel, *, template: str = CHATML) -> None:
    """A small tokenizer in the base model's folder; its weights are nobody's business here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["user assistant Question Answer Question 1? Answer 1."] * 4, trainer)
    base.folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(base.folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": template}
    (base.folder / "tokenizer_config.json").write_text(json.dumps(settings))
