"""The one loop. It reads top to bottom: batch → completions → scores → signal → loss → step → measure → checkpoint.

It can't tell which method runs: everything that differs is in the method's row. Every step depends on the
weights, the optimizer's state and (seed, step) alone, which is why a resumed run is the unbroken one bit for bit.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from preftune.config import Recipe
from preftune.errors import CheckpointError, PreftuneError
from preftune.intervals import Interval
from preftune.recipes import dump
from preftune.records import Group
from preftune.train.advice import Watch
from preftune.train.batch import LogProbs, backward, make_batch
from preftune.train.certificate import Check, certify_adapter, certify_start, write_certificate
from preftune.train.checkpoint import load_latest, load_weights, restore, save_checkpoint
from preftune.train.evaluation import Measurement, difference, load_measurement, measure, to_json
from preftune.train.folder import check_same_recipe, manifest, open_folder, write_json, write_text
from preftune.train.metrics import Journal, make_sinks
from preftune.train.observe import batch_metrics, sample_records
from preftune.train.optim import learning_rate
from preftune.train.progress import Progress
from preftune.train.session import Session

GIB = 2**30


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gives back.

    Attributes:
        folder: the run folder; `folder / "final"` is a standard Hugging Face model or adapter.
        before, after, difference: split → metric → interval.
    """

    folder: Path
    steps: int
    best_step: int | None
    before: Mapping[str, Mapping[str, Interval]]
    after: Mapping[str, Mapping[str, Interval]]
    difference: Mapping[str, Mapping[str, Interval]]

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    functions: Sequence[Callable[..., Any]] = (),
    base_dir: Path | None = None,
) -> RunResult:
    """Train as the recipe says and write the run folder.

    Args:
        functions: rewards given as Python functions, scored with weight 1 after the recipe's own.
        base_dir: where relative paths of the recipe are looked up.

    Raises:
        PreftuneError: with a message that says what to do. The last checkpoint stays.
        KeyboardInterrupt: after a checkpoint was saved.
    """
    open_folder(folder, resume=resume)
    text = dump(recipe)
    if resume and (folder / "recipe.yaml").exists():
        check_same_recipe(folder, text)
    write_text(folder / "recipe.yaml", text)
    with Progress(recipe.name) as progress:
        progress.say(f"{recipe.method} of {recipe.model.path} → {folder}")
        session = Session.open(recipe, functions=functions, base_dir=base_dir, progress=progress)
        try:
            return _Loop(session, folder).go()
        finally:
            session.close()


class _Loop:
    """The state of one run: what a checkpoint saves is exactly `_state` plus weights and optimizer."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.session, self.folder, self.recipe = session, folder, session.recipe
        self.watch = Watch()
        self.step = 0
        self.saved_step = -1
        self.best: dict[str, Any] | None = None
        self.since_best = 0
        self.seconds: dict[str, float] = {}
        self.stopped: str | None = None
        self.pending = False  # the step is done, its validation is not
        self._critical = False  # weights or records are being changed: not the moment to save
        self._interrupted = False
        self._lengths: dict[str, int] = {}

    # --- the whole run ----------------------------------------------------------------------------------------

    def go(self) -> RunResult:
        session, progress = self.session, self.session.progress
        lengths = self._resume()
        for split, counts in session.counts.items():
            progress.say(f"{split}: {counts}")
        for note in session.notes:
            progress.say(note)
        self.journals = {
            name: Journal(self.folder / f"{name}.jsonl", lengths.get(name, 0))
            for name in ("metrics", "samples", "advice")
        }
        self.sinks = make_sinks(self.recipe.log.sinks, self.folder, self.recipe.name, self.step)
        facts = {
            "data": session.data_facts, "engine": {"mode": session.engine.mode, "reason": session.engine.reason},
            "counts": {k: str(v) for k, v in session.counts.items()}, "lineage": session.policy.lineage,
            "precision": session.precision, "steps": session.steps, "rewards": list(session.rewards.names),
            "trained_parameters": sum(p.numel() for _, p in session.parameters),
        }  # fmt: skip
        write_json(self.folder / "manifest.json", manifest(self.recipe, facts))
        try:
            with self._interruptible():
                if self.step == 0:
                    self._measure_start()
                self._settle()
                self._train()
                return self._finish("finished")
        except KeyboardInterrupt:
            self._save_if_whole()
            progress.say(f"interrupted after step {self.step}; continue with --resume")
            self._summary("interrupted", {}, {})
            raise
        except CheckpointError:
            raise
        except PreftuneError as error:
            self._save_if_whole()
            self._summary(f"failed: {error}", {}, {})
            raise
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            self._save_if_whole()
            raise PreftuneError(self._memory_advice()) from error
        finally:
            for journal in self.journals.values():
                journal.close()
            for sink in self.sinks:
                sink.close()

    def _train(self) -> None:
        progress, steps = self.session.progress, self.session.steps
        if self.pending:
            self._validate()
        progress.begin("training")
        while self.step < steps and self.stopped is None:
            metrics, times, groups = self._one_step(self.step + 1)
            self.step += 1
            self._write(metrics, times, groups)
            every = self.recipe.eval.every
            last = self.step == steps
            self.pending = bool(self.session.validation) and (last or bool(every and self.step % every == 0))
            self._settle()
            if self._interrupted:
                raise KeyboardInterrupt
            if self.pending:
                self._validate()
                progress.begin("training")
            if self.step % self.recipe.train.checkpoint_every == 0:
                self._save()
            reward = metrics.get("reward/mean", metrics.get("loss", math.nan))
            progress.tick(self.step, steps, f"{'reward' if 'reward/mean' in metrics else 'loss'} {reward:.3f}")

    def _settle(self) -> None:
        """The state is whole again: it may be saved, and the journals belong to it up to here."""
        self._lengths = {name: journal.length for name, journal in self.journals.items()}
        self._critical = False

    def _one_step(self, step: int) -> tuple[dict[str, float], dict[str, float], list[Group]]:
        """One sampled batch and its updates. Returns metrics, seconds by stage, and the scored groups."""
        session, recipe = self.session, self.recipe
        clock = _Clock()
        groups = session.batch_of(step)
        extra: dict[str, float] = {}
        if session.method.completions == "policy":
            drawn = session.rollout(
                [g.prompt for g in groups], recipe.sampling.group_size, recipe.sampling,
                seed=recipe.seed * 1_000_003 + step, policy_version=step - 1,
            )  # fmt: skip
            clock.lap("sample")
            groups, extra = self._score(drawn, step)
            clock.lap("reward")
        if not (self.folder / "certificate.json").exists():
            write_certificate(self.folder / "certificate.json", certify_start(session, groups), session.precision)
            clock.lap("certificate")
        reference = session.reference_of(groups)
        clock.lap("reference")
        old: LogProbs | None = None
        if recipe.train.updates_per_batch > 1:
            # Several updates: the ratio is against the policy as it was when it wrote the batch.
            old = session.engine.score(groups, recipe.train.max_tokens_per_batch, temperature=session.temperature)
        batch = make_batch(groups, session.method, recipe, old=old, reference=reference)
        rate = learning_rate(recipe.train, step, session.steps)
        for group in session.optimizer.param_groups:
            group["lr"] = rate
        session.policy.train_mode(True)
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # LoRA dropout
        for _ in range(recipe.train.updates_per_batch):
            session.optimizer.zero_grad(set_to_none=True)
            parts, packs = backward(session.engine, batch, session.method, recipe, recipe.train.max_tokens_per_batch)
            norm = torch.nn.utils.clip_grad_norm_([p for _, p in session.parameters], recipe.train.max_grad_norm)
            if not math.isfinite(float(norm)):
                raise PreftuneError(
                    f"step {step}: the gradient norm is {float(norm)}. The weights before this step are kept; lower "
                    "train.learning_rate, or use train.precision: fp32"
                )
            self._critical = True
            session.optimizer.step()
        session.optimizer.zero_grad(set_to_none=True)
        session.policy.train_mode(False)
        clock.lap("update")
        metrics = {name: value for name, part in parts.items() if (value := part.value()) is not None}
        metrics |= {"grad_norm": float(norm), "learning_rate": rate} | extra
        metrics |= batch_metrics(groups, packs, session.method.completions == "policy")
        clock.total("step")
        return metrics, clock.seconds, groups

    def _score(self, drawn: Sequence[Group], step: int) -> tuple[list[Group], dict[str, float]]:
        scored = self.session.rewards.score(drawn, step - 1, self.session.steps)
        extra = {k: v for k, v in scored.metrics.items() if k not in ("reward", "reward_std")}
        completions = sum(len(g.completions) for g in scored.groups)
        extra["reward/skipped"] = scored.skipped / max(completions, 1)
        groups = list(scored.usable)
        if not groups:
            raise PreftuneError(
                f"step {step}: no completion of the batch has a score: every reward failed or was skipped"
            )
        penalty = self.recipe.policy.missing_eos_penalty
        if penalty:
            groups = [
                replace(g, completions=tuple(
                    replace(c, score=c.score - penalty) if c.finish == "length" and c.score is not None else c
                    for c in g.completions
                ))
                for g in groups
            ]  # fmt: skip
        return groups, extra

    # --- measuring --------------------------------------------------------------------------------------------

    def _splits(self) -> dict[str, list[Group]]:
        return {k: v for k, v in (("validation", self.session.validation), ("test", self.session.test)) if v}

    def _measure_start(self) -> None:
        for split in self._splits():
            measured = self._measure(split)
            if split == "validation":
                self._consider(measured)
        self._settle()

    def _measure(self, split: str, step: int | None = None) -> Measurement:
        start = time.perf_counter()
        at = self.step if step is None else step
        measured = measure(self.session, split, self._splits()[split], at)
        self._critical = True
        measured.save(self.folder / "measurements")
        intervals = to_json(measured.intervals())
        self.journals["metrics"].write({"step": at, "kind": "eval", "split": split, "metrics": intervals})
        for record in sample_records(measured.samples[: self.recipe.log.samples], at, split):
            self.journals["samples"].write(record)
        for sink in self.sinks:
            sink.write(at, {f"{split}/{name}": value["value"] for name, value in intervals.items()})
        self.seconds["eval"] = self.seconds.get("eval", 0.0) + time.perf_counter() - start
        return measured

    def _validate(self) -> None:
        self._consider(self._measure("validation"))
        self.pending = False
        self._settle()
        if self._interrupted:
            raise KeyboardInterrupt

    def _consider(self, measured: Measurement) -> None:
        """Keep the best weights by the recipe's metric; stop when patience runs out."""
        name = self.recipe.eval.best
        if name is None:
            return
        found = measured.intervals()
        if name not in found:
            raise PreftuneError(
                f"eval.best is {name!r}, but validation measures {', '.join(sorted(found))}; choose one of them"
            )
        value = found[name].value
        sign = 1.0 if self.recipe.eval.higher_is_better else -1.0
        if self.best is None or sign * value > sign * self.best["value"]:
            self.best = {"step": self.step, "metric": name, "value": value}
            self.since_best = 0
            weights = {n: p.detach().cpu().contiguous() for n, p in self.session.parameters}
            (self.folder / "checkpoints").mkdir(exist_ok=True)
            path = self.folder / "checkpoints" / f"best-{self.step}.safetensors"
            save_file(weights, path)
            keep = {path.name, f"best-{self._checkpointed_best}.safetensors"}
            for old in path.parent.glob("best-*.safetensors"):
                if old.name not in keep:
                    old.unlink()
            return
        self.since_best += 1
        if self.recipe.eval.patience is not None and self.since_best >= self.recipe.eval.patience:
            self.stopped = f"stopped at step {self.step}: no better {name} in {self.since_best} measurements"

    _checkpointed_best: int | None = None

    # --- writing ----------------------------------------------------------------------------------------------

    def _write(self, metrics: dict[str, float], times: dict[str, float], groups: Sequence[Group]) -> None:
        self.journals["metrics"].write({"step": self.step, "kind": "train", "metrics": metrics, "time": times})
        for sink in self.sinks:
            sink.write(self.step, {**metrics, **{f"time/{k}": v for k, v in times.items()}})
        for name, seconds in times.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        log = self.recipe.log
        if self.session.method.completions == "policy" and (self.step == 1 or self.step % log.samples_every == 0):
            for record in sample_records(groups[: log.samples], self.step, "train"):
                self.journals["samples"].write(record)
        for advice in self.watch.update(self.step, metrics):
            self.journals["advice"].write({"step": advice.step, "saw": advice.saw, "change": advice.change})
            self.session.progress.say(f"step {advice.step}: {advice.saw} → {advice.change}")
        if self.watch.collapsed and log.stop_on_collapse:
            self.stopped = f"stopped at step {self.step}: the policy collapsed to one text for all prompts"

    def _save(self) -> None:
        save_checkpoint(
            self.folder / "checkpoints", self.step, self.session.parameters, self.session.optimizer, self._state(),
            self.recipe.train.keep_checkpoints,
        )  # fmt: skip
        self.saved_step = self.step
        self._checkpointed_best = self.best["step"] if self.best else None

    def _save_if_whole(self) -> None:
        """Save unless the step under way has begun to change weights, or nothing is new."""
        if not self._critical and self.step != self.saved_step and self.step > 0:
            self._save()

    def _state(self) -> dict[str, Any]:
        return {
            "watch": self.watch.state_dict(),
            "best": self.best,
            "since_best": self.since_best,
            "stopped": self.stopped,
            "seconds": self.seconds,
            "pending": self.pending,
            "lengths": self._lengths,
            "data": {name: facts["content_hash"] for name, facts in self.session.data_facts.items()},
        }

    def _resume(self) -> dict[str, int]:
        """Go on from the newest whole checkpoint. Returns how much of each journal belongs to it."""
        restored, damaged = load_latest(self.folder / "checkpoints")
        for sentence in damaged:
            self.session.progress.say(sentence)
            self.session.notes.append(sentence)
        if restored is None:
            (self.folder / "certificate.json").unlink(missing_ok=True)
            return {}
        state = restored.state
        now = {name: facts["content_hash"] for name, facts in self.session.data_facts.items()}
        if state["data"] != now:
            changed = ", ".join(k for k in now if now[k] != state["data"].get(k))
            raise CheckpointError(
                f"can't resume {self.folder}: the {changed} data changed since the run began; restore it, or start a new run"
            )
        restore(restored, self.session.parameters, self.session.optimizer)
        self.step = self.saved_step = restored.step
        self.watch.load_state_dict(state["watch"])
        self.best, self.since_best, self.stopped = state["best"], state["since_best"], state["stopped"]
        self.pending = state["pending"]
        self.seconds = dict(state["seconds"])
        self._checkpointed_best = self.best["step"] if self.best else None
        self.session.progress.say(f"going on after step {self.step}")
        lengths: dict[str, int] = state["lengths"]
        return lengths

    # --- the end ----------------------------------------------------------------------------------------------

    def _finish(self, status: str) -> RunResult:
        """Choose the weights, measure them, save the model, write the certificate's end and the report."""
        session = self.session
        if self.step != self.saved_step and not self.watch.collapsed:
            self._save()
        if self.best is not None:
            load_weights(
                load_file(self.folder / "checkpoints" / f"best-{self.best['step']}.safetensors"), session.parameters
            )
        elif self.watch.collapsed:
            self._back_before_collapse()
        chosen = self.best["step"] if self.best else self.step
        before: dict[str, Measurement] = {}
        after: dict[str, Measurement] = {}
        for split in self._splits():
            first = load_measurement(self.folder / "measurements", split, 0)
            if first is not None:
                before[split] = first
            known = load_measurement(self.folder / "measurements", split, chosen) if split == "validation" else None
            after[split] = known or (first if chosen == 0 and first is not None else self._measure(split, chosen))
        self._certify_end()
        session.policy.save(self.folder / "final")
        return self._summary(self.stopped or status, before, after)

    def _back_before_collapse(self) -> None:
        restored, _ = load_latest(self.folder / "checkpoints")
        if restored is not None:
            load_weights(restored.weights, self.session.parameters)
            self.step = restored.step

    def _certify_end(self) -> None:
        import json

        path = self.folder / "certificate.json"
        groups = [g for g in self.session.batch_of(1) if g.completions]
        if not self.session.policy.is_adapter or not path.exists():
            return
        if not groups:
            drawn = self.session.rollout(
                [g.prompt for g in self.session.batch_of(1)[:4]],
                1,
                self.recipe.sampling,
                seed=self.recipe.seed,
                policy_version=self.step,
            )
            groups = list(drawn)
        record = json.loads(path.read_text(encoding="utf-8"))
        names = ("name", "value", "tolerance", "detail")
        checks = [Check(*(c[n] for n in names)) for c in record["checks"] if c["name"] != "adapter vs merged"]
        write_certificate(path, checks + certify_adapter(self.session, groups), self.session.precision)

    def _summary(self, status: str, before: Mapping[str, Measurement], after: Mapping[str, Measurement]) -> RunResult:
        first = {split: m.intervals() for split, m in before.items()}
        last = {split: m.intervals() for split, m in after.items()}
        change = {split: difference(before[split], after[split]) for split in after if split in before}
        result = RunResult(self.folder, self.step, self.best["step"] if self.best else None, first, last, change)
        write_json(
            self.folder / "summary.json",
            {
                "method": self.recipe.method,
                "name": self.recipe.name,
                "status": status,
                "steps": self.step,
                "best_step": result.best_step,
                "best_metric": self.best["metric"] if self.best else None,
                "before": {k: to_json(v) for k, v in first.items()},
                "after": {k: to_json(v) for k, v in last.items()},
                "difference": {k: to_json(v) for k, v in change.items()},
                "seconds": self.seconds,
                "counts": {k: str(v) for k, v in self.session.counts.items()},
                "notes": self.session.notes,
            },
        )
        return result

    # --- interruptions ----------------------------------------------------------------------------------------

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the run at once, unless weights are being changed: then after the step."""

        def handler(number: int, frame: Any) -> None:
            if self._critical and not self._interrupted:
                self._interrupted = True
                return
            raise KeyboardInterrupt

        try:
            previous = signal.signal(signal.SIGINT, handler)
        except ValueError:  # not the main thread: whoever started it handles Ctrl-C
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _memory_advice(self) -> str:
        device = self.session.policy.device
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / GIB
        else:
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        train, sampling = self.recipe.train, self.recipe.sampling
        return (
            f"out of memory in step {self.step + 1} (peak {peak:.1f} GiB; packs of up to {train.max_tokens_per_batch} tokens, "
            f"{min(sampling.rows, train.batch_size * sampling.group_size)} rows decoded at once). Lower "
            "train.max_tokens_per_batch (the result stays the same), then sampling.rows, or set "
            "model.gradient_checkpointing: true. Continue with --resume"
        )


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self.last
        self.last = now

    def total(self, name: str) -> None:
        self.seconds[name] = time.perf_counter() - self.start


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "not enough memory" in text
        or "can't allocate memory" in text
    )
