"""What pairs of a better and a worse answer need, and single answers with a thumb; what each way to learn from them asks for."""

from studio.training.config import PreferenceConfig
from studio.training.facts import DatasetFacts, Issue

USUAL_BETA = {"dpo": 0.1, "orpo": 0.1, "kto": 0.1, "simpo": 2.0}
NAMES = {"dpo": "DPO", "orpo": "ORPO", "kto": "KTO", "simpo": "SimPO"}
REFERENCED = ("dpo", "kto")
"""These hold the model against the base, which reads every row once before the first step."""
NEEDS = {
    "dpo": "DPO reads every pair once with the base model before the first step, to hold the answers against it.",
    "kto": "KTO reads every pair, and each question with another row's answer, once with the base model first: about twice DPO's wait. "
    "Batches of 8 pairs or more keep its measure of the distance to the base steady.",
    "orpo": "ORPO learns the better answers as well as the difference, without the base model to compare with. It likes more epochs.",
    "simpo": "SimPO compares without the base model, so nothing holds the answers near it. Watch the answers, and end early.",
}
STEEP = {"lora": 1e-4, "full": 5e-6}
"""Above these learning rates pairs soon spoil a model (DPO, KTO, SimPO)."""
ADVISED = {"lora": "0.00001", "full": "0.000001"}


def usual_beta(config: PreferenceConfig) -> float:
    return config.preference_beta or USUAL_BETA[config.preference]


def preference_issues(config: PreferenceConfig, data: DatasetFacts, *, method: str) -> list[Issue]:
    """What a person should know who learns from pairs; nothing for other rows."""
    if data.shape != "preference":
        return []
    issues = [Issue(level="warning", field="preference", message=NEEDS[config.preference]), *_thumb_issues(config, data)]
    if config.preference != "orpo" and config.learning_rate > STEEP[method]:
        issues.append(
            Issue(
                level="warning",
                field="learning_rate",
                message=f"That is steep for pairs of answers; the model may come apart. {ADVISED[method]} suits most.",
            )
        )
    if config.preference == "kto" and config.batch_size < 2:
        issues.append(Issue(level="error", field="batch_size", message="KTO compares rows of a batch: it needs at least 2."))
    return issues


def needs_pairs(config: PreferenceConfig, *, unpaired: int, rows: int) -> str:
    """Why these rows cannot be learnt from in this way; empty where they can."""
    if not unpaired or config.preference == "kto":
        return ""
    which = "Every row has" if unpaired == rows else "One row has" if unpaired == 1 else f"{unpaired:,} of {rows:,} rows have"
    return (
        f"{which} one answer with a thumb up or down. {NAMES[config.preference]} needs a better and a worse answer to each question: "
        "choose KTO, which learns from thumbs, or rows with both."
    )


def _thumb_issues(config: PreferenceConfig, data: DatasetFacts) -> list[Issue]:
    """What rows with one answer need; nothing where all are pairs."""
    if text := needs_pairs(config, unpaired=data.unpaired, rows=data.rows):
        return [Issue(level="error", field="preference", message=text)]
    if data.unpaired == data.rows and data.liked in (0, data.unpaired):
        side, other = ("up", "down") if data.liked else ("down", "up")
        text = f"Every answer has a thumb {side}. KTO learns from the difference: add answers with a thumb {other}."
        return [Issue(level="warning", field="preference", message=text)]
    return []
