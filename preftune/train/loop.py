"""The one loop. It reads top to bottom: batch → completions → scores → signal → loss → step → measure → checkpoint.

It can't tell which method runs: everything that differs is in the method's row. Every step depends on the
weights, the optimizer's state and (seed, step) alone, which is why a resumed run is the unbroken one bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preftune.config import Recipe
from preftune.engine.allocator import Heap
from preftune.engine.pack import Pack
from preftune.errors import CheckpointError, PreftuneError
from preftune.losses.batch import Additive, merge_metrics
from preftune.recipes import dump
from preftune.records import Group
from preftune.signals import adapted_beta
from preftune.train.advice import Watch
from preftune.train.batch import Batch, backward
from preftune.train.benchmarks import measure_benchmark
from preftune.train.certificate import certify_adapter, certify_start, read_checks, write_certificate
from preftune.train.checkpoint import (
    find_weights,
    fingerprint,
    load_best,
    load_latest,
    load_weights,
    prune_best,
    restore,
    save_best,
    save_checkpoint,
)
from preftune.train.collect import FILE as COLLECTED
from preftune.train.collect import collect
from preftune.train.draw import Clock, draw_batch
from preftune.train.evaluation import Measurement, difference, load_measurement, measure, save_texts, to_json
from preftune.train.folder import (
    check_same_recipe,
    clean_folder,
    manifest,
    open_folder,
    whole_folder,
    write_json,
    write_text,
)
from preftune.train.guard import Interrupts, is_out_of_memory, memory_advice, only_one
from preftune.train.metrics import Journal, Sink, make_sinks
from preftune.train.observe import batch_metrics, sample_records
from preftune.train.optim import set_learning_rate
from preftune.train.progress import Progress
from preftune.train.result import FINISHED, STOPPED, RunResult, finished_result, write_summary
from preftune.train.session import Session
from preftune.train.setup import seed_everything
from preftune.train.until import Goal

if TYPE_CHECKING:
    from preftune.train.gmpo import Gmpo

Measured = Mapping[str, Measurement]
"""Split → its measurement."""


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
        resume: go on from the newest checkpoint; a finished run is left as it is.
        functions: rewards given as Python functions, scored with weight 1 after the recipe's own.
        base_dir: where relative paths of the recipe are looked up.

    Raises:
        PreftuneError: with a message that says what to do. The last checkpoint stays.
        KeyboardInterrupt: after a checkpoint was saved.
    """
    open_folder(folder, resume=resume)
    with only_one(folder), Progress(recipe.name) as progress:
        changed = check_same_recipe(folder, recipe)
        finished = finished_result(folder) if resume else None
        if finished is not None:
            progress.say(f"{folder} is finished; nothing is left to do")
            return finished
        clean_folder(folder)
        new = not (folder / "recipe.yaml").exists()
        write_text(folder / "recipe.yaml", dump(recipe))
        progress.say(f"{recipe.method} of {recipe.model.path} → {folder}")
        with ExitStack() as opened:
            try:
                session = Session.open(recipe, functions=functions, base_dir=base_dir, progress=progress)
                opened.callback(session.close)
                session.notes.extend(changed)
                loop = _Loop(session, folder, base_dir)
            except PreftuneError:
                if new and not (folder / COLLECTED).exists():  # nothing began: the folder stays free
                    (folder / "recipe.yaml").unlink(missing_ok=True)
                raise
            return loop.go()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A batch that is ready to step on, and what is known of it already."""

    groups: list[Group]
    batch: Batch
    metrics: dict[str, float]
    memory: dict[str, Any]
    clock: Clock


class _Loop:
    """The state of one run: what a checkpoint saves is exactly `_state` plus weights and optimizer."""

    def __init__(self, session: Session, folder: Path, base_dir: Path | None) -> None:
        self.session, self.folder, self.recipe = session, folder, session.recipe
        self.seconds: dict[str, float] = {}
        start = time.perf_counter()
        if session.method.completions == "collected":
            collect(session, folder, base_dir)
            self.seconds["collecting answers"] = time.perf_counter() - start
            start = time.perf_counter()
        self.origin = {**session.fingerprints(), "the model": fingerprint(session.policy.model)}
        self.heap = Heap()
        session.prepare_reference()
        self.heap.give_back()
        if session.references is not None:
            self.seconds["reference before training"] = time.perf_counter() - start
        self.interrupts = Interrupts()
        self.watch = Watch()
        self.step = 0
        self.saved_step = 0  # nothing is to be saved before the first step
        self.best: dict[str, Any] | None = None
        self.since_best = 0
        self.stopped: str | None = None
        self.goal = Goal(self.recipe.train.until)
        self.told: list[str] = []  # what only the run's beginning could say
        self.pending = False  # the step is done, its validation is not
        # True where `step`, weights, optimizer and journals belong together, so that they may be saved.
        self.whole = False
        self._lengths: dict[str, int] = {}
        self.journals: dict[str, Journal] = {}
        self.sinks: list[Sink] = []
        self._doing: tuple[str, Sequence[Group]] = ("start", ())  # for the message when memory runs out

    # --- the whole run ----------------------------------------------------------------------------------------

    def go(self) -> RunResult:
        session, progress = self.session, self.session.progress
        lengths = self._resume()
        for split, counts in session.counts.items():
            progress.say(f"{split}: {counts}")
        for note in session.notes:
            progress.say(note)
        try:
            self.sinks = make_sinks(self.recipe.log.sinks, self.folder, self.recipe.name, self.step)
            for name in ("metrics", "samples", "advice"):
                self.journals[name] = Journal(self.folder / f"{name}.jsonl", lengths.get(name, 0))
            write_json(self.folder / "manifest.json", manifest(self.recipe, session.facts()))
            with self.interrupts.installed():
                self._settle()
                if self.step == 0:
                    if session.gmpo is not None:
                        self._cold_start(session.gmpo)
                    self._measure_start()
                self._train()
                return self._finish()
        except KeyboardInterrupt:
            progress.say("interrupted")
            self._give_up("interrupted", save=True)
            raise
        except Exception as error:
            if is_out_of_memory(error):
                stage, groups = self._doing
                told = memory_advice(self.recipe, session.budget, session.policy.device, self.step + 1, stage, groups)
                self._give_up(f"failed: {told}", save=True)
                raise PreftuneError(told) from error
            self._give_up(f"failed: {error or type(error).__name__}", save=not isinstance(error, CheckpointError))
            raise
        finally:
            for journal in self.journals.values():
                journal.close()
            for sink in self.sinks:
                sink.close()

    def _train(self) -> None:
        progress, steps = self.session.progress, self.session.steps
        if self.pending:
            self._validate()
        progress.begin("training", self.step)
        while self.step < steps and self.stopped is None:
            prepared = self._prepare(self.step + 1)
            with self.interrupts.held():
                metrics = self._update(self.step + 1, prepared)
                self.step += 1
                self._write(metrics, prepared)
                every = self.recipe.eval.every
                due = self.step == steps or bool(every and self.step % every == 0)
                self.pending = bool(self.session.validation) and due
                self._settle()
            if self.pending:
                self._validate()
                progress.begin("training", self.step)
            if self.step % self.recipe.train.checkpoint_every == 0:
                self._save()
            name = next((n for n in ("reward/mean", "rewards/accuracy") if n in metrics), "loss")
            progress.tick(self.step, steps, f"{name.removesuffix('/mean')} {metrics.get(name, math.nan):.3f}")

    def _settle(self) -> None:
        """The state is whole again: it may be saved, and the journals belong to it up to here."""
        self._lengths = {name: journal.length for name, journal in self.journals.items()}
        self.whole = True

    def _cold_start(self, gmpo: Gmpo) -> None:
        """The critic's first lessons. Weights move before the first step, so nothing is saved until it is over."""
        self.whole = False
        start = time.perf_counter()
        seed_everything(self.recipe.seed, 0)
        for note in gmpo.prepare(self.session.progress):
            self.told.append(note)
            self.session.progress.say(note)
        self.session.notes.extend(self.told)
        self.seconds["critic before training"] = time.perf_counter() - start
        self._settle()

    def _prepare(self, step: int) -> _Prepared:
        """Sample, score and compare one batch; no weight changes here."""
        session = self.session
        clock = Clock()
        seed_everything(self.recipe.seed, step)
        groups = session.batch_of(step)
        extra: dict[str, float] = {}
        memory = dict(session.memory)
        as_sampled: Sequence[Group] = ()
        if session.method.samples:
            self._doing = ("sample", groups)
            drawn = draw_batch(session, groups, step, clock)
            groups, extra, memory, as_sampled = drawn.groups, drawn.metrics, drawn.memory, drawn.as_sampled
        elif session.gmpo is not None:
            groups, extra, memory = session.score(groups, step=step - 1)
            clock.lap("reward")
        self._doing = ("update", groups)
        batch = session.make_batch(groups, memory)
        if session.gmpo is not None:
            groups = list(batch.groups)
        policy = self.recipe.policy
        if policy.kl_target is not None and "kl/sequence" in batch.facts:
            memory["beta"] = adapted_beta(
                memory["beta"], batch.facts["kl/sequence"], policy.kl_target, len(batch.weights_S), policy.kl_horizon
            )
        clock.lap("reference")
        if not (self.folder / "certificate.json").exists():
            write_certificate(
                self.folder / "certificate.json", certify_start(session, groups, as_sampled), session.precision
            )
            self.heap.give_back()
            clock.lap("certificate")
        return _Prepared(groups, batch, extra | batch.facts, memory, clock)

    def _update(self, step: int, prepared: _Prepared) -> dict[str, float]:
        """The optimizer's updates on one batch. Returns the step's metrics."""
        session, recipe = self.session, self.recipe
        rate = set_learning_rate(session.optimizer, recipe.train, step, session.steps)
        policy = session.head is None or step > recipe.value.warmup_steps
        session.policy.train_mode(True)
        seed_everything(recipe.seed, step)  # LoRA dropout
        parts: list[dict[str, Additive]] = []
        packs: list[Pack] = []
        norms: dict[str, float] = {}
        learnt: dict[str, float] = {}
        for turn in range(recipe.train.updates_per_batch):
            packs = []
            for part in prepared.batch.parts(recipe.train.minibatches, f"{recipe.seed}/{step}/{turn}"):
                session.optimizer.zero_grad(set_to_none=True)
                found, own = backward(
                    session.engine, part, session.method, recipe, session.budget, head=session.head, policy=policy
                )
                parts.append(found)
                packs += own
                if session.gmpo is not None and not learnt:
                    learnt = session.gmpo.learn(prepared.groups, step)
                norms = self._clip(step)
                self.whole = session.fresh = False
                session.optimizer.step()
        session.optimizer.zero_grad(set_to_none=True)
        session.policy.train_mode(False)
        session.memory = prepared.memory
        self.heap.after_step()
        prepared.clock.lap("update")
        merged = merge_metrics(parts)
        metrics = {name: value for name, part in merged.items() if (value := part.value()) is not None}
        metrics |= norms | {"learning_rate": rate} | prepared.metrics | learnt
        metrics |= batch_metrics(prepared.groups, packs, session.method.samples)
        metrics |= session.data_metrics
        prepared.clock.total("step")
        return metrics

    def _clip(self, step: int) -> dict[str, float]:
        """Clip each learner's gradient by its own norm: they share no weights, and one must not shrink the other."""
        norms: dict[str, float] = {}
        for name, parameters in self.session.learners.items():
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.train.max_grad_norm)
            norms["grad_norm" if name == "policy" else f"grad_norm/{name}"] = float(norm)
            if not math.isfinite(float(norm)):
                whose = "" if name == "policy" else f" of the {name}"
                raise PreftuneError(
                    f"step {step}: the gradient norm{whose} is {float(norm)}, so "
                    "this update was not made. Lower train.learning_rate, or use train.precision: fp32"
                )
        return norms

    # --- measuring --------------------------------------------------------------------------------------------

    def _splits(self) -> dict[str, Sequence[Group]]:
        """Everything that is measured: held-out rows, and the benchmarks by their names."""
        held_out = {k: v for k, v in (("validation", self.session.validation), ("test", self.session.test)) if v}
        return held_out | {name: [*one.shown] for name, one in self.session.benchmarks.items()}

    def _measure_start(self) -> None:
        for split in self._splits():
            measured = self._measure(split, 0)
            if measured.answers:
                save_texts(self.folder / "measurements", split, self._splits()[split])
            with self.interrupts.held():
                self._record(measured)
                if split == "validation":
                    self._consider(measured)
                self._settle()

    def _validate(self) -> None:
        measured = self._measure("validation", self.step)
        with self.interrupts.held():
            self._record(measured)
            self._consider(measured)
            values = {name: interval.value for name, interval in measured.intervals().items()}
            self._end_if(self.goal.after_measuring("validation", values))
            self.pending = False
            self._settle()

    def _end_if(self, why: str) -> None:
        """The stage's goal is reached."""
        if why and self.step < self.session.steps:
            self.stopped = f"{STOPPED} {self.step}: {why}"

    def _measure(self, split: str, step: int) -> Measurement:
        start = time.perf_counter()
        self._doing = ("measure", self._splits()[split])
        seed_everything(self.recipe.seed, step)
        if split in self.session.benchmarks:
            measured = measure_benchmark(self.session, split, step)
        else:
            measured = measure(self.session, split, self._splits()[split], step)
        self.seconds["eval"] = self.seconds.get("eval", 0.0) + time.perf_counter() - start
        return measured

    def _record(self, measured: Measurement) -> None:
        self.whole = False
        measured.save(self.folder / "measurements")
        step, split, intervals = measured.step, measured.split, to_json(measured.intervals())
        self.journals["metrics"].write({"step": step, "kind": "eval", "split": split, "metrics": intervals})
        for record in sample_records(measured.samples[: self.recipe.log.samples], step, split):
            self.journals["samples"].write(record)
        for sink in self.sinks:
            sink.write(step, {f"{split}/{name}": value["value"] for name, value in intervals.items()})

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
            checkpoints = self.folder / "checkpoints"
            digest = save_best(checkpoints, self.step, self.session.parameters)
            self.best = {"step": self.step, "metric": name, "value": value, "sha256": digest}
            self.since_best = 0
            prune_best(checkpoints, self.step)
            return
        self.since_best += 1
        if self.recipe.eval.patience is not None and self.since_best >= self.recipe.eval.patience:
            self.stopped = f"{STOPPED} {self.step}: no better {name} in {self.since_best} measurements"

    # --- writing ----------------------------------------------------------------------------------------------

    def _write(self, metrics: dict[str, float], prepared: _Prepared) -> None:
        times = prepared.clock.seconds
        self.journals["metrics"].write({"step": self.step, "kind": "train", "metrics": metrics, "time": times})
        for sink in self.sinks:
            sink.write(self.step, {**metrics, **{f"time/{k}": v for k, v in times.items()}})
        for name, seconds in times.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        log = self.recipe.log
        shown = self.session.method.samples or self.session.gmpo is not None
        if shown and (self.step == 1 or self.step % log.samples_every == 0):
            for record in sample_records(prepared.groups[: log.samples], self.step, "train"):
                self.journals["samples"].write(record)
        for advice in self.watch.update(self.step, metrics):
            self.journals["advice"].write({"step": advice.step, "saw": advice.saw, "change": advice.change})
            self.session.progress.say(f"step {advice.step}: {advice.saw} → {advice.change}")
        self._end_if(self.goal.after_step(metrics))
        if self.watch.collapsed and log.stop_on_collapse:
            self.stopped = f"{STOPPED} {self.step}: the policy collapsed to one text for all prompts"

    def _save(self) -> None:
        for journal in self.journals.values():
            journal.sync()
        keep = self.recipe.train.keep_checkpoints
        if self.session.method.samples and self.recipe.log.stop_on_collapse:
            keep += 1  # no sample of the newest weights has been seen yet, so they may be the first that went mad
        if _collapsing(self._state()):
            keep += self.step  # the last one from before may be what the run ends with: none is removed now
        save_checkpoint(
            self.folder / "checkpoints", self.step, self.session.parameters, self.session.optimizer, self._state(), keep
        )
        self.saved_step = self.step
        prune_best(self.folder / "checkpoints", self.best["step"] if self.best else None)

    def _give_up(self, status: str, *, save: bool) -> None:
        """Leave what can be gone on from. What fails here is said, and never hides why the run ended."""
        try:
            if save and self.whole and self.step != self.saved_step:
                self._save()
            if self.saved_step:
                self.session.progress.say(f"--resume goes on after step {self.saved_step}")
            self._summary(status, {}, {})
        except PreftuneError as error:
            self.session.progress.say(str(error))

    def _state(self) -> dict[str, Any]:
        return {
            "watch": self.watch.state_dict(),
            "best": self.best,
            "since_best": self.since_best,
            "stopped": self.stopped,
            "goal": self.goal.recent,
            "seconds": self.seconds,
            "pending": self.pending,
            "lengths": self._lengths,
            "origin": self.origin,
            "memory": self.session.memory,
            "told": self.told,
        }

    def _resume(self) -> dict[str, int]:
        """Go on from the newest whole checkpoint. Returns how much of each journal belongs to it."""
        restored, damaged = load_latest(self.folder / "checkpoints")
        self.session.notes.extend(damaged)
        if restored is None:
            (self.folder / "certificate.json").unlink(missing_ok=True)
            return {}
        state = restored.state
        for what, now in self.origin.items():
            if state["origin"].get(what) != now:
                raise CheckpointError(
                    f"can't resume {self.folder}: {what} changed since the run began, so the result would be neither "
                    "run's. Put it back as it was, or start a new run with --output"
                )
        restore(restored, self.session.parameters, self.session.optimizer)
        self.session.fresh = False
        self.session.memory = dict(state["memory"])
        self.told = list(state["told"])
        self.session.notes.extend(self.told)
        self.step = self.saved_step = restored.step
        self.watch.load_state_dict(state["watch"])
        self.best, self.since_best, self.stopped = state["best"], state["since_best"], state["stopped"]
        self.pending = state["pending"]
        self.goal.recent = list(state["goal"])
        self.seconds = dict(state["seconds"])
        self.session.progress.say(f"going on after step {self.step}")
        lengths: dict[str, int] = state["lengths"]
        return lengths

    # --- the end ----------------------------------------------------------------------------------------------

    def _finish(self) -> RunResult:
        """Choose the weights, measure them, save the model, write the certificate's end and the summary."""
        session, checkpoints = self.session, self.folder / "checkpoints"
        if self.step != self.saved_step and not self.watch.collapsed:
            self._save()
        self.whole = False  # from here on the weights may be another step's, and the records go past the checkpoint
        chosen = self.step
        if self.best is not None:
            chosen = self.best["step"]
            load_weights(load_best(checkpoints, chosen, self.best["sha256"]), session.parameters)
        elif self.watch.collapsed and self.stopped is not None:
            chosen = self._back_before_collapse()
        before: dict[str, Measurement] = {}
        after: dict[str, Measurement] = {}
        for split in self._splits():
            first = load_measurement(self.folder / "measurements", split, 0)
            if first is not None:
                before[split] = first
            known = load_measurement(self.folder / "measurements", split, chosen) if split == "validation" else None
            after[split] = known or (first if chosen == 0 and first is not None else self._measured(split, chosen))
        session.before_saving()
        with whole_folder(self.folder / "final") as final:
            session.policy.save(final)
        if session.gmpo is not None and session.gmpo.critical:
            with whole_folder(self.folder / "critic") as critic:
                session.gmpo.save(critic)
        self._certify_end()
        return self._summary(self.stopped or FINISHED, before, after, kept=chosen)

    def _measured(self, split: str, step: int) -> Measurement:
        measured = self._measure(split, step)
        self._record(measured)
        return measured

    def _back_before_collapse(self) -> int:
        """Load the newest weights from before the collapse began; returns their step."""
        # A checkpoint's samples are older than its weights by one update, so its own state may not show the fall yet.
        first = self.step - int(self._state()["watch"]["held"].get("collapse", 0))
        found = find_weights(self.folder / "checkpoints", lambda step, state: step < first and not _collapsing(state))
        if found is None:
            self.session.notes.append(
                f"no checkpoint from before the collapse exists, so final/ holds the weights of step {self.step}. "
                "Lower train.checkpoint_every, or give eval.best"
            )
            return self.step
        load_weights(found.weights, self.session.parameters)
        self.session.notes.append(f"final/ holds the weights of step {found.step}, from before the collapse")
        return found.step

    def _certify_end(self) -> None:
        path = self.folder / "certificate.json"
        if not self.session.policy.is_adapter or not path.exists():
            return
        groups = self.session.batch_of(1)
        if self.session.method.samples:
            groups = self.session.rollout(
                [g.prompt for g in groups[:4]], 1, self.recipe.sampling, seed=self.recipe.seed, policy_version=self.step
            )
        checks = read_checks(path) + certify_adapter(self.session, groups)
        write_certificate(path, checks, self.session.precision)

    def _summary(self, status: str, before: Measured, after: Measured, kept: int | None = None) -> RunResult:
        best = self.best or {"step": None, "metric": None}
        change = {split: difference(before[split], after[split]) for split in after if split in before}
        every = [*before.values(), *after.values()]
        first, last = ({split: m.intervals(every) for split, m in some.items()} for some in (before, after))
        result = RunResult(self.folder, self.step, best["step"], first, last, change)
        facts = {
            "method": self.recipe.method, "name": self.recipe.name, "best_metric": best["metric"], "kept_step": kept,
            "seconds": self.seconds, "counts": {k: str(v) for k, v in self.session.counts.items()},
            "notes": self.session.notes,
        }  # fmt: skip
        write_summary(result, status, facts)
        return result


def _collapsing(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's last steps looked like a collapse: it is not one to go back to."""
    return bool(state["watch"]["held"].get("collapse", 0))
