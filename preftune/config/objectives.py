"""What is optimised: the sections of policy gradients, value heads, GMPO and the losses on fixed data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from preftune.config.base import LoraConfig, Strict


class PolicyConfig(Strict):
    """The four choices of an on-policy objective, and what is done to scores before. A preset fills what is empty."""

    preset: str = Field("grpo", description="vetted combination, see docs/methods/grpo.md")
    advantage: Literal["group-std", "group-mean", "batch-std", "leave-one-out", "gae"] | None = Field(
        None, description="how scores become advantages; gae trains a value head (section value)"
    )
    ratio: Literal["token", "sequence", "sequence-sum"] | None = Field(
        None, description="level of the importance ratio"
    )
    clip: Literal["ppo", "cispo", "none"] | None = Field(None, description="how the ratio is limited")
    clip_low: float | None = Field(None, ge=0, description="lower clip ε")
    clip_high: float | None = Field(None, ge=0, description="upper clip ε; for cispo the cap C")
    aggregate: Literal["token-mean", "sequence-mean", "constant"] | None = Field(
        None, description="how token losses become one number"
    )
    beta: float | None = Field(None, ge=0, description="weight of the KL penalty to the reference")
    kl: Literal["k2", "k3", "reward"] | None = Field(
        None, description="KL penalty as a loss (estimator k2 or k3), or k1 taken off the reward"
    )
    kl_target: float | None = Field(
        None, gt=0, description="kl: reward: β adapts until the KL of a completion is near this many nats"
    )
    kl_horizon: int = Field(
        10_000, ge=1, description="kl_target: completions over which β changes by about a fifth at most"
    )
    sampler_cap: float | None = Field(
        2.0, gt=0, description="truncated importance sampling: weight min(π_trainer / π_sampler, this); null: off"
    )
    combine: Literal["sum", "normalize"] = Field(
        "sum",
        description="several rewards: weighted sum first, or each normalised in its group, then weighted, summed and "
        "normalised over the batch (GDPO)",
    )
    resample: int | None = Field(
        None, ge=0, description="dynamic sampling: draw up to this many further batches to replace dead groups"
    )
    overlong: float | None = Field(
        None, ge=0, lt=1, description="last share of max_tokens over which a linear penalty grows to 1 (0: none)"
    )
    mask_truncated: bool = Field(False, description="completions cut at max_tokens carry no loss")
    missing_eos_penalty: float = Field(0.0, ge=0, description="subtracted from the score of a completion without EOS")
    missing_eos_score: float | None = Field(
        None, description="instead of the penalty: the score of every completion without EOS"
    )


class ValueConfig(Strict):
    """The value head that policy.advantage: gae trains."""

    path: str | None = Field(
        None,
        description="what it starts from: a reward model (folder, hub id, stage:NAME) or policy: the policy's own "
        "weights with a head of zeros; default: the recipe's reward-model where it has the policy's tokenizer",
    )
    gamma: float = Field(1.0, ge=0, le=1, description="γ, discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="λ of GAE")
    clip: float | None = Field(0.2, gt=0, description="how far a value may move from its old one; null: no clip")
    coefficient: float = Field(0.1, ge=0, description="weight of the value loss")
    whiten: bool = Field(True, description="advantages to mean 0 and deviation 1 over the batch's tokens")
    learning_rate: float | None = Field(None, ge=0, description="peak learning rate (default train.learning_rate)")
    warmup_steps: int = Field(0, ge=0, description="steps that train the value head alone, before the policy moves")
    lora: LoraConfig | None = Field(
        None, description="shape of its adapter when the policy is a LoRA adapter (default: the policy's)"
    )


class CriticConfig(Strict):
    """GMPO's generative critic: an adapter of its own on the policy's base that explains and scores answers."""

    kind: Literal["generative", "none"] = Field(
        "generative", description="generative, or none: scores come from rewards or from the data's own column"
    )
    lora: LoraConfig | None = Field(None, description="shape of the critic's adapter (default: the policy's)")
    truth: str | None = Field(
        None,
        description="reward that says how right an answer is, 0 to 1 (accuracy, module:function, …); it trains the "
        "critic and never scores the policy. Without it the critic stays frozen",
    )
    truth_args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of that reward")
    reference: str | None = Field(None, description="column with a reference answer that the critic reads")
    prompt: str | None = Field(None, description="file with the critic's instruction instead of the built-in one")
    every: int = Field(1, ge=1, description="N: the critic learns at every Nth policy step")
    learning_rate: float | None = Field(None, ge=0, description="peak learning rate (default train.learning_rate)")
    max_tokens: int = Field(128, ge=1, description="longest critique")
    temperature: float = Field(1.0, gt=0, description="of the critique's draw")
    cold_start: int = Field(50, ge=0, description="steps of SFT on critiques made from verified answers, before step 1")
    cold_start_batch: int = Field(32, ge=1, description="critiques in each of these steps")
    min_parsed: float = Field(0.5, ge=0, le=1, description="the run stops when a smaller share of critiques parses")
    joint: bool = Field(
        False, description="the critic sees all answers to a prompt at once and writes their scores, baseline and "
        "temperature, which are logged beside the computed ones"
    )  # fmt: skip


class GmpoConfig(Strict):
    """GMPO: answers weighted by exp(advantage / temperature). docs/methods/gmpo.md has the formulas."""

    answers: Literal["policy", "data"] = Field(
        "policy", description="the policy answers at every step, or the data's own answers are used (offline)"
    )
    baseline: Literal["group", "batch", "none"] = Field(
        "group", description="mean score of the prompt's answers, or of all; none: scores are advantages already"
    )
    temperature: float | Literal["dynamic"] = Field(
        "dynamic", description="τ, or dynamic: τ₀ times the recent deviation of scores"
    )
    scale: float = Field(1.0, gt=0, description="dynamic: τ₀")
    min_temperature: float = Field(0.02, gt=0, description="dynamic: τ never falls under this")
    max_temperature: float = Field(1.0, gt=0, description="dynamic: τ never rises above this")
    buffer: int = Field(64, ge=1, description="dynamic: groups whose variance τ follows")
    max_weight: float = Field(20.0, gt=1, description="w_max: largest weight of an answer")
    min_spread: float = Field(0.02, ge=0, description="groups whose scores differ by less are left out")
    beta: float = Field(0.05, ge=0, description="λ, weight of the KL to the reference")
    meta_prompt: str | None = Field(
        None, description="file with a text put before the question when sampling, left out when training"
    )
    lessons: int = Field(0, ge=0, description="lessons from the critic's explanations kept behind the meta-prompt")
    field: str = Field("field", description="column that results are told apart by, where the data has it")
    critic: CriticConfig = CriticConfig()


class LossConfig(Strict):
    """The loss on preferences or labels. Empty fields take the named loss's default, see docs/methods/dpo.md."""

    name: str | None = Field(
        None,
        description="dpo, conservative, robust, ipo, hinge, apo-zero, apo-down, simpo, orpo, cpo; default: the "
        "method's own loss",
    )
    beta: float | None = Field(None, gt=0, description="β: strength of the pull to the reference")
    label_smoothing: float | None = Field(
        None, ge=0, lt=0.5, description="ε: share of pairs taken to be the wrong way round"
    )
    gamma_ratio: float | None = Field(None, ge=0, description="simpo: target margin γ as a share of β")
    odds_weight: float | None = Field(None, ge=0, description="orpo: λ, weight of the odds-ratio term")
    sft_weight: float | None = Field(None, ge=0, description="α: weight of the chosen completions' NLL")
    pairs: Literal["all", "best-worst"] = Field(
        "all", description="of several responses to one prompt: every pair of different score, or best and worst alone"
    )
    margin: Literal["auto", "none", "scores"] = Field(
        "auto",
        description="reward models: score distance asked for; auto: the row's margin column where it has one, "
        "scores: the distance of the data's scores or ranks",
    )
    center: float | None = Field(None, ge=0, description="reward models: c, weight of (s_w + s_l)²")
    p_max: float | None = Field(
        None,
        gt=0,
        le=1,
        description="reward models: answer tokens that the generator gave a higher probability are near-certain, and "
        "the gradient that reaches their hidden states is limited; null: no limit",
    )
    g_max: float | None = Field(
        0.001,
        ge=0,
        description="p_max: largest norm of that gradient at each layer, of one pair's loss; null: measure, limit "
        "nothing",
    )
    generator: str | None = Field(
        None,
        description="p_max: the language model whose probabilities count, folder or hub id (default: the model that "
        "training starts from)",
    )
    desirable_weight: float | Literal["auto"] = Field(
        1.0, description="kto: λ_D; auto balances λ_D·n_D : λ_U·n_U into [1, 4/3]"
    )
    undesirable_weight: float = Field(1.0, gt=0, description="kto: λ_U")
    label_threshold: float = Field(
        0.5, description="kto (and sft on labelled rows): a completion with this score or more is desirable"
    )

    @field_validator("desirable_weight")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "auto" and not value > 0:
            raise ValueError("must be auto or a number above 0")
        return value
