"""Recipes: what a run does, as strict typed data. Imports no torch.

A recipe is a YAML file. Every field is also a typed flag (`--train.learning_rate 1e-5`); unknown keys
are errors that name the nearest valid one. With `stages:` a recipe is several runs in a row: each stage
inherits the recipe's other sections and overrides what it names.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Strict(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class LoraConfig(Strict):
    """A low-rank adapter (peft). Absent: all weights are trained."""

    r: int = Field(32, ge=1, description="rank")
    alpha: float = Field(64.0, gt=0, description="scale; the update is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: str | list[str] = Field("all-linear", description="module names to adapt, or all-linear")


class ModelConfig(Strict):
    """The model that is trained."""

    path: str = Field(description="hub id, folder, or stage:NAME for an earlier stage's result")
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the weights; auto: float32, or bfloat16 for a frozen base on CUDA"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    lora: LoraConfig | None = Field(None, description="train a LoRA adapter instead of all weights")
    on_adapter: Literal["continue", "stack", "merge", "fresh"] | None = Field(
        None,
        description="when path is an adapter: continue training it, stack a new one on it, merge it into its base "
        "first, or leave it out and start a fresh one on the bare base. Must be chosen",
    )
    reference: Literal["base", "start"] | None = Field(
        None,
        description="with on_adapter: continue, where the method compares with a reference: the bare base, or the "
        "adapter as it was at the start",
    )
    reference_path: str | None = Field(
        None, description="another model as the reference: folder, hub id or stage:NAME; default: as the model starts"
    )
    trust_remote_code: bool = Field(False, description="run code that ships with the model")
    attention: Literal["auto", "shared", "padded"] = Field(
        "auto", description="shared-prompt packing, padding, or let the probe at load time decide"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")


class ColumnRule(Strict):
    """How one standard column is made from a row. A bare string in the recipe means {from: that string}."""

    source: str | None = Field(None, alias="from", description="column to read")
    match: str | None = Field(None, description="regular expression; the value becomes its first group")
    replace: list[tuple[str, str]] = Field(
        default_factory=list, description="[pattern, replacement] pairs applied in order"
    )
    template: str | None = Field(
        None, description="text with {column} fields, filled after the other columns are mapped"
    )
    strip: bool = Field(True, description="strip white space around the value")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _one_origin(self) -> ColumnRule:
        if (self.source is None) == (self.template is None):
            raise ValueError("a column needs exactly one of `from` and `template`")
        return self


class ExtraResponse(Strict):
    """One more response to each prompt, from a column of its own, with a score that is the same in every row."""

    column: str = Field(description="column that holds the response")
    score: float | None = Field(None, description="its score, higher is better")
    rank: float | None = Field(None, description="its rank, 1 is best")
    source: str | None = Field(None, description="who wrote it, as text")

    @model_validator(mode="after")
    def _one_grade(self) -> ExtraResponse:
        if (self.score is None) == (self.rank is None):
            raise ValueError("give exactly one of `score` and `rank`, a number")
        return self


class ResponsesRule(Strict):
    """How the responses of the ranked format are made from a row. A bare string in the recipe means {from: it}."""

    column: str = Field(alias="from", description="column that holds the list of responses")
    text: str | None = Field(None, description="field of each response that holds its text or messages")
    score: str | None = Field(
        None,
        description="field with its score, higher is better, true and false count 1 and 0; for a list of texts: a "
        "column of the row with a list of scores",
    )
    rank: str | None = Field(None, description="instead of score: field or column with its rank, 1 is best")
    source: str | None = Field(None, description="field or column that says who wrote it")
    also: list[ExtraResponse] = Field(default_factory=list, description="single columns that are responses, too")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _one_scale(self) -> ResponsesRule:
        if self.score is not None and self.rank is not None:
            raise ValueError("give `score` or `rank`, not both")
        if self.also and self.score is None and self.rank is None:
            raise ValueError("`also` needs the same scale as the other responses: name their `score` or `rank`")
        for number, extra in enumerate(self.also):
            if (extra.rank is None) != (self.rank is None):
                raise ValueError(f"also[{number}] must be given by `{'score' if self.rank is None else 'rank'}`, too")
        return self


class SourceConfig(Strict):
    """One source of data."""

    path: str = Field(description="hub id, file (.jsonl .json .parquet .csv) or folder saved by `datasets`")
    name: str | None = Field(None, description="hub configuration name")
    split: str = Field("train", description="hub split")
    revision: str | None = Field(None, description="hub revision")
    format: Literal["auto", "prompt", "prompt-completion", "text", "messages", "preference", "unpaired", "ranked"] = (
        Field("auto", description="row format; auto decides from the columns")
    )
    columns: dict[str, ColumnRule] = Field(
        default_factory=dict, description="standard column → where it comes from; unmapped columns keep their names"
    )
    responses: ResponsesRule | None = Field(
        None, description="several responses to each prompt, with scores or ranks; makes the ranked format"
    )
    system: str | None = Field(None, description="system message put before each prompt")
    chat: bool = Field(False, description="turn a plain prompt into a user message")
    weight: float = Field(1.0, gt=0, description="rows are drawn in proportion to weight × size")
    limit: int | None = Field(None, ge=1, description="use only the first N rows")
    on_bad_row: Literal["error", "skip"] = Field("error", description="stop at a bad row, or skip and count it")

    @field_validator("columns", mode="before")
    @classmethod
    def _short_rules(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: {"from": v} if isinstance(v, str) else v for k, v in value.items()}
        return value

    @field_validator("responses", mode="before")
    @classmethod
    def _short_responses(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _responses_are_ranked(self) -> SourceConfig:
        if self.responses is not None and self.format not in ("auto", "ranked"):
            raise ValueError(f"`responses` makes the ranked format, but `format` is {self.format}; remove one of them")
        return self


class TokensConfig(Strict):
    """The token contract's choices."""

    chat_template: str | None = Field(
        None, description="Jinja text or a .jinja file that overrides the model's template"
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="extra arguments for the template")
    max_prompt_tokens: int = Field(1024, ge=1, description="longest prompt")
    max_completion_tokens: int = Field(1024, ge=1, description="longest completion read from data")
    on_too_long: Literal["drop", "truncate-prompt-left", "error"] = Field(
        "drop", description="what to do with longer rows"
    )
    drop_above_percentile: float | None = Field(
        None, gt=0, le=100, description="drop prompts longer than this percentile of prompt lengths"
    )
    loss_on: Literal["all-assistant", "last"] = Field(
        "all-assistant", description="assistant turns of multi-turn rows that carry loss"
    )


class SamplingConfig(Strict):
    """How the policy writes completions."""

    group_size: int = Field(8, ge=1, description="completions per prompt (G)")
    max_tokens: int = Field(256, ge=1, description="longest completion")
    temperature: float = Field(1.0, gt=0, description="also divides the trainer's logits")
    top_k: int = Field(0, ge=0, description="keep the k likeliest tokens (0: all)")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the smallest set of tokens with this mass")
    min_p: float = Field(0.0, ge=0, lt=1, description="drop tokens under this share of the likeliest one's probability")
    repetition_penalty: float = Field(1.0, gt=0, description="divide positive logits of seen tokens by this")
    stop: list[str] = Field(default_factory=list, description="strings that end a completion")
    rows: int = Field(256, ge=1, description="completions decoded at once")
    rollout: str | None = Field(
        None, description="multi-turn rollout: calculator, or module:function / file.py:function"
    )
    max_turns: int = Field(4, ge=1, description="turns of a multi-turn rollout")


class RewardConfig(Strict):
    """One reward and its weight."""

    name: str = Field(description="built-in name, module:function, or file.py:function")
    weight: float = Field(1.0, description="factor in the weighted sum")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the reward")
    timeout: float = Field(30.0, gt=0, description="seconds for one batch")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="stop the run, or count the failure and leave the row's value out"
    )
    isolate: Literal["auto", "process", "inline"] = Field(
        "auto", description="run in a worker process, inline under a watchdog, or process when importable"
    )


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


class CollectConfig(Strict):
    """Answers drawn once, before training: iterative-dpo, rft, human."""

    path: str | None = Field(None, description="file of answers drawn and scored before, instead of drawing them")
    margin: float = Field(
        0.0, ge=0, description="iterative-dpo: pairs whose scores differ by no more than this are left out"
    )
    reference: Literal["previous", "first"] = Field(
        "previous", description="iterative-dpo in rounds (repeat): the model of the round before, or the first one"
    )
    keep: int = Field(1, ge=1, description="rft: best completions kept of each prompt")
    min_score: float | None = Field(None, description="rft: completions under this score are never kept")
    spread_only: bool = Field(False, description="rft: leave prompts out whose completions all have the same score")


class HumanConfig(Strict):
    """How people rate answers: preftune human."""

    rate: Literal["score", "rank"] = Field("score", description="raters give each answer a score, or rank them")
    low: float = Field(0.0, description="lowest score")
    high: float = Field(10.0, description="highest score")
    raters: int = Field(1, ge=1, description="ratings wanted for each answer")
    normalize_raters: bool = Field(False, description="bring each rater's scores to mean 0 and deviation 1 first")
    prompts: int = Field(32, ge=1, description="prompts of one round")

    @model_validator(mode="after")
    def _a_range(self) -> HumanConfig:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be under high {self.high:g}")
        return self


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


class TrainConfig(Strict):
    """Optimisation."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; give steps or epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the data; give steps or epochs")
    batch_size: int = Field(8, ge=1, description="prompts (groups) per optimizer step")
    updates_per_batch: int = Field(1, ge=1, description="passes over each sampled batch")
    minibatches: int = Field(
        1, ge=1, description="optimizer updates of one pass: the batch's prompts are split into this many parts"
    )
    learning_rate: float = Field(1e-5, ge=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="after warm-up")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps with rising learning rate")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled decay (matrices only)")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW β₁")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW β₂")
    adam_eps: float = Field(1e-8, gt=0, description="AdamW ε")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm is clipped to this")
    max_tokens_per_batch: int | None = Field(
        None,
        ge=1,
        description="tokens of one packed forward pass; default: 8192 on a GPU, on a CPU what the largest group needs, "
        "from 2048 to 8192",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="autocast; auto: bf16 on CUDA, fp32 on CPU")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    threads: int | None = Field(None, ge=1, description="CPU threads (default: torch's choice)")
    reference_logprobs: Literal["cached", "live"] = Field(
        "cached",
        description="on a fixed data set: compute the reference's log-probs once, before training, and keep them on "
        "disk, or compute them at every step (full fine-tuning then holds a frozen copy)",
    )
    reference_cache: str | None = Field(
        None, description="folder for the reference's log-probs of fixed data (default: ~/.cache/preftune/reference)"
    )
    normalize: bool = Field(
        False,
        description="reward models: record mean and deviation of the training scores in the model; preftune applies "
        "them wherever it reads that model",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either train.steps or train.epochs, not both")
        return self


class EvalConfig(Strict):
    """Measuring on rows that are never trained on."""

    data: list[SourceConfig] = Field(default_factory=list, description="validation rows (choose the best checkpoint)")
    test: list[SourceConfig] = Field(default_factory=list, description="held-out rows, measured before and after only")
    holdout: int = Field(0, ge=0, description="without data: take this many rows out of the training data")
    every: int | None = Field(None, ge=1, description="steps between measurements on validation rows")
    best: str | None = Field(None, description="metric that picks the best checkpoint, e.g. reward/accuracy")
    higher_is_better: bool = Field(True, description="direction of `best`")
    patience: int | None = Field(None, ge=1, description="stop after this many measurements without a new best")
    limit: int | None = Field(None, ge=1, description="use at most this many rows of each")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    max_tokens: int | None = Field(None, ge=1, description="longest completion (default: sampling.max_tokens)")


class LogConfig(Strict):
    """What is written down during a run."""

    sinks: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        ["tensorboard"], description="besides metrics.jsonl, which is always written"
    )
    samples_every: int = Field(10, ge=1, description="steps between samples written to samples.jsonl")
    samples: int = Field(8, ge=1, description="prompts whose completions are written each time")
    stop_on_collapse: bool = Field(
        True, description="stop when all prompts get the same text, keeping the last good checkpoint"
    )


class Recipe(Strict):
    """Everything one run needs. Written, fully resolved, into the run folder."""

    method: str = Field(
        description="a row of the table of methods: sft, dpo, kto, reward, grpo, ppo, gmpo, iterative-dpo, rft, human"
    )
    name: str = Field("run", description="name of the run or stage")
    repeat: int = Field(
        1, ge=1, description="rounds: this stage runs so many times, each from the result of the one before"
    )
    output: str | None = Field(None, description="run folder; default runs/NAME")
    seed: int = Field(0, ge=0, description="seed of everything random")
    model: ModelConfig
    data: list[SourceConfig] = Field(min_length=1, description="training data")
    tokens: TokensConfig = TokensConfig()
    sampling: SamplingConfig = SamplingConfig()
    rewards: list[RewardConfig] = Field(
        default_factory=list, description="scores of completions; methods on fixed data use them for measuring alone"
    )
    policy: PolicyConfig = PolicyConfig()
    value: ValueConfig = ValueConfig()
    collect: CollectConfig = CollectConfig()
    human: HumanConfig = HumanConfig()
    gmpo: GmpoConfig = GmpoConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, SourceConfig)) else value


class Pipeline(Strict):
    """A recipe with its stages resolved: each is a complete Recipe, run in order."""

    name: str = "run"
    output: str | None = None
    stages: list[Recipe] = Field(min_length=1)
