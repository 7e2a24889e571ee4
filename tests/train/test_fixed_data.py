"""Preferences and labels through the loop: gradients against plain code, KTO's baseline, the reference's log-probs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from preftune.config import Recipe
from preftune.contrast import mismatched
from preftune.errors import DataError, PreftuneError
from preftune.methods import PREFERENCE_LOSSES
from preftune.records import Completion, Group, Prompt
from preftune.train import batch as batches
from preftune.train.batch import backward
from preftune.train.evaluation import Measurement
from preftune.train.loop import run
from preftune.train.progress import Progress
from preftune.train.reference import build_store, weights_hash
from preftune.train.session import Session
from tests import tiny
from tests.train.conftest import merged

Make = Callable[..., Recipe]

LENGTHS = [(4, 2), (3, 5, 6), (2, 2), (7, 1, 3, 5)]
SCORES = [(1.0, 0.0), (0.0, 2.0, 1.0), (0.0, 1.0), (1.0, 0.0, 0.0, 1.0)]


def groups(prompt: int = 5) -> list[Group]:
    """Random groups with scores; their prompts have `prompt` tokens and more."""
    rng = torch.Generator().manual_seed(11)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 55, (n,), generator=rng).tolist())

    return [
        Group(
            Prompt(ids(prompt + g), "", where=f"row {g}"),
            tuple(Completion(ids(n), (True,) * n, score=s) for n, s in zip(lengths, scores, strict=True)),
        )
        for g, (lengths, scores) in enumerate(zip(LENGTHS, SCORES, strict=True))
    ]


@pytest.fixture
def fixed(home: Path, tmp_path: Path) -> Make:
    """Makes a recipe on preferences: right sums are better than wrong ones."""
    rows = [
        {**row, "chosen": row["completion"], "rejected": f"{int(row['completion']) + 1 + n % 3}"}
        for n, row in enumerate(tiny.sums(35))
    ]
    pairs = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]
    tiny.write(tmp_path / "pairs.jsonl", pairs[:28])
    tiny.write(tmp_path / "held.jsonl", pairs[28:])
    labels = [
        {"prompt": row["prompt"], "completion": row["chosen" if n % 2 else "rejected"], "label": bool(n % 2)}
        for n, row in enumerate(rows[:28])
    ]
    tiny.write(tmp_path / "labels.jsonl", labels)

    def make(method: str = "dpo", **changes: Any) -> Recipe:
        base = {
            "method": method, "name": method, "model": {"path": str(home / "model")}, "log": {"sinks": []},
            "data": [{"path": str(tmp_path / ("labels.jsonl" if method == "kto" else "pairs.jsonl"))}],
            "train": {
                "steps": 6, "batch_size": 4, "learning_rate": 3e-3, "checkpoint_every": 2,
                **({} if method == "reward" else {"reference_cache": str(tmp_path / "cache")}),
            },
        }  # fmt: skip
        return Recipe.model_validate(merged(base, changes))

    return make


def opened(recipe: Recipe) -> Session:
    return Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))


def moved(session: Session) -> Session:
    """Away from the reference, so that every term of a loss has a gradient."""
    if session.method.needs_reference(session.recipe):
        session.policy.keep_reference()
    torch.manual_seed(9)
    for _, parameter in session.parameters:
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    session.fresh = False
    return session


def gradient(session: Session, batch: list[Group], budget: int) -> tuple[Tensor, dict[str, float]]:
    session.optimizer.zero_grad(set_to_none=True)
    made = session.make_batch(batch)
    parts, _ = backward(session.engine, made, session.method, session.recipe, budget)
    grads = [p.grad.flatten() for _, p in session.parameters if p.grad is not None]
    return torch.cat(grads), {k: v for k, p in parts.items() if (v := p.value()) is not None}


def close(ours: Tensor, theirs: Tensor) -> bool:
    return float((ours - theirs).norm()) < 1e-5 * float(theirs.norm())


# --------------------------------------------------------------------------------------------- one batch, cut or whole


@pytest.mark.parametrize("what", [*PREFERENCE_LOSSES, "best-worst", "kto", "reward", "reward margins"])
def test_a_cut_batch_has_the_gradient_of_the_whole(fixed: Make, what: str) -> None:
    changes: dict[str, Any] = {"train": {"reference_logprobs": "live", "reference_cache": None}}
    if what == "best-worst":
        recipe = fixed(loss={"pairs": "best-worst"}, **changes)
    elif what == "kto":
        recipe = fixed("kto", **changes)
    elif what.startswith("reward"):
        recipe = fixed("reward", loss={"margin": "scores" if "margins" in what else "none"})
    else:
        recipe = fixed(loss={"name": what, "sft_weight": None if what == "orpo" else 0.3}, **changes)
    session = moved(opened(recipe))
    whole, metrics = gradient(session, groups(), 8192)
    assert whole.norm() > 1e-4
    for budget, backwards in ((40, False), (24, True), (21, False)):
        # another order would pair other rows for z
        turned = backwards and what != "kto"
        cut, parts = gradient(session, groups()[::-1] if turned else groups(), budget)
        assert close(cut, whole)
        for name, value in metrics.items():
            assert parts[name] == pytest.approx(value, abs=2e-5), name


def plain_logprobs(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
    """Σ log π of a completion by transformers alone: one row, no packing, full logits."""
    row = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=row).logits[0].log_softmax(-1)
    places = torch.arange(len(prompt) - 1, row.shape[1] - 1)
    return logits[places, row[0, len(prompt) :]].sum()


def test_dpo_through_the_loop_is_the_papers_formula(fixed: Make) -> None:
    live = {"train": {"reference_logprobs": "live", "reference_cache": None}}
    session = moved(opened(fixed(**live)))
    ours, metrics = gradient(session, groups(), 8192)
    session.optimizer.zero_grad(set_to_none=True)
    losses = []
    with session.engine.plain():
        for group in groups():
            policy = [plain_logprobs(session.policy.model, group.prompt.ids, c.ids) for c in group.completions]
            with torch.no_grad(), session.policy.reference() as frozen:
                base = [plain_logprobs(frozen, group.prompt.ids, c.ids) for c in group.completions]
            for w, better in enumerate(group.completions):
                for l, worse in enumerate(group.completions):  # noqa: E741 - the papers' letter for the loser
                    if (better.score or 0) > (worse.score or 0):
                        h = (policy[w] - base[w]) - (policy[l] - base[l])
                        losses.append(-torch.nn.functional.logsigmoid(0.1 * h))
        loss = torch.stack(losses).mean()
        loss.backward()
    theirs = torch.cat([p.grad.flatten() for _, p in session.parameters if p.grad is not None])
    assert len(losses) == 1 + 3 + 1 + 4
    assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


# ------------------------------------------------------------------------------------------------------------- KTO's z


@pytest.mark.parametrize("prompt", [3, 40])  # apart, and in one joint pack
def test_kto_is_the_papers_formula_with_z_over_the_whole_batch(fixed: Make, prompt: int) -> None:
    live = {"train": {"reference_logprobs": "live", "reference_cache": None}}
    session = moved(opened(fixed("kto", **live)))
    made = session.make_batch(groups(prompt))
    assert (batches._joint_pack(session.engine, made, 8192) is not None) == (prompt == 40)
    ours, metrics = gradient(session, groups(prompt), 8192)
    session.optimizer.zero_grad(set_to_none=True)
    with session.engine.plain():

        def delta(prompt: Prompt, completion: Completion) -> Tensor:
            with torch.no_grad(), session.policy.reference() as frozen:
                base = plain_logprobs(frozen, prompt.ids, completion.ids)
            return plain_logprobs(session.policy.model, prompt.ids, completion.ids) - base

        with torch.no_grad():
            others = [delta(g.prompt, c) for g in mismatched(groups(prompt)) for c in g.completions]
            raw = torch.stack(others).mean()
        z = raw.clamp(min=0)
        losses = []
        for group in groups(prompt):
            for completion in group.completions:
                h = delta(group.prompt, completion) - z
                sign = 1 if (completion.score or 0) >= 0.5 else -1
                losses.append(1 - torch.sigmoid(0.1 * sign * h))
        loss = torch.stack(losses).mean()
        loss.backward()
    theirs = torch.cat([p.grad.flatten() for _, p in session.parameters if p.grad is not None])
    assert metrics["kl/raw"] == pytest.approx(float(raw), abs=1e-4)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


def test_a_joint_pack_changes_nothing(fixed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = moved(opened(fixed("kto", train={"reference_logprobs": "live", "reference_cache": None})))
    joint, metrics = gradient(session, groups(40), 8192)
    monkeypatch.setattr(batches, "_joint_pack", lambda *_: None)
    apart, others = gradient(session, groups(40), 8192)
    assert close(joint, apart)
    assert metrics == pytest.approx(others, abs=1e-5)


def test_a_long_prompt_may_meet_a_long_completion_of_another(fixed: Make, tmp_path: Path) -> None:
    """The certificate's smallest packs must hold the mismatched completions too."""
    rows = [
        {"prompt": "7+1=" * 9, "completion": "8", "label": True},
        {"prompt": "1=", "completion": "1" * 30, "label": False},
    ]
    path = tiny.write(tmp_path / "uneven.jsonl", rows)
    result = run(fixed("kto", data=[{"path": str(path)}], train={"steps": 2, "batch_size": 2}), tmp_path / "run")
    assert result.steps == 2


def test_kto_needs_two_prompts(fixed: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels.jsonl:\d+: every completion of this batch belongs to one prompt.*"):
        run(fixed("kto", train={"batch_size": 1}), tmp_path / "run")


@pytest.mark.parametrize(("good", "weight", "balance"), [(14, 1.0, 1.0), (4, 6.0, 1.0), (24, 2 / 9, 4 / 3)])
def test_lambda_auto_balances_the_labels(fixed: Make, tmp_path: Path, good: int, weight: float, balance: float) -> None:
    """28 rows. 14:14 needs nothing; 4:24 needs 24/4 = 6, for a ratio of 1; of 24:4, 4/24 · 4/3 = 2/9 is the nearest
    to 1 in range, for a ratio of 4/3."""
    rows = [{"prompt": f"{n}+1=", "completion": str(n), "label": n < good} for n in range(28)]
    path = tiny.write(tmp_path / "skewed.jsonl", rows)
    session = opened(fixed("kto", data=[{"path": str(path)}], loss={"desirable_weight": "auto"}))
    assert session.recipe.loss.desirable_weight == pytest.approx(weight)
    assert session.data_metrics == {"kto/balance": pytest.approx(balance)}
    assert f"{good} desirable and {28 - good} undesirable" in session.notes[0]


def test_lambda_auto_needs_both_labels(fixed: Make, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1=", "completion": str(n), "label": True} for n in range(5)]
    path = tiny.write(tmp_path / "one.jsonl", rows)
    with pytest.raises(DataError, match="5 desirable and 0 undesirable"):
        opened(fixed("kto", data=[{"path": str(path)}], loss={"desirable_weight": "auto"}))


# ------------------------------------------------------------------------------------------ the reference's log-probs


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_cached_and_live_references_train_the_same(fixed: Make, tmp_path: Path, method: str) -> None:
    run(fixed(method, train={"epochs": 2, "steps": None}), tmp_path / "cached")
    live = fixed(method, train={"epochs": 2, "steps": None, "reference_logprobs": "live", "reference_cache": None})
    run(live, tmp_path / "live")
    one, two = (tiny.timeless(tmp_path / name) for name in ("cached", "live"))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a["metrics"]["loss"] == pytest.approx(b["metrics"]["loss"], abs=1e-5)


def test_full_fine_tuning_with_a_cache_holds_no_second_model(fixed: Make) -> None:
    session = opened(fixed())
    session.prepare_reference()
    assert session.policy.frozen is None
    assert session.references is not None and len(session.references) == 48  # 6 steps of 4 pairs


def test_the_cache_serves_the_next_run_and_gives_the_same_numbers(fixed: Make, tmp_path: Path) -> None:
    run(fixed(), tmp_path / "one")
    (path,) = (tmp_path / "cache").iterdir()
    before = path.read_bytes()
    result = run(fixed(), tmp_path / "two")
    assert path.read_bytes() == before
    notes = json.loads((result.folder / "summary.json").read_text())["notes"]
    assert any("come from" in note and path.name in note for note in notes)
    assert tiny.same_run(tmp_path / "one", tmp_path / "two") == []


def test_other_weights_or_rows_are_another_file(fixed: Make, home: Path, tmp_path: Path) -> None:
    run(fixed(), tmp_path / "one")
    run(fixed(model={"path": str(home / "wide")}), tmp_path / "other weights")
    run(fixed(seed=1), tmp_path / "other rows")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_the_new_adapter_is_no_part_of_the_references_hash(fixed: Make) -> None:
    hashes = [weights_hash(opened(fixed(model={"lora": {"r": 4}}, seed=seed)).policy) for seed in (0, 1)]
    assert hashes[0] == hashes[1]


def _tampered(path: Path, **changes: Any) -> None:
    """Rewrite a cache file with other content, its own hash made right again where asked."""
    import hashlib

    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata, flat = dict(file.metadata()), file.get_tensor("logprobs")
    flat = flat * changes.get("factor", 1.0)
    if changes.get("rehash"):
        metadata["sha256"] = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    metadata.update(changes.get("metadata", {}))
    save_file({"logprobs": flat}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:40]), "can't be read"),
        (lambda p: _tampered(p, factor=1.5), "content is damaged"),
        (lambda p: _tampered(p, factor=1.5, rehash=True), "computed afresh differ from it by up to"),
        (lambda p: _tampered(p, metadata={"weights": "0"}), "made for other weights"),
    ],
)
def test_a_stale_or_damaged_cache_is_replaced_and_named(
    fixed: Make, tmp_path: Path, harm: Callable[[Path], Any], said: str
) -> None:
    run(fixed(), tmp_path / "one")
    (path,) = (tmp_path / "cache").iterdir()
    good = load_file(path)["logprobs"].clone()
    harm(path)
    result = run(fixed(), tmp_path / "two")
    notes = json.loads((result.folder / "summary.json").read_text())["notes"]
    assert any(said in note for note in notes), notes
    assert torch.equal(load_file(path)["logprobs"], good)
    assert tiny.same_run(tmp_path / "one", tmp_path / "two") == []


def test_a_cache_that_cannot_be_written_costs_nothing_but_a_note(fixed: Make, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    result = run(fixed(), tmp_path / "run")
    notes = json.loads((result.folder / "summary.json").read_text())["notes"]
    assert any("could not be kept" in note and "train.reference_cache" in note for note in notes)


def test_rows_that_were_not_scored_before_training_are_an_error(fixed: Make) -> None:
    session = opened(fixed())
    session.prepare_reference()
    session.fresh = False
    with pytest.raises(PreftuneError, match=r"train\.reference_logprobs: live"):
        session.reference_of(groups())


def test_equal_completions_are_scored_once(fixed: Make, tmp_path: Path) -> None:
    session = opened(fixed())
    some = groups()
    store, _ = build_store(session.engine, [*some, *some], tmp_path / "c", 8192)
    assert len(store) == sum(map(len, LENGTHS))
    found, direct = store.of(some), session.engine.score(some, 8192)
    assert found is not None
    for mine, theirs in zip(found, direct, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.1}], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_a_resumed_run_is_the_unbroken_one(
    fixed: Make, tmp_path: Path, method: str, lora: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = fixed(
        method,
        model={"lora": lora},
        eval={"data": [{"path": str(tmp_path / "held.jsonl")}], "every": 3, "best": "rewards/margin"},
    )
    run(recipe, tmp_path / "whole")
    calls = 0
    real = batches.backward

    def stopped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5 + 2:  # the certificate takes two
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr("preftune.train.loop.backward", stopped)
    monkeypatch.setattr("preftune.train.certificate.backward", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "broken")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # the values are computed again, by the same packs
    run(recipe, tmp_path / "broken", resume=True)
    assert tiny.same_run(tmp_path / "whole", tmp_path / "broken") == []


@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_preferences_are_learned(fixed: Make, tmp_path: Path, method: str) -> None:
    data = [{"path": str(tmp_path / "pairs.jsonl")}]  # for kto: two labelled completions of each prompt
    rate = 1e-3 if method == "reward" else 3e-3
    recipe = fixed(method, data=data, eval={"data": data}, train={"steps": 40, "learning_rate": rate})
    result = run(recipe, tmp_path / "run")
    before, after = result.before["validation"], result.after["validation"]
    assert before["rewards/accuracy"].value == 0.5  # policy = reference, or a head of zeros
    assert after["rewards/accuracy"].value > 0.85
    if method != "reward":
        assert after["logprobs/accuracy"].value > before["logprobs/accuracy"].value
    answers = tiny.lines(result.folder / "measurements" / "answers-validation-40.jsonl")
    texts = tiny.lines(result.folder / "measurements" / "texts-validation.jsonl")
    assert [(a["group"], a["completion"]) for a in answers] == [(t["group"], t["completion"]) for t in texts]
    assert len(answers) == 56
    won = [answers[i]["reward"] > answers[i + 1]["reward"] for i in range(0, 56, 2)]
    assert sum(won) / 28 == pytest.approx(after["rewards/accuracy"].value)
    if method == "dpo":
        one = answers[0]
        assert one["reward"] == pytest.approx(0.1 * (one["logprob"] - one["reference"]), abs=1e-5)


def test_shuffled_preferences_teach_nothing(fixed: Make, home: Path, tmp_path: Path) -> None:
    """The control: each sum stands in the data both ways round, so no accuracy above chance can be had."""
    rows = tiny.lines(tmp_path / "pairs.jsonl")
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    path = tiny.write(tmp_path / "both.jsonl", rows + turned)
    recipe = fixed(data=[{"path": str(path)}], eval={"data": [{"path": str(path)}]}, train={"steps": 40})
    result = run(recipe, tmp_path / "run")
    assert result.after["validation"]["rewards/accuracy"].value == 0.5


def test_normalisation_is_the_training_scores_own(fixed: Make, tmp_path: Path) -> None:
    result = run(fixed("reward", train={"normalize": True}), tmp_path / "run")
    config = json.loads((result.folder / "final" / "config.json").read_text())
    session = opened(fixed("reward", model={"path": str(result.folder / "final")}))
    scores = [score for row in session.engine.rate(session.train, 8192) for score in row]
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
    assert config["preftune_reward_mean"] == pytest.approx(mean, abs=1e-5)
    assert config["preftune_reward_std"] == pytest.approx(spread, abs=1e-5)


# --------------------------------------------------------------------------------------------------- rows and methods


def test_holdout_of_preferences_never_shares_a_prompt(fixed: Make, tmp_path: Path) -> None:
    rows = tiny.lines(tmp_path / "pairs.jsonl")
    twice = [*rows, *({**row, "rejected": "77"} for row in rows)]
    path = tiny.write(tmp_path / "twice.jsonl", twice)
    session = opened(fixed(data=[{"path": str(path)}], eval={"holdout": 6}))
    assert len(session.validation) == 12
    held, trained = ({g.prompt.text for g in part} for part in (session.validation, session.train))
    assert len(held) == 6
    assert not held & trained


def test_rows_without_a_pair_are_left_out_and_counted(fixed: Make, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n}+1=", "responses": [{"text": "a", "score": 1}, {"text": "b", "score": 1 if n < 3 else 0}]}
        for n in range(8)
    ]
    path = tiny.write(tmp_path / "ranked.jsonl", rows)
    session = opened(fixed(data=[{"path": str(path)}]))
    assert len(session.train) == 5
    assert any("3 rows left out whose completions all have the same score" in note for note in session.notes)


@pytest.mark.parametrize(("method", "wanted"), [("dpo", "chosen and rejected"), ("kto", "completion and label")])
def test_rows_without_preferences_are_refused(fixed: Make, home: Path, method: str, wanted: str) -> None:
    with pytest.raises(DataError, match=rf"train.jsonl:\d+: {method} learns from .* needs {wanted}"):
        opened(fixed(method, data=[{"path": str(home / "train.jsonl")}]))


def test_dpo_on_labels_points_to_kto(fixed: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are for method kto"):
        opened(fixed(data=[{"path": str(tmp_path / "labels.jsonl")}]))


def test_sft_imitates_the_better_completion(sft: Make, fixed: Make, tmp_path: Path) -> None:
    fixed()
    session = opened(sft(data=[{"path": str(tmp_path / "pairs.jsonl")}]))
    rows = tiny.lines(tmp_path / "pairs.jsonl")
    assert [[c.text for c in g.completions] for g in session.train] == [[row["chosen"]] for row in rows]
    labelled = opened(sft(data=[{"path": str(tmp_path / "labels.jsonl")}]))
    assert len(labelled.train) == 14
    assert any("14 rows left out" in note and "undesirable" in note for note in labelled.notes)


# ------------------------------------------------------------------------------------------------ sizes and intervals


def test_completions_that_overflow_the_model_are_left_out_of_z(fixed: Make, home: Path, tmp_path: Path) -> None:
    """16 positions: the prompt of 12 takes its own completion of 2 tokens (EOS included), not the other's of 9."""
    small = tiny.save(tmp_path / "small", max_position_embeddings=16)
    rows = [
        {"prompt": "1+1+1+1+1+1=", "completion": "6", "label": True},
        {"prompt": "2=", "completion": "12345678", "label": False},
    ]
    path = tiny.write(tmp_path / "uneven.jsonl", rows)
    session = opened(fixed("kto", model={"path": str(small)}, data=[{"path": str(path)}], train={"batch_size": 2}))
    by_prompt = {g.prompt.text: g.completions for g in session.make_batch(session.batch_of(1)).contrast}
    assert by_prompt["1+1+1+1+1+1="] == ()
    assert [c.text for c in by_prompt["2="]] == ["6"]
    assert any("over the model's 16 positions are left out of z" in note for note in session.notes)


def test_packs_hold_the_largest_row_without_asking(fixed: Make, tmp_path: Path) -> None:
    assert opened(fixed()).budget == 2048  # a CPU's
    assert opened(fixed(train={"max_tokens_per_batch": 300})).budget == 300
    long = tiny.save(tmp_path / "long", max_position_embeddings=8192)
    row = {"prompt": "1" * 1000, "chosen": "2" * 1000, "rejected": "3" * 999}
    changes = {"model": {"path": str(long)}, "tokens": {"max_completion_tokens": 2000}}
    path = tiny.write(tmp_path / "pairs3000.jsonl", [row, {**row, "prompt": "1" * 500}])
    # the prompt and both completions with their EOS
    assert opened(fixed(data=[{"path": str(path)}], **changes)).budget == 1000 + 1001 + 1000
    # a score needs no more, kto only the longest prompt with the longest completion
    assert opened(fixed("kto", data=[{"path": str(path)}], **changes)).budget == 1000 + 1001 + 1000


def test_accuracies_have_intervals_of_shares_and_rewards_do_not() -> None:
    """Before: every pair a tie at ½. After: 7 of 10, whose Wilson interval is [0.397, 0.892] (z = 1.96)."""
    before = Measurement(0, "test", {"rewards/accuracy": [0.5] * 10, "rewards/margin": [0.0] * 10})
    after = Measurement(9, "test", {"rewards/accuracy": [1.0] * 7 + [0.0] * 3, "rewards/margin": [1.0] * 10})
    first, last = before.intervals([before, after]), after.intervals([before, after])
    assert (last["rewards/accuracy"].low, last["rewards/accuracy"].high) == pytest.approx((0.397, 0.892), abs=1e-3)
    # equal values say nothing of their spread, and zeros are no share of 0 %
    assert not first["rewards/accuracy"].is_bounded
    assert not first["rewards/margin"].is_bounded
