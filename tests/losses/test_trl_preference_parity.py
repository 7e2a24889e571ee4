"""Preference losses, KTO and Bradley–Terry against TRL 1.16's own trainers, which run their own collators and losses.

Each trainer is built on a tiny random Qwen3 whose reference has other weights; TRL tokenises and collates our rows. Our
side reads token ids and masks out of that batch and takes log-probs from plain padded full logits of the same model.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import datasets
import pytest
import torch
import trl
from torch import Tensor

from preftune.contrast import mismatched
from preftune.losses import Denominators, TokenBatch, bradley_terry, kto_loss, preference_loss
from preftune.losses.preference import IMPLICIT
from preftune.records import Completion, Group, Prompt
from tests.losses.test_trl_parity import EOS, PAD, VOCAB, agree, tiny_model, tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # "APIs here are unstable": the version is pinned
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

# Prompts and completions differ in length, and the third rejected completion is an EOS alone.
PAIRS = {
    "prompt": ["w3 w4 w7 ", "w5 ", "w8 w9 w9 w2 w11 ", "w30 w12 "],
    "chosen": ["w6 w7", "w20 w21 w22 w23 w24", "w13", "w14 w15 w16"],
    "rejected": ["w17 w18 w19 w3", "w25", "", "w26 w27 w31"],
}
LABELS = {
    "prompt": ["w3 w4 w7 ", "w5 ", "w8 w9 w9 w2 w11 ", "w30 w12 ", "w33 w34 w35 "],
    "completion": ["w6 w7", "w20 w21 w22 w23 w24", "", "w14 w15 w16", "w36"],
    "label": [True, False, True, True, False],
}


def arguments(kind: Any, folder: Any, **choices: Any) -> Any:
    return kind(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        per_device_train_batch_size=5,
        **choices,
    )


def moved(model: Any) -> Any:
    """The reference: the same model with other weights, far enough that ratios matter."""
    reference = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return reference.eval().requires_grad_(False)


def collated(trainer: Any, rows: slice = slice(None)) -> Any:
    """A batch as the trainer's own collator makes it. The Trainer would drop other columns first."""
    every = list(trainer.train_dataset)[rows]
    trainer._set_signature_columns_if_needed()
    names = trainer._signature_columns
    return trainer.data_collator([{k: v for k, v in row.items() if k in names} for row in every])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trl")


@pytest.fixture(scope="module")
def dpo(folder):
    model = tiny_model()
    trainer = trl.DPOTrainer(
        model,
        moved(model),
        arguments(trl.DPOConfig, folder / "dpo"),
        train_dataset=datasets.Dataset.from_dict(PAIRS),
        processing_class=tokenizer(),
    )
    trainer.model.train()
    return trainer


@pytest.fixture(scope="module")
def cpo(folder):
    trainer = CPOTrainer(
        tiny_model(),
        arguments(CPOConfig, folder / "cpo", max_length=32, loss_type="simpo"),  # else it has no simpo_gamma to set
        train_dataset=datasets.Dataset.from_dict(PAIRS),
        processing_class=tokenizer(),
    )
    trainer.model.train()
    return trainer


@pytest.fixture(scope="module")
def orpo(folder):
    trainer = ORPOTrainer(
        tiny_model(),
        arguments(ORPOConfig, folder / "orpo", max_length=32),
        train_dataset=datasets.Dataset.from_dict(PAIRS),
        processing_class=tokenizer(),
    )
    trainer.model.train()
    return trainer


@pytest.fixture(scope="module")
def kto(folder):
    model = tiny_model()
    trainer = trl.KTOTrainer(
        model,
        moved(model),
        arguments(trl.KTOConfig, folder / "kto"),
        train_dataset=datasets.Dataset.from_dict(LABELS),
        processing_class=tokenizer(),
    )
    trainer.model.train()
    return trainer


@pytest.fixture(scope="module")
def reward(folder):
    from transformers import Qwen3ForSequenceClassification

    torch.manual_seed(1)
    config = tiny_model().config
    config.num_labels = 1
    trainer = trl.RewardTrainer(
        Qwen3ForSequenceClassification(config),
        arguments(trl.RewardConfig, folder / "reward"),
        train_dataset=datasets.Dataset.from_dict({**PAIRS, "margin": [0.0, 1.5, 0.25, 3.0]}),
        processing_class=tokenizer(),
    )
    trainer.model.train()
    return trainer


def flat_logprobs(model: Any, ids: Tensor, attention: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """log π of the written tokens of right-padded rows, and each one's row."""
    logprobs = model(input_ids=ids, attention_mask=attention).logits.float().log_softmax(-1)
    each = logprobs[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    written = written[:, 1:].bool()
    return each[written], written.nonzero()[:, 0]


def token_batch(model: Any, reference: Any, ids: Tensor, attention: Tensor, written: Tensor, **more: Any) -> TokenBatch:
    logprobs_T, sequence_T = flat_logprobs(model, ids, attention, written)
    reference_T = None
    if reference is not None:
        with torch.no_grad():
            reference_T, _ = flat_logprobs(reference, ids, attention, written)
    return TokenBatch(logprobs_T, sequence_T, len(ids), torch.ones(len(ids)), reference_logprobs_T=reference_T, **more)


def halves(rows: int) -> Tensor:
    """TRL's batch is all chosen rows, then all rejected ones."""
    return torch.stack([torch.arange(rows // 2), torch.arange(rows // 2, rows)], dim=1)


def totals(batch: TokenBatch) -> Denominators:
    lengths = torch.bincount(batch.sequence_T, minlength=batch.num_sequences)
    assert batch.pairs_P2 is not None
    return Denominators(
        tokens=float(lengths.sum()),
        sequences=float(batch.num_sequences),
        max_tokens=32.0,
        pairs=float(len(batch.pairs_P2)),
        chosen_tokens=float(lengths[batch.pairs_P2[:, 0]].sum()),
    )


def unconcatenated(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention and completion masks of a CPO or ORPO batch, by TRL's own concatenation."""
    joined = CPOTrainer.concatenated_inputs(batch, padding_value=PAD)
    return (
        joined["concatenated_input_ids"],
        joined["concatenated_attention_mask"],
        joined["concatenated_labels"] != -100,
    )


# Ours: name and numbers; TRL's: attributes of its trainer.
DPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dpo": ({"name": "dpo", "beta": 0.1}, {"loss_types": ["sigmoid"]}),
    "dpo, strong": ({"name": "dpo", "beta": 2.0}, {"loss_types": ["sigmoid"], "beta": 2.0}),
    "robust": (
        {"name": "robust", "beta": 0.5, "label_smoothing": 0.1},
        {"loss_types": ["robust"], "beta": 0.5, "label_smoothing": 0.1},
    ),
    "ipo": ({"name": "ipo", "beta": 0.1}, {"loss_types": ["ipo"]}),
    "hinge": ({"name": "hinge", "beta": 0.3}, {"loss_types": ["hinge"], "beta": 0.3}),
    "apo-zero": ({"name": "apo-zero", "beta": 0.1}, {"loss_types": ["apo_zero"]}),
    "apo-down": ({"name": "apo-down", "beta": 0.1}, {"loss_types": ["apo_down"]}),
    "dpo + sft": (
        {"name": "dpo", "beta": 0.1, "sft_weight": 0.7},
        {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
    ),
    "ipo + sft": (
        {"name": "ipo", "beta": 0.3, "sft_weight": 2.0},
        {"loss_types": ["ipo", "sft"], "loss_weights": [1.0, 2.0], "beta": 0.3},
    ),
}
DPO_DEFAULTS = {"beta": 0.1, "label_smoothing": 0.0, "loss_weights": [1.0]}


def against_dpo(trainer: Any, inputs: Any, choices: dict[str, Any]) -> None:
    theirs = trainer.compute_loss(trainer.model, inputs)
    rows = inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
    batch = token_batch(trainer.model, trainer.ref_model, *rows, pairs_P2=halves(len(rows[0])))
    agree(trainer.model, theirs, preference_loss(batch, totals(batch), **choices).loss)


@pytest.mark.parametrize("case", DPO)
def test_dpo_family(dpo, case, monkeypatch):
    choices, attributes = DPO[case]
    for name, value in {**DPO_DEFAULTS, **attributes}.items():
        monkeypatch.setattr(dpo, name, value)
    inputs = collated(dpo)
    assert inputs["completion_mask"].sum(1).tolist() == [3, 6, 2, 4, 5, 2, 1, 4], "each ends in EOS"
    against_dpo(dpo, inputs, choices)


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("name", ["conservative", "dpo"])
def test_conservative_dpo_is_aot_on_one_pair(dpo, row, name, monkeypatch):
    """TRL's `sigmoid` ignores label smoothing; `aot` has it and sorts the batch, which does nothing to one pair."""
    for attribute, value in {"loss_types": ["aot"], "beta": 0.4, "label_smoothing": 0.1, "loss_weights": [1.0]}.items():
        monkeypatch.setattr(dpo, attribute, value)
    against_dpo(dpo, collated(dpo, slice(row, row + 1)), {"name": name, "beta": 0.4, "label_smoothing": 0.1})


def test_dpo_metrics(dpo, monkeypatch):
    for attribute, value in {**DPO_DEFAULTS, "loss_types": ["sigmoid"]}.items():
        monkeypatch.setattr(dpo, attribute, value)
    inputs = collated(dpo)
    dpo._metrics["train"].clear()
    dpo.compute_loss(dpo.model, inputs)
    theirs = {name: values[0] for name, values in dpo._metrics["train"].items()}
    rows = inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
    batch = token_batch(dpo.model, dpo.ref_model, *rows, pairs_P2=halves(8))
    metrics = preference_loss(batch, totals(batch), name="dpo", beta=0.1).metrics
    names = {
        "rewards/chosen": "rewards/chosen",
        "rewards/rejected": "rewards/rejected",
        "rewards/margin": "rewards/margins",
        "rewards/accuracy": "rewards/accuracies",
        "logprobs/chosen": "logps/chosen",
        "logprobs/rejected": "logps/rejected",
    }
    for mine, name in names.items():
        assert metrics[mine].value() == pytest.approx(theirs[name], abs=1e-4), mine


# SimPO's γ/β of 0.55 at β 2.5 is TRL's simpo_gamma 1.375.
CPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "simpo": (
        {"name": "simpo", "beta": 2.5, "gamma_ratio": 0.55},
        {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.375, "cpo_alpha": 0.0},
    ),
    "simpo + sft": (
        {"name": "simpo", "beta": 2.0, "gamma_ratio": 0.5, "sft_weight": 0.3},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.3},
    ),
    "cpo": (
        {"name": "cpo", "beta": 0.1, "sft_weight": 1.0},
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
    ),
    "cpo without sft": (
        {"name": "cpo", "beta": 0.1},
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.0},
    ),
}


@pytest.mark.parametrize("case", CPO)
def test_cpo_and_simpo(cpo, case, monkeypatch):
    choices, attributes = CPO[case]
    for name, value in attributes.items():
        monkeypatch.setattr(cpo, name, value)
    inputs = collated_rows(cpo)
    theirs = cpo.compute_loss(cpo.model, inputs)
    batch = token_batch(cpo.model, None, *unconcatenated(inputs), pairs_P2=halves(8))
    agree(cpo.model, theirs, preference_loss(batch, totals(batch), **choices).loss)


def collated_rows(trainer: Any) -> Any:
    """CPO and ORPO keep all columns, strings among them."""
    return trainer.data_collator(list(trainer.train_dataset))


def test_orpo_odds_term(orpo, monkeypatch):
    """The odds term alone: TRL's NLL also counts the prompt, ours only what the chosen completion says."""
    inputs = collated_rows(orpo)
    rows = unconcatenated(inputs)
    for weight in (0.1, 1.0):
        monkeypatch.setattr(orpo, "beta", weight)
        theirs = orpo.compute_loss(orpo.model, inputs)
        ids, attention = rows[0][:4], rows[1][:4]
        # TRL's NLL is over all tokens but the first of each chosen row.
        whole, _ = flat_logprobs(orpo.model, ids, attention, attention)
        batch = token_batch(orpo.model, None, *rows, pairs_P2=halves(8))
        mine = preference_loss(batch, totals(batch), name="orpo", beta=1.0, odds_weight=weight).loss
        agree(orpo.model, theirs + whole.mean(), mine)


def test_orpo_differs_in_the_prompt_alone(orpo, monkeypatch):
    """With TRL's NLL over prompts and completions exchanged for one over completions, the whole losses agree."""
    monkeypatch.setattr(orpo, "beta", 0.1)
    inputs = collated_rows(orpo)
    ids, attention, written = unconcatenated(inputs)
    theirs = orpo.compute_loss(orpo.model, inputs)
    whole, _ = flat_logprobs(orpo.model, ids[:4], attention[:4], attention[:4])
    chosen, _ = flat_logprobs(orpo.model, ids[:4], attention[:4], written[:4])
    batch = token_batch(orpo.model, None, ids, attention, written, pairs_P2=halves(8))
    mine = preference_loss(batch, totals(batch), name="orpo", beta=1.0, odds_weight=0.1, sft_weight=1.0).loss
    agree(orpo.model, theirs + whole.mean() - chosen.mean(), mine)


def groups_of(ids: Tensor, attention: Tensor, written: Tensor) -> list[Group]:
    out = []
    for row, seen, wrote in zip(ids, attention.bool(), written.bool(), strict=True):
        prompt, completion = tuple(row[seen & ~wrote].tolist()), tuple(row[wrote].tolist())
        out.append(Group(Prompt(prompt, ""), (Completion(completion, (True,) * len(completion)),)))
    return out


def test_kto_contrast_is_trl_rotation(kto):
    """With distinct prompts, one completion each: row i gets the completion of row i − 1, as TRL's KL rows have it."""
    inputs = collated(kto)
    own = groups_of(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])
    theirs = groups_of(inputs["KL_input_ids"], inputs["KL_attention_mask"], inputs["KL_completion_mask"])
    assert mismatched(own) == theirs
    assert theirs[0].completions == own[-1].completions


def baseline(kto: Any, inputs: Any) -> Tensor:
    """Mean log-ratio of our own mismatched rows, each through the models alone and unpadded."""
    deltas = []
    for group in mismatched(groups_of(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])):
        (completion,) = group.completions
        ids = torch.tensor([group.prompt.ids + completion.ids])
        written = torch.arange(ids.shape[1])[None] >= len(group.prompt.ids)
        with torch.no_grad():
            mine, _ = flat_logprobs(kto.model, ids, torch.ones_like(ids), written)
            base, _ = flat_logprobs(kto.ref_model, ids, torch.ones_like(ids), written)
        deltas.append(mine.sum() - base.sum())
    return torch.stack(deltas).mean()


def swap_weights(one: Any, other: Any, request: Any) -> None:
    """Policy and reference change places, until the end of the test."""

    def swap() -> None:
        with torch.no_grad():
            for a, b in zip(one.parameters(), other.parameters(), strict=True):
                kept = a.clone()
                a.copy_(b)
                b.copy_(kept)

    swap()
    request.addfinalizer(swap)


@pytest.mark.parametrize("swap", [False, True], ids=["as is", "models swapped"])
@pytest.mark.parametrize(("beta", "desirable", "undesirable"), [(0.1, 1.0, 1.0), (0.5, 1.3, 0.7)])
def test_kto(kto, beta, desirable, undesirable, swap, monkeypatch, request):
    """Both ways round, so that z is once above its floor and once below."""
    monkeypatch.setattr(kto, "beta", beta)
    monkeypatch.setattr(kto, "desirable_weight", desirable)
    monkeypatch.setattr(kto, "undesirable_weight", undesirable)
    inputs = collated(kto)
    assert inputs["label"].tolist() == LABELS["label"]
    if swap:
        swap_weights(kto.model, kto.ref_model, request)
    kto._metrics["train"].clear()
    theirs = kto.compute_loss(kto.model, inputs)
    rows = inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
    batch = token_batch(
        kto.model,
        kto.ref_model,
        *rows,
        advantages_S=torch.where(inputs["label"], 1.0, -1.0),
        baseline=baseline(kto, inputs),
    )
    denominators = Denominators(tokens=0.0, sequences=5.0, max_tokens=32.0)
    output = kto_loss(batch, denominators, beta=beta, desirable_weight=desirable, undesirable_weight=undesirable)
    agree(kto.model, theirs, output.loss)
    logged = kto._metrics["train"]
    pairs = {"rewards/chosen": "rewards/chosen", "rewards/rejected": "rewards/rejected", "kl": "kl"}
    for mine, name in {**pairs, "logprobs/chosen": "logps/chosen", "logprobs/rejected": "logps/rejected"}.items():
        assert output.metrics[mine].value() == pytest.approx(logged[name][0], abs=1e-4), mine
    raw, floored = output.metrics["kl/raw"].value(), output.metrics["kl"].value()
    assert raw is not None and floored == pytest.approx(max(raw, 0.0))
    assert (raw > 0.0) is not swap, "z should be above its floor one way round and at it the other"


def scores(model: Any, ids: Tensor, attention: Tensor) -> Tensor:
    """The head at each row's last real token, found by position."""
    hidden = model.model(input_ids=ids, attention_mask=attention).last_hidden_state
    last = hidden[torch.arange(len(ids)), attention.sum(1) - 1]
    return model.score(last).squeeze(-1).float()


@pytest.mark.parametrize("margins", [True, False], ids=["margins", "no margins"])
@pytest.mark.parametrize("center", [None, 0.01, 0.5])
def test_reward_model(reward, margins, center, monkeypatch):
    monkeypatch.setattr(reward.args, "center_rewards_coefficient", center)
    inputs = collated(reward)
    assert inputs["margin"].tolist() == [0.0, 1.5, 0.25, 3.0]
    if not margins:
        inputs.pop("margin")
    ids, attention = inputs["input_ids"], inputs["attention_mask"]
    reward._metrics["train"].clear()
    theirs = reward.compute_loss(reward.model, inputs)
    batch = TokenBatch(
        logprobs_T=torch.empty(0),
        sequence_T=torch.empty(0, dtype=torch.long),
        num_sequences=8,
        weights_S=torch.ones(8),
        pairs_P2=halves(8),
        margins_P=inputs["margin"] if margins else None,
        scores_S=scores(reward.model, ids, attention),
        lengths_S=attention.sum(1),
    )
    output = bradley_terry(batch, Denominators(0.0, 8.0, 32.0, pairs=4.0), center=center or 0.0)
    agree(reward.model, theirs, output.loss)
    logged = reward._metrics["train"]
    assert output.metrics["rewards/accuracy"].value() == pytest.approx(logged["accuracy"][0])
    assert output.metrics["rewards/margin"].value() == pytest.approx(logged["margin"][0], abs=1e-4)


def test_every_loss_has_a_twin():
    compared = {choices["name"] for choices, _ in [*DPO.values(), *CPO.values()]} | {"conservative", "orpo"}
    assert compared == set(IMPLICIT)
    assert PAD != EOS and VOCAB > 36
