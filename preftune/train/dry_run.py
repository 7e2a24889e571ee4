"""`--dry-run`: load everything, say what would be trained on, train nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preftune.config import Recipe
from preftune.engine.values import SeparateHead
from preftune.records import Completion, Group
from preftune.train.progress import Progress
from preftune.train.session import Session

MIB = 2**20
SHOWN = 3000
"""Characters of the first batch that are printed."""


def dry_run(recipe: Recipe, *, functions: Sequence[Callable[..., Any]] = (), base_dir: Path | None = None) -> str:
    """Token counts, a memory estimate, and the first packed batch decoded."""
    with Progress(recipe.name) as progress:
        session = Session.open(recipe, functions=functions, base_dir=base_dir, progress=progress)
        try:
            session.check_batches()
            return "\n".join(_lines(session))
        finally:
            session.close()


def _lines(session: Session) -> list[str]:
    recipe = session.recipe
    out = [f"{recipe.method}: {session.steps} steps of {recipe.train.batch_size} prompts; {session.policy.lineage}"]
    out += [f"{split}: {counts}" for split, counts in session.counts.items()]
    out.append(f"engine: {session.engine.mode} ({session.engine.reason})")
    out += session.notes
    trained = sum(p.numel() for _, p in session.parameters)
    total = sum(p.numel() for p in session.policy.model.parameters())
    out.append(f"parameters: {total:,}, of which {trained:,} are trained")
    out.append(_memory(session, trained))
    groups = session.batch_of(1)
    written = session.method.completions != "data"
    if written:
        out.append("first batch (prompts; the policy writes the completions):")
        groups = [Group(g.prompt, (Completion((session.contract.eos_id,), (True,)),)) for g in groups]
    else:
        out.append("first packed batch (tokens with loss stand between ⟦ and ⟧):")
    packed = session.engine.pack(groups, session.budget)[0]
    sent = "policy" if written else "data"
    text = _decoded(session, [groups[g] for g in dict.fromkeys(g for g, _ in packed.members)], sent)
    out.append(text if len(text) <= SHOWN else text[:SHOWN] + f"\n… ({len(text) - SHOWN:,} more characters)")
    out.append(f"{packed.tokens} tokens in this pack; {packed.unshared_tokens} without shared prompts")
    return out


def _decoded(session: Session, groups: Sequence[Group], source: str) -> str:
    show = session.contract.text_with_specials
    lines: list[str] = []
    for group in groups:
        text = show(group.prompt.ids)
        if source == "data":
            for completion in group.completions:
                text += _marked(session, completion)
        lines.append(f"--- {group.prompt.where}\n{text}")
    return "\n".join(lines)


def _marked(session: Session, completion: Completion) -> str:
    text, start = "", 0
    ids, mask = completion.ids, completion.mask
    for i in range(1, len(ids) + 1):
        if i == len(ids) or mask[i] != mask[start]:
            piece = session.contract.text_with_specials(ids[start:i])
            text += f"⟦{piece}⟧" if mask[start] else piece
            start = i
    return text


def _memory(session: Session, trained: int) -> str:
    """Weights, gradients and AdamW's two moments exactly; activations by the rule in docs/architecture.md."""
    policy, recipe = session.policy, session.recipe
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    if policy.frozen is not None:
        weights += sum(p.numel() * p.element_size() for p in policy.frozen.parameters())
    if isinstance(session.head, SeparateHead):  # a shared one is part of the policy's model
        weights += sum(p.numel() * p.element_size() for p in session.head.model.model.parameters())
    state = sum(p.numel() * p.element_size() for _, p in session.parameters) * 3
    config = policy.base.config.get_text_config()
    layers, width = config.num_hidden_layers, config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    element = 2 if session.engine.bf16 else 4
    of_layer = 10 * width + 4 * inner
    # Recomputing keeps each layer's input, and all of the one under way.
    per_token = (layers * width + of_layer if recipe.model.gradient_checkpointing else layers * of_layer) * element
    activations = per_token * session.budget
    total = weights + state + activations
    return (
        f"memory estimate: {total / MIB:,.0f} MiB (weights {weights / MIB:,.0f}, gradients and optimizer "
        f"{state / MIB:,.0f}, activations of a full pack about {activations / MIB:,.0f})"
    )
