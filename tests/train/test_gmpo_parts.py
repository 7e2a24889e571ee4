"""GMPO's side of the loop: weights by hand, temperature's buffer, the meta-prompt, lessons, checks; then whole runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import GmpoConfig, Recipe, SamplingConfig
from preftune.engine.forward import Engine
from preftune.errors import ModelError, PreftuneError, UsageError
from preftune.models.loading import load_policy
from preftune.records import Completion, Group, Message, Prompt
from preftune.rewards.critic import Judged, Judgement
from preftune.sampling.base import Progress
from preftune.sampling.local import LocalSampler
from preftune.tokens import TokenContract
from preftune.train import gmpo as module
from preftune.train.gmpo import Gmpo
from preftune.train.gmpo_parts import added, behind, lessons_in, meta_text, tally, weigh
from tests import tiny

torch.set_num_threads(1)


def group(*scores: float, truths: Sequence[float | None] = (), **columns: Any) -> Group:
    known = truths or [None] * len(scores)
    completions = tuple(
        Completion((5, 1), (True, True), text="a", score=s, breakdown={"truth": t}, notes={"explanation": "e"})
        for s, t in zip(scores, known, strict=True)
    )
    return Group(Prompt((4,), "q", "q", columns, "rows:1"), completions)


# --- weights ----------------------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    groups = [group(0.2, 0.8), group(0.5, 0.5), group(1.0)]
    found, metrics = weigh(groups, GmpoConfig(temperature=0.3), [])
    up, down = math.exp(0.3 / 0.3), math.exp(-0.3 / 0.3)
    assert found.weights_S.tolist() == pytest.approx([down, up, 0.0, 0.0, 0.0])
    assert found.notes[0] == {
        "reward": pytest.approx(0.2), "baseline": pytest.approx(0.5), "advantage": pytest.approx(-0.3),
        "temperature": 0.3, "weight": pytest.approx(down),
    }  # fmt: skip
    assert metrics["gmpo/skipped_groups"] == pytest.approx(2 / 3)
    assert metrics["gmpo/weight_max"] == pytest.approx(up)
    assert metrics["gmpo/weight_mean"] == pytest.approx((up + down) / 2)
    assert metrics["gmpo/effective"] == pytest.approx((up + down) ** 2 / (up**2 + down**2) / 5)
    assert metrics["gmpo/capped"] == 0.0


def test_the_cap() -> None:
    found, metrics = weigh([group(0.0, 1.0)], GmpoConfig(temperature=0.1, max_weight=20.0), [])
    assert found.weights_S.tolist() == pytest.approx([math.exp(-5.0), 20.0])
    assert metrics["gmpo/capped"] == 0.5


def test_the_temperature_follows_the_buffer() -> None:
    rows = [[0.0, 1.0], [0.4, 0.4]]  # squares around group means: 0.25, 0.25, 0, 0
    settings = GmpoConfig(scale=2.0)
    _, metrics = weigh([group(0.0, 0.2)], settings, rows)
    assert metrics["gmpo/temperature"] == pytest.approx(2 * math.sqrt(0.125))
    over_all = sum((value - 0.45) ** 2 for row in rows for value in row) / 4
    _, metrics = weigh([group(0.0, 0.2)], GmpoConfig(scale=2.0, baseline="batch"), rows)
    assert metrics["gmpo/temperature"] == pytest.approx(2 * math.sqrt(over_all))
    _, metrics = weigh([group(0.0, 0.2)], settings, [[0.3, 0.3]])
    assert metrics["gmpo/temperature"] == settings.min_temperature
    _, metrics = weigh([group(0.0, 0.2)], GmpoConfig(scale=9.0), rows)
    assert metrics["gmpo/temperature"] == settings.max_temperature


def test_a_batch_baseline_compares_over_the_batch() -> None:
    settings = GmpoConfig(baseline="batch", temperature=0.5)
    found, metrics = weigh([group(1.0), group(0.0), group(0.5, 0.5)], settings, [])
    expected = [math.exp(1.0), math.exp(-1.0), 1.0, 1.0]
    assert found.weights_S.tolist() == pytest.approx(expected)
    assert metrics["gmpo/skipped_groups"] == 0.0
    found, metrics = weigh([group(0.5), group(0.51)], settings, [])
    assert found.weights_S.tolist() == [0.0, 0.0] and metrics["gmpo/skipped_groups"] == 1.0


def test_all_answers_equal_and_one_answer_weigh_nothing() -> None:
    for groups in ([group(0.7, 0.7), group(0.1, 0.1)], [group(0.7)]):
        found, metrics = weigh(groups, GmpoConfig(), [[0.7, 0.7]])
        assert found.weights_S.tolist() == [0.0] * sum(len(g.completions) for g in groups)
        assert metrics["gmpo/skipped_groups"] == 1.0 and "gmpo/weight_max" not in metrics


def test_notes_are_added_to_those_that_are_there() -> None:
    groups = [group(0.2, 0.8)]
    found, _ = weigh(groups, GmpoConfig(temperature=0.3), [])
    (noted,) = Gmpo.annotate(groups, found)
    assert list(noted.completions[1].notes) == [
        "explanation", "reward", "baseline", "advantage", "temperature", "weight",
    ]  # fmt: skip
    assert json.loads(json.dumps(noted.completions[0].notes))["weight"] == pytest.approx(math.exp(-1))


# --- lessons, meta-prompt, tallies ------------------------------------------------------------------------------


def judgement(score: int, truth: float | None, explanation: str) -> Judgement:
    return Judgement(Prompt((4,), "q"), (5,), explanation, tuple(float(k == score) for k in range(11)), truth)


def test_lessons_come_from_wrong_answers_that_were_called_wrong() -> None:
    groups = (group(0.2, 0.1, 0.9), group(0.3, 0.9), group(0.0, 0.9), group(0.4, 0.9))
    judgements = (
        judgement(2, 0.0, "the carry is lost"), judgement(1, 0.0, "the tens are off"),
        judgement(9, 0.0, "it all holds"),
        judgement(3, 1.0, "it is wrong here"), judgement(9, 1.0, "it all holds"),  # truth says right: no lesson
        judgement(0, None, "read the question first"), judgement(9, None, "it all holds"),
        judgement(4, 0.0, "wrong"), judgement(9, 1.0, "it all holds"),  # too short to be one
    )  # fmt: skip
    assert lessons_in(Judged(groups, judgements, (), {}, ())) == ["the tens are off", "read the question first"]


def test_where_the_meta_prompt_stands() -> None:
    assert meta_text("", []) == ""
    both = meta_text("Think first.\n", ["Carry the one."])
    assert both == "Think first.\n\nLessons from earlier answers:\n- Carry the one."
    assert behind("Be brief.", "2+2=") == "Be brief.\n\n2+2="
    assert behind("Be brief.", (Message("user", "2+2="),)) == (Message("system", "Be brief."), Message("user", "2+2="))
    assert behind("Be brief.", (Message("system", "Be kind."), Message("user", "2+2="))) == (
        Message("system", "Be brief.\n\nBe kind."), Message("user", "2+2="),
    )  # fmt: skip


def test_tallies_by_field() -> None:
    groups = [group(0.2, 0.4, truths=[0.0, 1.0], field="law"), group(0.9, field="chemistry"), group(0.6)]
    values = tally(groups, "field", ("chemistry", "law"))
    assert values == {
        "reward": [0.2, 0.4, 0.9, 0.6], "truth": [0.0, 1.0], "field/law/reward": [0.2, 0.4],
        "field/law/truth": [0.0, 1.0], "field/chemistry/reward": [0.9],
    }  # fmt: skip
    known = added(added({}, values), {"reward": [1.0]})
    assert known["reward"] == [pytest.approx(3.1), 5] and known["field/law/truth"] == [1.0, 2]


# --- one object for the loop ------------------------------------------------------------------------------------

MARK = "?"
"""Ends the critic's prompt in these tests, and no prompt of the policy."""


def critique(prompt: str) -> str:
    """Right for answers that begin as they should in prompts such as `3+4=7?`; wrong for others."""
    question, _, answer = prompt.rstrip("?").partition("=")
    a, _, b = question.rpartition("\n")[2].partition("+")
    right = answer.startswith(str(int(a) + int(b)))
    return f"<critique>{'it holds' if right else 'the sum is off'}</critique><score>"


class Scripted(LocalSampler):
    """Writes critiques where the critic is asked; else it samples."""

    write: Callable[[str], str] = staticmethod(critique)

    def sample(
        self, prompts: Sequence[Prompt], n: int, settings: SamplingConfig, *, seed: int, policy_version: int = 0,
        temperature: float | None = None, progress: Progress | None = None,
    ) -> list[Group]:  # fmt: skip
        if not prompts[0].text.endswith(MARK):
            return super().sample(
                prompts, n, settings, seed=seed, policy_version=policy_version, temperature=temperature,
                progress=progress,
            )  # fmt: skip
        texts = [type(self).write(prompt.text) for prompt in prompts]
        contract: Any = self.contract
        drawn = [Completion((i := contract.encode(t)), (True,) * len(i), text=t, finish="stop") for t in texts]
        return [Group(p, (c,)) for p, c in zip(prompts, drawn, strict=True)]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    monkeypatch.setattr(module, "LocalSampler", Scripted)
    return Scripted


Make = Callable[..., Recipe]


@pytest.fixture
def gmpo(home: Path) -> Make:
    """Makes a GMPO recipe on the tiny model; keyword arguments are merged over its `gmpo` section."""
    (home / "critic.txt").write_text("{question}{answer}" + MARK, encoding="utf-8")

    def make(sections: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        critic = {
            "truth": "exact", "prompt": str(home / "critic.txt"), "cold_start": 2, "cold_start_batch": 4,
            "max_tokens": 50, "learning_rate": 1e-3, **changes.pop("critic", {}),
        }  # fmt: skip
        base: dict[str, Any] = {
            "method": "gmpo", "name": "gmpo", "model": {"path": str(home / "wide"), "lora": {"r": 4, "alpha": 8}},
            "data": [{"path": str(home / "train.jsonl")}], "log": {"sinks": [], "samples_every": 2},
            "sampling": {"group_size": 4, "max_tokens": 6},
            "gmpo": {"critic": critic, **changes},
            "train": {"steps": 4, "batch_size": 7, "learning_rate": 1e-3, "checkpoint_every": 2},
        }  # fmt: skip
        for name, section in (sections or {}).items():
            base[name] = base[name] | section if isinstance(base.get(name), dict) else section
        return Recipe.model_validate(base)

    return make


def opened(recipe: Recipe, rows: int = 28) -> tuple[Gmpo, list[Group]]:
    policy = load_policy(recipe.model)
    contract = TokenContract(policy.tokenizer, recipe.tokens, policy.generation_eos)
    groups = []
    for n, row in enumerate(tiny.sums(rows)):
        answers = [row["completion"], "9"] if recipe.gmpo.answers == "data" else []
        prompt = replace(_prompt(contract, row["prompt"]), columns={"answer": row["answer"], "field": "ab"[n % 2]})
        completions = [Completion((i := contract.encode(t)), (True,) * len(i), text=t) for t in answers]
        groups.append(Group(prompt, tuple(completions)))
    engine = Engine(policy)
    made = Gmpo.open(
        recipe, policy=policy, engine=engine, contract=contract, base_dir=None, budget=2048, train=groups
    )  # fmt: skip
    return made, groups


def _prompt(contract: TokenContract, text: str) -> Prompt:
    from preftune.records import Example

    return contract.prompt(Example(text))


def answered(made: Gmpo, groups: Sequence[Group], texts: Sequence[str] = ("0", "9")) -> list[Group]:
    """Each prompt with its right answer and these."""
    out = []
    for g in groups:
        ids = [made.contract.encode(t) for t in (g.prompt.columns["answer"], *texts)]
        out.append(replace(g, completions=tuple(
            Completion(i, (True,) * len(i), text=t)
            for i, t in zip(ids, (g.prompt.columns["answer"], *texts), strict=True)
        )))  # fmt: skip
    return out


def test_a_step_through_the_object(gmpo: Make, scripted: type[Scripted]) -> None:
    made, train = opened(gmpo(lessons=2, buffer=3))
    assert made.critical and made.learns and made.notes == []
    start = made.memory()
    frozen = json.dumps(start)
    groups = answered(made, train[:7])
    scored, metrics, memory = made.score(groups, 0, start)
    assert json.dumps(start) == frozen  # what is known changes only when the loop says so
    assert [len(row) for row in memory["buffer"]] == [3, 3, 3]  # the last three groups
    assert memory["buffer"][-1] == list(scored[-1].scores)
    assert memory["lessons"] in ([], ["the sum is off"]) and memory["pass"] == 1
    assert metrics["field/a/reward"] == pytest.approx(
        sum(s for g in scored[::2] for s in g.scores) / sum(len(g.completions) for g in scored[::2])
    )
    assert metrics["pass/reward"] == pytest.approx(metrics["critic/reward"])
    truth = sum(c.text == g.prompt.columns["answer"] for g in groups for c in g.completions) / 21
    assert metrics["pass/truth"] == pytest.approx(truth)
    weights, told = made.signal(scored, memory)
    assert len(weights.weights_S) == 21 and told["gmpo/temperature"] > 0
    noted = made.annotate(scored, weights)
    assert {"explanation", "reward", "truth", "baseline", "advantage", "temperature", "weight"} == set(
        noted[0].completions[0].notes
    )
    assert json.loads(json.dumps(memory)) == memory
    learnt = made.learn(noted, 1)
    assert learnt["critic/loss"] > 0
    assert all(p.grad is not None for _, p in made.parameters())
    # The next pass over the data begins its own tallies.
    _, second, later = made.score(answered(made, train[:1]), 4, memory)
    assert later["pass"] == 2 and second["pass/number"] == 2
    assert second["pass/reward"] == pytest.approx(second["critic/reward"])
    assert len(later["buffer"]) == 3
    with pytest.raises(RuntimeError, match="judged last"):
        made.learn(noted, 1)


def test_the_critic_learns_every_nth_step(gmpo: Make, scripted: type[Scripted]) -> None:
    made, train = opened(gmpo(critic={"every": 3}))
    scored, _, _ = made.score(answered(made, train[:2]), 0, made.memory())
    assert made.learn(scored, 1) == made.learn(scored, 2) == {}
    assert all(p.grad is None for _, p in made.parameters())
    assert made.learn(scored, 3)


def test_without_a_truth_the_critic_is_frozen_and_the_run_says_so(gmpo: Make, scripted: type[Scripted]) -> None:
    made, train = opened(gmpo(critic={"truth": None}))
    assert made.parameters() == [] and not made.learns and made.critical
    assert made.prepare(_Bar()) == []
    (note,) = made.notes
    assert "stays frozen" in note
    scored, metrics, _ = made.score(answered(made, train[:2]), 0, made.memory())
    assert made.learn(scored, 1) == {} and "critic/agreement" not in metrics
    assert scored[0].completions[0].breakdown["truth"] is None


class _Bar:
    def begin(self, label: str, done: int = 0) -> None: ...

    def tick(self, done: int, total: int, note: str = "") -> None: ...


def test_the_cold_start_draws_from_the_policy_or_takes_the_datas_answers(gmpo: Make, scripted: type[Scripted]) -> None:
    for answers in ("policy", "data"):
        made, _ = opened(gmpo(answers=answers))
        before = {n: p.detach().clone() for n, p in made.parameters()}
        said = made.prepare(_Bar())
        assert "cold start of 2 steps on" in said[0]
        assert any(not torch.equal(p, before[n]) for n, p in made.parameters())
    assert "8 answers" in said[0] or "right" in said[0]


def test_without_a_critic_scores_stay_what_they_are(gmpo: Make) -> None:
    made, train = opened(gmpo(critic={"kind": "none", "truth": None, "prompt": None}, answers="data"))
    assert not made.critical and made.parameters() == [] and made.prepare(_Bar()) == []
    rows = [replace(g, completions=tuple(replace(c, score=float(n)) for n, c in enumerate(g.completions)))
            for g in train[:3]]  # fmt: skip
    scored, metrics, memory = made.score(rows, 0, made.memory())
    assert scored == rows and memory["buffer"] == [[0.0, 1.0]] * 3
    assert metrics["pass/reward"] == 0.5 and made.learn(scored, 1) == {}
    rows[1] = train[1]
    with pytest.raises(PreftuneError, match="answer 1 has no score"):
        made.score(rows, 0, made.memory())


# --- the meta-prompt --------------------------------------------------------------------------------------------


def test_meta_prompt_and_lessons_are_there_when_sampling_alone(gmpo: Make, tmp_path: Path) -> None:
    (tmp_path / "meta.txt").write_text("carry the one\n", encoding="utf-8")
    made, train = opened(gmpo(meta_prompt=str(tmp_path / "meta.txt"), lessons=2))
    plain = [g.prompt for g in train[:2]]
    longer = made.prompts(plain, made.memory() | {"lessons": ["tens last"]})
    expected = "carry the one\n\nLessons from earlier answers:\n- tens last\n\n" + plain[0].text
    assert longer[0].text == expected and longer[0].columns == plain[0].columns
    assert longer[0].ids == made.contract.encode(expected)
    drawn = made.sampler.sample(longer, 2, SamplingConfig(max_tokens=3), seed=0)
    back = made.with_plain_prompts(drawn, plain)
    assert [g.prompt for g in back] == plain
    assert [[c.ids for c in g.completions] for g in back] == [[c.ids for c in g.completions] for g in drawn]
    assert all(c.logprobs is None and c.distribution is None for g in back for c in g.completions)


def test_without_a_meta_prompt_nothing_changes(gmpo: Make) -> None:
    made, train = opened(gmpo())
    plain = [g.prompt for g in train[:2]]
    assert made.prompts(plain, made.memory()) == plain
    drawn = made.sampler.sample(plain, 1, SamplingConfig(max_tokens=3), seed=0)
    assert made.with_plain_prompts(drawn, plain) == drawn


def test_a_meta_prompt_without_room_is_an_error(gmpo: Make, tmp_path: Path) -> None:
    (tmp_path / "meta.txt").write_text("very long " * 12, encoding="utf-8")
    with pytest.raises(PreftuneError, match=r"125 tokens .*sampling.max_tokens 6.*128 positions.*gmpo.meta_prompt"):
        opened(gmpo(meta_prompt=str(tmp_path / "meta.txt")))


# --- what a recipe may not say ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "changes", "told"),
    [
        ({"sampling": {"group_size": 1, "max_tokens": 6}}, {}, "sampling.group_size is 1.*baseline: batch"),
        ({}, {"min_temperature": 2.0}, "min_temperature 2 is above"),
        ({}, {"answers": "data", "lessons": 3}, "remove gmpo.lessons"),
        ({}, {"answers": "data", "meta_prompt": "m.txt"}, "remove gmpo.meta_prompt"),
        ({}, {"lessons": 3, "critic": {"kind": "none", "truth": None, "prompt": None}}, "critic.kind is none"),
        ({}, {"critic": {"kind": "none", "prompt": None}}, "gmpo.critic.truth has no meaning"),
        ({}, {"meta_prompt": "nowhere.txt"}, "gmpo.meta_prompt: can't read nowhere.txt"),
        ({}, {"critic": {"prompt": "nowhere.txt"}}, "gmpo.critic.prompt: can't read nowhere.txt"),
        ({}, {"critic": {"reference": "anser", "prompt": None}}, "no training row has a column 'anser'.*answer, field"),
        ({}, {"critic": {"truth": None, "truth_args": {"column": "answer"}}}, "no gmpo.critic.truth"),
        ({}, {"critic": {"truth": "accurcy"}}, "did you mean 'accuracy'"),
        ({}, {"critic": {"prompt": "half.txt"}}, r"needs both \{question\} and \{answer\}"),
        ({}, {"critic": {"prompt": "reads.txt"}}, "gmpo.critic.reference must name a column"),
        ({}, {"critic": {"reference": "answer"}}, "no field {reference} to show it at"),
    ],
)
def test_contradictions_are_named(
    gmpo: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: Any, changes: Any, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.txt").write_text("{question} only", encoding="utf-8")
    (tmp_path / "reads.txt").write_text("{question} {answer} {reference}", encoding="utf-8")
    (tmp_path / "m.txt").write_text("m", encoding="utf-8")
    with pytest.raises(UsageError, match=told):
        opened(gmpo(sections, **changes))


def test_a_critic_needs_an_adapter_as_policy(gmpo: Make, home: Path) -> None:
    with pytest.raises(ModelError, match="critic role shares the policy's frozen base"):
        opened(gmpo({"model": {"lora": None}}))


def test_a_critic_takes_the_shape_of_an_adapter_that_goes_on(gmpo: Make, home: Path, tmp_path: Path) -> None:
    recipe = gmpo()
    load_policy(recipe.model).save(tmp_path / "adapter")
    going_on = gmpo({"model": {
        "path": str(tmp_path / "adapter"), "lora": None, "on_adapter": "continue", "reference": "base",
    }})  # fmt: skip
    made, _ = opened(going_on)
    assert made.policy.model.peft_config["critic"].r == 4


def test_the_critic_is_saved_as_an_adapter(gmpo: Make, tmp_path: Path) -> None:
    made, _ = opened(gmpo())
    made.save(tmp_path)
    assert list(tmp_path.rglob("adapter_model.safetensors"))
