"""What has been published about adapters and full fine-tuning: the findings that the advisor leans on, with what each covers and does not.

Only what the source itself says. Where a finding holds for one kind of task, that is its limit and stands beside it.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One source."""

    key: str
    authors: str
    year: int
    title: str
    link: str
    """Empty for what was measured with this studio."""
    says: str
    covers: str
    limits: str

    @property
    def cited(self) -> str:
        return f"{self.authors} {self.year}"


FINDINGS = (
    Finding(
        key="lora",
        authors="Hu et al.",
        year=2021,
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        link="https://arxiv.org/abs/2106.09685",
        says="Adapters came out on a par with full fine-tuning or better, with up to 10,000 times fewer trained parameters and a third of"
        " the GPU memory on the largest model.",
        covers="RoBERTa, DeBERTa, GPT-2 and GPT-3 on language understanding, text generation and SQL.",
        limits="Single, well-defined tasks. Adapters stood beside attention alone.",
    ),
    Finding(
        key="qlora",
        authors="Dettmers et al.",
        year=2023,
        title="QLoRA: Efficient Finetuning of Quantized LLMs",
        link="https://arxiv.org/abs/2305.14314",
        says="An adapter beside a base in 4 bits (NF4) came out like one in 16 bits, and a 65B model could be trained on one GPU of 48 GB.",
        covers="RoBERTa, T5 and LLaMA models up to 65B on GLUE, Super-NaturalInstructions and MMLU; adapters on all linear layers.",
        limits="The authors say that they did not show it to match full fine-tuning in 16 bits at 33B and 65B.",
    ),
    Finding(
        key="learns_less",
        authors="Biderman et al.",
        year=2024,
        title="LoRA Learns Less and Forgets Less",
        link="https://arxiv.org/abs/2405.09673",
        says="LoRA fell behind full fine-tuning at the usual low ranks, and kept more of what the base could do outside of the new domain.",
        covers="Llama-2 7B on code and mathematics: about 100,000 instructions, and up to 20 billion tokens of continued pretraining.",
        limits="Far more data than a client's examples mostly are, and domains far from the base.",
    ),
    Finding(
        key="without_regret",
        authors="Schulman et al.",
        year=2025,
        title="LoRA Without Regret",
        link="https://thinkingmachines.ai/blog/lora/",
        says="On small and middling sets of instructions LoRA on all layers learnt like full fine-tuning; it fell behind where the data"
        " exceeded what the adapter can hold, and with large batches. Its best learning rate was about ten times that of full fine-tuning.",
        covers="Llama 3 and Qwen3 models on instruction sets and in reinforcement learning, over many learning rates and ranks.",
        limits="Measured as loss. An article of a laboratory, not a reviewed paper.",
    ),
    Finding(
        key="intruders",
        authors="Shuttleworth et al.",
        year=2024,
        title="LoRA vs Full Fine-tuning: An Illusion of Equivalence",
        link="https://arxiv.org/abs/2410.21228",
        says="Where both do a task equally well, the weights still differ: LoRA adds new directions (“intruder dimensions”), and models"
        " with many of them forget more of their pretraining and bear several trainings one after another less well.",
        covers="RoBERTa and Llama models; fewer of them at high ranks with rsLoRA.",
        limits="It speaks against the plain sentence that LoRA forgets less; how much it matters depends on rank, alpha and learning rate.",
    ),
    Finding(
        key="rslora",
        authors="Kalajdzievski",
        year=2023,
        title="A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        link="https://arxiv.org/abs/2312.03732",
        says="Dividing by the root of the rank instead of the rank itself lets higher ranks learn more.",
        covers="Llama 2 7B and ranks up to 2048.",
        limits="At low ranks there is little difference.",
    ),
    Finding(
        key="dora",
        authors="Liu et al.",
        year=2024,
        title="DoRA: Weight-Decomposed Low-Rank Adaptation",
        link="https://arxiv.org/abs/2402.09353",
        says="Learning size and direction of the weights apart came out above LoRA of the same rank, at low ranks most.",
        covers="LLaMA models on commonsense reasoning, LLaVA and VL-BART on images.",
        limits="Takes more time and memory in training; the result is as fast as LoRA once it is merged.",
    ),
    Finding(
        key="scaling",
        authors="Zhang et al.",
        year=2024,
        title="When Scaling Meets LLM Finetuning: The Effect of Data, Model and Finetuning Method",
        link="https://arxiv.org/abs/2402.17193",
        says="A larger base model helps fine-tuning more than more pretraining data; more adapter parameters hardly help; and which method"
        " is best depends on the task and the amount of data.",
        covers="Models of 1B to 16B on translation and summaries.",
        limits="Two kinds of tasks; it gives no rule that would hold for all.",
    ),
    Finding(
        key="capacity",
        authors="Allen-Zhu and Li",
        year=2024,
        title="Physics of Language Models: Part 3.3, Knowledge Capacity Scaling Laws",
        link="https://arxiv.org/abs/2404.05405",
        says="A language model can hold about 2 bits of knowledge in a parameter.",
        covers="Models that were trained from nothing on made-up biographies, each seen many times.",
        limits="Pretraining of whole models; that adapters hold as much is an extrapolation.",
    ),
    Finding(
        key="new_facts",
        authors="Gekhman et al.",
        year=2024,
        title="Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?",
        link="https://arxiv.org/abs/2405.05904",
        says="Examples with facts that the base does not know are learnt slower than others, and once learnt they make it invent more.",
        covers="PaLM 2 with questions that can be answered without a source at hand.",
        limits="One model and one kind of question.",
    ),
    Finding(
        key="forgetting_laws",
        authors="Kalajdzievski",
        year=2024,
        title="Scaling Laws for Forgetting When Fine-Tuning Large Language Models",
        link="https://arxiv.org/abs/2401.05605",
        says="With LoRA, too, forgetting grows with the steps and with the parameters that learn, and goes along with how much is learnt.",
        covers="Llama 2 7B chat with LoRA of several ranks.",
        limits="One model; full fine-tuning was not its subject.",
    ),
    Finding(
        key="many_adapters",
        authors="Sheng et al.",
        year=2023,
        title="S-LoRA: Serving Thousands of Concurrent LoRA Adapters",
        link="https://arxiv.org/abs/2311.03285",
        says="Thousands of adapters of one base can be served from one GPU, for the base stands in its memory once.",
        covers="Llama models on one or several GPUs.",
        limits="About serving; it says nothing about quality.",
    ),
    Finding(
        key="range_test",
        authors="Smith",
        year=2017,
        title="Cyclical Learning Rates for Training Neural Networks",
        link="https://arxiv.org/abs/1506.01186",
        says="Raising the learning rate over one short run shows where the model begins to learn and where it breaks.",
        covers="Image classifiers.",
        limits="It finds the bounds, not the best rate within them, and says nothing about forgetting.",
    ),
    Finding(
        key="studio",
        authors="This studio",
        year=2026,
        title="Forgetting at equal learning, measured with its own plugins",
        link="",
        says="Learning rate and steps decided how much was forgotten, more than the method: at each method's usual rate general rows lost"
        " 0.006 (LoRA) and 0.008 (full) nats a token; LoRA at five times its rate lost 0.076, full at five times its own 0.037.",
        covers="SmolLM2-135M on 91 short conversations, three epochs, measured on 48 general rows that it never saw.",
        limits="One small model, one narrow set, one seed; differences below 0.005 are noise.",
    ),
)


def cited(keys: Iterable[str]) -> list[Finding]:
    """The findings of these keys, each once, in the order of the list."""
    wanted = set(keys)
    return [finding for finding in FINDINGS if finding.key in wanted]
