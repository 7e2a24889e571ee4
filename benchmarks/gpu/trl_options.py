"""TRL's DPO or GRPO with those of its options that the yardstick's scripts leave off.

    python benchmarks/gpu/trl_options.py MODEL DATA --peers FOLDER --method grpo [--liger] [--continuous-batching] …

Settings, rows, reward and the report line are those of trl_dpo.py and trl_grpo.py in FOLDER. TRL 1.16 reads log-probs
from its head in chunks at all times, so there is no option for that. --liger: Liger's layer kernels
(use_liger_kernel). --continuous-batching: GRPO samples with transformers' continuous batching; with bf16 TRL then
turns the policy's weights into bf16 for good at the first sampling. --precompute-reference: DPO's reference runs once,
before training, as preftune's does.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    first = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    first.add_argument("--peers", type=Path, required="-h" not in sys.argv and "--help" not in sys.argv)
    found, rest = first.parse_known_args()
    if found.peers is None:
        sys.exit(__doc__)
    sys.path.insert(0, str(found.peers.resolve()))
    import common  # type: ignore[import-not-found]  # the yardstick's

    parser = common.parser(__doc__)
    parser.add_argument("--method", choices=["dpo", "grpo"], required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--continuous-batching", action="store_true")
    parser.add_argument("--precompute-reference", action="store_true")
    args = parser.parse_args(rest)
    if args.method == "dpo" and args.continuous_batching:
        parser.error("DPO samples nothing: leave --continuous-batching out")
    if args.method == "grpo" and args.precompute_reference:
        parser.error("this GRPO has no reference: leave --precompute-reference out")

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

    settings = {**common.trainer_settings(args), "use_liger_kernel": args.liger}
    parts: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(args.model, dtype="float32"),
        "processing_class": AutoTokenizer.from_pretrained(args.model),
        **common.lora(args),
    }
    if args.method == "dpo":
        before = 0.0

        class Trainer(DPOTrainer):  # type: ignore[misc]
            """The reference's pass comes before train(), and belongs to the training time, as on preftune's side."""

            def _precompute_ref_logps(self, *of: Any, **named: Any) -> Any:
                nonlocal before
                start = time.perf_counter()
                found = super()._precompute_ref_logps(*of, **named)
                before += time.perf_counter() - start
                return found

        dpo = Trainer(
            args=DPOConfig(
                per_device_train_batch_size=args.batch, max_length=args.max_length,
                precompute_ref_log_probs=args.precompute_reference, **settings,
            ),
            train_dataset=Dataset.from_list(common.rows(args.data, args.rows)), **parts,
        )  # fmt: skip
        seconds = common.timed(dpo.train, args)
        common.report("dpo", args, seconds + before, args.rows, "pairs")
        return
    tokens = 0

    def distinct_words(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        nonlocal tokens
        tokens += sum(map(len, completion_ids))
        return [float(len(set(c[0]["content"].split()))) for c in completions]

    data = [{"prompt": row["prompt"]} for row in common.rows(args.data, args.prompts * args.steps)]
    grpo = GRPOTrainer(
        args=GRPOConfig(
            per_device_train_batch_size=args.prompts * args.group, num_generations=args.group,
            max_completion_length=args.new_tokens, max_steps=args.steps,
            use_transformers_continuous_batching=args.continuous_batching, **settings,
        ),
        train_dataset=Dataset.from_list(data), reward_funcs=distinct_words, **parts,
    )  # fmt: skip
    seconds = common.timed(grpo.train, args)
    common.report("grpo", args, seconds, tokens, "completion tokens")


if __name__ == "__main__":
    main()
