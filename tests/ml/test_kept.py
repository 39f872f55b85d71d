"""The estimator's bytes per token are those that autograd really keeps for the backward pass, counted on small Llamas."""

import pytest

torch = pytest.importorskip("torch")

from studio.ml.batches import token_row  # noqa: E402
from studio.ml.loading import Arithmetic, Reader, load_base  # noqa: E402
from studio.ml.lora import fuse_lora  # noqa: E402
from studio.ml.modelfacts import read_model_facts  # noqa: E402
from studio.training.config import FullConfig, LoraConfig  # noqa: E402
from studio.training.facts import DatasetFacts, HostFacts  # noqa: E402
from studio.training.memory import recipe_of  # noqa: E402

SHAPE = {"hidden": 96, "intermediate": 192, "heads": 4, "kv_heads": 2}
HOST = HostFacts(name="here", cpus=1, memory=8 << 30)
DATA = DatasetFacts(name="rows", shape="chat", rows=10, train=10, validation=0)


@pytest.fixture(scope="module")
def deep_and_shallow(tmp_path_factory, tiny_model_maker):
    """Models of four and of two layers, alike in all else."""
    return [tiny_model_maker(tmp_path_factory.mktemp(f"layers-{layers}"), layers=layers, **SHAPE) for layers in (4, 2)]


def kept(model, *, tokens: int, arithmetic: Arithmetic) -> int:
    """Bytes of all tensors, other than the model's own, that a forward pass over two documents leaves for the backward pass."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    found = {}

    def remember(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    reader = Reader(model.get_base_model() if hasattr(model, "get_base_model") else model, arithmetic=arithmetic, layout="flattened")
    rows = [token_row(list(range(3, 3 + tokens // 2)), [True] * (tokens // 2)) for _ in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor), arithmetic.autocast():
        states = reader.hidden(reader.batch(rows))  # held on to: it holds the graph, and the graph the tensors
        total = sum(storage.nbytes() for storage in found.values())
        del states
    return total


def counted(config, folders) -> float:
    """Bytes of one token and layer: what more layers keep of more tokens, so that whatever does not grow with both drops out."""
    pure = isinstance(config, FullConfig) and config.weights == "bf16"
    arithmetic = Arithmetic(device=torch.device("cpu"), bf16=pure or config.precision == "bf16")
    sizes = []
    for folder in folders:
        lora = isinstance(config, LoraConfig)
        model = load_base(folder, arithmetic=arithmetic, dtype=None if lora or pure else torch.float32)
        if lora:
            model = adapted(model, config)
        model.train()
        sizes.append(kept(model, tokens=64, arithmetic=arithmetic) - kept(model, tokens=32, arithmetic=arithmetic))
    return (sizes[0] - sizes[1]) / 2 / 32


def adapted(model, config: LoraConfig):
    from peft import LoraConfig as Adapter
    from peft import get_peft_model

    targets = "all-linear" if config.targets == ["all-linear"] else config.targets
    dora = config.variant == "dora"
    model = get_peft_model(
        model, Adapter(r=config.rank, lora_dropout=config.dropout, target_modules=targets, use_dora=dora, task_type="CAUSAL_LM")
    )
    fuse_lora(model)
    return model


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(precision="bf16", rank=4),
        LoraConfig(precision="fp32", rank=16),
        LoraConfig(precision="bf16", rank=4, dropout=0.1),
        LoraConfig(precision="bf16", rank=4, variant="dora"),
        LoraConfig(precision="fp32", rank=4, variant="dora"),
        FullConfig(precision="bf16"),
        FullConfig(precision="fp32"),
        FullConfig(weights="bf16"),
    ],
    ids=lambda config: " ".join(f"{name}={value}" for name, value in config if value != type(config).model_fields[name].default),
)
def test_what_a_layer_keeps_of_a_token_is_foreseen_to_the_byte(config, deep_and_shallow):
    foreseen = recipe_of(config, read_model_facts(deep_and_shallow[0], "tiny"), DATA, HOST).kept
    assert counted(config, deep_and_shallow) == pytest.approx(foreseen, rel=0.005)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(precision="fp32", dropout=0.1),
        LoraConfig(precision="fp32", targets=["q_proj", "v_proj"]),
        LoraConfig(precision="bf16", targets=["q_proj", "v_proj"]),
    ],
)
def test_where_inputs_are_shared_a_little_too_much_is_foreseen(config, deep_and_shallow):
    foreseen = recipe_of(config, read_model_facts(deep_and_shallow[0], "tiny"), DATA, HOST).kept
    assert 0.75 * foreseen < counted(config, deep_and_shallow) <= foreseen
