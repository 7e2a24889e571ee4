"""Packing: where every token goes."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.engine.forward import Engine
from preftune.engine.pack import Pack, Segment, input_length, pack, unshare
from preftune.errors import DataError
from preftune.records import Completion, Group, Prompt
from tests.engine import zoo
from tests.engine.plain import (
    engine_values,
    furthest,
    gradients,
    policy_of,
    random_ids,
    relative_l2,
    some_groups,
    weighted_sum,
)

ids = st.integers(1, 10_000)


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    rows = draw(st.lists(st.tuples(ids, st.booleans()), max_size=12))
    return Completion(tuple(i for i, _ in rows), tuple(m for _, m in rows))


groups = st.lists(
    st.builds(
        Group,
        st.builds(lambda i: Prompt(tuple(i), "", where="data.jsonl:7"), st.lists(ids, min_size=1, max_size=9)),
        st.lists(completions(), max_size=6).map(tuple),
    ),
    max_size=6,
)


def context_of(packed: Pack, at: int) -> list[int]:
    """The ids that the row's token `at` is after, itself included, by the layout's own account."""
    for s in packed.segments:
        if s.start <= at < s.start + s.prompt:
            return packed.input_ids_N[s.start : at + 1].tolist()
        for start, n in s.completions:
            if start <= at < start + n:
                prompt = packed.input_ids_N[s.start : s.start + s.prompt].tolist()
                return prompt + packed.input_ids_N[start : at + 1].tolist()
    raise AssertionError(f"token {at} belongs to no segment")


@settings(max_examples=70, deadline=None)
@given(groups, st.integers(21, 80), st.booleans())
def test_every_trained_token_stands_once_in_its_right_place(batch: list[Group], budget: int, keep_last: bool) -> None:
    packs = pack(batch, budget, keep_last=keep_last)
    found: dict[tuple[int, int], list[tuple[list[int], int]]] = {}
    for packed in packs:
        assert 0 < packed.tokens <= budget
        assert len(packed.position_ids_N) == packed.tokens
        # Segments lie one behind the other and cover the row.
        ends = [s.end for s in packed.segments]
        assert [s.start for s in packed.segments] == [0, *ends[:-1]]
        assert ends[-1] == packed.tokens
        # Each token's position is the number of tokens it comes after.
        contexts = [context_of(packed, at) for at in range(packed.tokens)]
        assert packed.position_ids_N.tolist() == [len(c) - 1 for c in contexts]
        assert packed.num_sequences == len(packed.members) == len(packed.completions)
        assert sorted(packed.sequence_T.tolist()) == packed.sequence_T.tolist()
        for s, (g, c) in enumerate(packed.members):
            assert (g, c) not in found
            assert packed.completions[s] is batch[g].completions[c]
            mine = packed.sequence_T == s
            sources, targets = packed.source_T[mine].tolist(), packed.target_T[mine].tolist()
            found[g, c] = [(contexts[at], target) for at, target in zip(sources, targets, strict=True)]
    want = {}
    for g, group in enumerate(batch):
        for c, one in enumerate(group.completions):
            before = [list(group.prompt.ids) + list(one.ids[:t]) for t in range(len(one.ids))]
            want[g, c] = [(before[t], one.ids[t]) for t, wrote in enumerate(one.mask) if wrote]
    assert found == want


@settings(max_examples=70, deadline=None)
@given(groups, st.integers(21, 80), st.booleans())
def test_inputs_hold_each_prompt_once_and_masked_spans_too(batch: list[Group], budget: int, keep_last: bool) -> None:
    seen: list[int] = []
    for packed in pack(batch, budget, keep_last=keep_last):
        members = iter(packed.members)
        whole: list[int] = []
        for s in packed.segments:
            own = [next(members) for _ in s.completions]
            (g,) = {g for g, _ in own}
            seen.append(g)
            whole += batch[g].prompt.ids
            for (_, c), (_, n) in zip(own, s.completions, strict=True):
                one = batch[g].completions[c]
                assert n == input_length(one, keep_last)
                whole += one.ids if keep_last else one.ids[:-1]
        assert packed.input_ids_N.tolist() == whole
    for g, group in enumerate(batch):
        size = len(group.prompt.ids) + sum(input_length(c, keep_last) for c in group.completions)
        assert seen.count(g) == bool(group.completions) or size > budget


@settings(max_examples=70, deadline=None)
@given(groups, st.integers(21, 60))
def test_packing_is_deterministic_and_never_looser_than_first_fit(batch: list[Group], budget: int) -> None:
    once, twice = pack(batch, budget), pack(batch, budget)
    assert [p.members for p in once] == [p.members for p in twice]
    sizes = [p.tokens for p in once]
    # Were two rows to fit into one, first-fit would have put them there.
    assert len(sizes) <= 1 or sum(sizes) > len(sizes) * budget / 2
    assert all(size <= budget for size in sizes)


def test_rows_are_of_like_length() -> None:
    def group(n: int) -> Group:
        return Group(Prompt((1,) * 10, ""), (Completion((2,) * (n - 9), (True,) * (n - 9)),))

    assert sorted(p.tokens for p in pack([group(n) for n in (40, 40, 30, 20)], 110)) == [60, 70]
    assert sorted(p.tokens for p in pack([group(n) for n in (90, 10, 90)], 100)) == [90, 100]
    # evened out, 5 × 40 would need rows of 120: they stay as they fit
    assert sorted(p.tokens for p in pack([group(n) for n in (70, 60, 40, 30)], 100)) == [100, 100]


@settings(max_examples=70, deadline=None)
@given(groups, st.integers(21, 80), st.booleans())
def test_unshared_rows_hold_the_same(batch: list[Group], budget: int, keep_last: bool) -> None:
    for packed in pack(batch, budget, keep_last=keep_last):
        rows = unshare(packed)
        assert int(rows.attention_mask.sum()) == packed.unshared_tokens
        width = rows.input_ids.shape[1]
        for r, (g, c) in enumerate(packed.members):
            group = batch[g]
            one = group.completions[c]
            whole = list(group.prompt.ids) + list(one.ids[: input_length(one, keep_last)])
            assert rows.input_ids[r, : len(whole)].tolist() == whole
            assert rows.attention_mask[r].tolist() == [1] * len(whole) + [0] * (width - len(whole))
            assert rows.position_ids[r, : len(whole)].tolist() == list(range(len(whole)))
            alone = rows.alone(r)
            assert alone.input_ids.tolist() == [whole]
            assert alone.position_ids.tolist() == [list(range(len(whole)))]
            assert alone.attention_mask.tolist() == [[1] * len(whole)]
            mine = packed.sequence_T == r
            predicted = [len(group.prompt.ids) - 1 + t for t, wrote in enumerate(one.mask) if wrote]
            assert alone.source_T.tolist() == predicted
            assert (rows.source_T[mine] - r * width).tolist() == predicted
        shared = packed.input_ids_N[packed.source_T]
        assert torch.equal(rows.input_ids.flatten()[rows.source_T], shared)


def worked() -> Group:
    return Group(
        Prompt((7, 8, 9), "", where="sums.jsonl:1"),
        (
            Completion((10, 11, 12), (True, False, True)),
            Completion((), ()),
            Completion((13,), (True,)),
            Completion((14, 15), (True, True)),
        ),
    )


def test_a_row_worked_by_hand() -> None:
    (row,) = pack([worked()], 50)
    assert row.input_ids_N.tolist() == [7, 8, 9, 10, 11, 14]
    assert row.position_ids_N.tolist() == [0, 1, 2, 3, 4, 3]
    assert row.segments == (Segment(0, 3, ((3, 2), (5, 0), (5, 0), (5, 1))),)
    assert row.source_T.tolist() == [2, 4, 2, 2, 5]
    assert row.target_T.tolist() == [10, 12, 13, 14, 15]
    assert row.sequence_T.tolist() == [0, 0, 2, 3, 3]
    assert row.members == ((0, 0), (0, 1), (0, 2), (0, 3))
    assert (row.tokens, row.num_sequences, row.unshared_tokens) == (6, 4, 15)


def test_keep_last_worked_by_hand() -> None:
    (row,) = pack([worked()], 50, keep_last=True)
    assert row.input_ids_N.tolist() == [7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert row.position_ids_N.tolist() == [0, 1, 2, 3, 4, 5, 3, 3, 4]
    assert row.source_T.tolist() == [2, 4, 2, 2, 7]
    assert row.segments[0].completions == ((3, 3), (6, 0), (6, 1), (7, 2))


def test_a_group_over_the_budget_is_split_and_its_prompt_repeated() -> None:
    group = Group(Prompt((1, 2, 3, 4), ""), tuple(Completion((5, 6, 7), (True,) * 3) for _ in range(5)))
    packs = pack([group], 9)
    assert sorted(p.members for p in packs) == [((0, 0), (0, 1)), ((0, 2), (0, 3)), ((0, 4),)]
    for p in packs:
        assert p.input_ids_N.tolist() == [1, 2, 3, 4] + [5, 6] * p.num_sequences


def test_nothing_to_pack() -> None:
    assert pack([], 10) == []
    assert pack([Group(Prompt((1,), ""), ())], 10) == []


def test_a_row_over_the_budget_is_an_error_that_names_it() -> None:
    group = Group(Prompt((1,) * 6, "", where="sums.jsonl:12"), (Completion((5,) * 6, (True,) * 6),))
    assert len(pack([group], 11)) == 1
    with pytest.raises(DataError) as caught:
        pack([worked(), group], 10)
    message = str(caught.value)
    for part in (
        "sums.jsonl:12", "prompt (6)", "completion (5)", "11 tokens", "train.max_tokens_per_batch = 10",
        "tokens.max_prompt_tokens", "sampling.max_tokens",
    ):  # fmt: skip
        assert part in message


# --- through the engine ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen3", "gemma3", "qwen3_moe", "lfm2", "llama_dynamic"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(policy_of(zoo.tiny_model(request.param)))


def test_budget_and_order_change_neither_log_probs_nor_gradients(engine: Engine) -> None:
    batch = some_groups(1)
    values, entropies = engine_values(engine, batch, budget=1000)
    want = gradients(engine.policy.model, weighted_sum(values))
    order = [2, 0, 3, 1]
    for budget, turn in ((32, range(4)), (45, order), (1000, order)):
        shuffled = [batch[i] for i in turn]
        other, other_entropies = engine_values(engine, shuffled, budget=budget)
        back = list(turn)
        other = {(back[g], c): v for (g, c), v in other.items()}
        other_entropies = {(back[g], c): v for (g, c), v in other_entropies.items()}
        assert furthest(other, values) <= 1e-5
        assert furthest(other_entropies, entropies) <= 1e-5
        assert relative_l2(gradients(engine.policy.model, weighted_sum(other)), want) <= 1e-5


def test_accumulated_packs_give_the_gradient_of_one(engine: Engine) -> None:
    """Micro-batches: a backward pass each, gradients add up."""
    batch = some_groups(2)
    model = engine.policy.model
    want = gradients(model, weighted_sum(engine_values(engine, batch)[0]))
    for packed in engine.pack(batch, 35):
        out = engine.forward(packed).logprobs_T
        parts = {m: out[packed.sequence_T == s] for s, m in enumerate(packed.members)}
        weighted_sum(parts).backward()  # type: ignore[no-untyped-call]
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert relative_l2(got, want) <= 1e-5


def test_completions_of_one_prompt_do_not_see_each_other() -> None:
    engine = Engine(policy_of(zoo.tiny_model("llama")))
    rng = random.Random(5)
    prompt = Prompt(random_ids(rng, 6), "")
    ours = Completion(random_ids(rng, 7), (True,) * 7)
    results = []
    for seed in range(3):
        other = random.Random(seed)
        beside = Completion(random_ids(other, 9), (True,) * 9)
        elsewhere = Group(Prompt(random_ids(other, 6), ""), (beside,))
        values, _ = engine_values(engine, [elsewhere, Group(prompt, (beside, ours, beside))])
        results.append(values[1, 1])
    torch.testing.assert_close(results[0], results[1], atol=2e-6, rtol=0)
    torch.testing.assert_close(results[0], results[2], atol=2e-6, rtol=0)


def test_masked_spans_are_context() -> None:
    """The same tokens masked or not give the same log-probs elsewhere; other tokens in the span do not."""
    engine = Engine(policy_of(zoo.tiny_model("llama")))
    rng = random.Random(6)
    prompt, ids_ = Prompt(random_ids(rng, 4), ""), random_ids(rng, 8)
    mask = tuple(t not in (2, 3) for t in range(8))
    changed = (*ids_[:2], *random_ids(rng, 2), *ids_[4:])
    batch = [Group(prompt, (Completion(ids_, mask), Completion(ids_, (True,) * 8), Completion(changed, mask)))]
    values, _ = engine_values(engine, batch)
    kept = torch.tensor(mask)
    torch.testing.assert_close(values[0, 0], values[0, 1][kept], atol=2e-6, rtol=0)
    torch.testing.assert_close(values[0, 0][:2], values[0, 2][:2], atol=2e-6, rtol=0)
    assert float((values[0, 0][2:] - values[0, 2][2:]).detach().abs().min()) > 1e-4


def _group(prompt: int, lengths: list[int], where: str = "pairs.jsonl:3") -> Group:
    """A group whose ids tell where each token came from: 1000 × (completion + 1) + place."""
    rows = [tuple(1000 * (c + 1) + t for t in range(n)) for c, n in enumerate(lengths)]
    return Group(
        Prompt(tuple(range(1, prompt + 1)), "", where=where), tuple(Completion(r, (True,) * len(r)) for r in rows)
    )


def test_pairs_stay_whole_when_a_group_is_split() -> None:
    # prompt 4; inputs of 6, 6, 6 and 2 tokens (the last token of each completion is no input)
    group = _group(4, [7, 7, 7, 3])
    pairs = [(0, 1), (0, 2), (0, 3)]
    (whole,) = pack([group], 24, pairs=[pairs])
    assert whole.members == ((0, 0), (0, 1), (0, 2), (0, 3))
    assert whole.tokens == 4 + 6 + 6 + 6 + 2
    # 18 tokens hold the prompt, completion 0 and one or two others; completion 0 is fed again with each part
    parts = pack([group], 18, pairs=[pairs])
    held = sorted(tuple(c for _, c in part.members) for part in parts)
    assert held == [(0, 1), (0, 2, 3)]
    assert {part.tokens for part in parts} == {4 + 6 + 6, 4 + 6 + 6 + 2}


def test_completions_of_no_pair_are_not_fed() -> None:
    (packed,) = pack([_group(2, [3, 3, 3]), _group(5, [4, 4])], 100, pairs=[[(2, 0)], []])
    assert packed.members == ((0, 0), (0, 2))
    assert packed.tokens == 2 + 2 + 2


def test_a_pair_over_the_budget_is_named() -> None:
    with pytest.raises(DataError, match=r"pairs.jsonl:3: prompt \(4\) and the two completions of a pair \(6 and 8\)"):
        pack([_group(4, [7, 9])], 17, pairs=[[(0, 1)]])
