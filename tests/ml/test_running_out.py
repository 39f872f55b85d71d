"""A run that fills the memory ends with settings that fit, worked out by the estimator."""

import pytest

torch = pytest.importorskip("torch")

from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402

from studio.errors import UserError  # noqa: E402
from studio.ml.modelfacts import read_model_facts  # noqa: E402
from studio.training import DatasetFacts, HostFacts  # noqa: E402
from tests.jobs import ListeningJob  # noqa: E402
from training_plugins.peft_lora import PeftLora  # noqa: E402

ROWS = [
    {"messages": [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"A number, {number}."}]}
    for number in range(12)
]


class Full(ListeningJob):
    """A job whose rows are ROWS."""

    def rows(self, split):
        return iter(ROWS if split == "train" else ())


@pytest.fixture
def ran_out(tmp_path, tiny_model):
    """`ran_out(**settings)` trains until the first step of the optimizer finds no memory, and returns what is then said."""

    def no_memory(*_):
        raise MemoryError

    def train(**settings) -> UserError:
        job = Full(tmp_path / "attempt")
        job.base, job.model, job.prompts, job.checkpoints = tiny_model, read_model_facts(tiny_model, "tiny"), [], job.work / "checkpoints"
        job.data = DatasetFacts(name="rows", shape="chat", rows=12, train=12, validation=0)
        job.host = HostFacts(name="here", cpus=1, memory=8 << 30)
        hook = register_optimizer_step_pre_hook(no_memory)
        try:
            with pytest.raises(UserError) as caught:
                PeftLora().train(PeftLora.Config(rank=4, precision="fp32", max_length=64, **settings), job)
        finally:
            hook.remove()
        return caught.value

    return train


def test_the_change_that_loses_least_is_proposed(ran_out):
    error = ran_out(batch_size=4)
    assert error.facts == {"code": "out_of_memory", "step": 1, "proposal": {"gradient_checkpointing": "on"}}
    assert error.message == "The worker ran out of memory at step 1. Try again with gradient checkpointing on."
    assert set(error.fields) == {"gradient_checkpointing"}


def test_where_nothing_less_is_left_that_is_said(ran_out):
    error = ran_out(batch_size=1, gradient_checkpointing="on")
    assert error.facts == {"code": "out_of_memory", "step": 1}
    assert error.message == "The worker ran out of memory at step 1. Choose a smaller base model, or a worker with more memory."
