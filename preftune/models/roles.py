"""Roles: further LoRA adapters on the policy's frozen base, each acting alone when it is its turn.

    one frozen base ── `default`  the policy
                    ├─ `value`    PPO's value head
                    ├─ `reward`   a reward model that was trained as an adapter of the same base
                    └─ `critic`   GMPO's generative critic

The reference is the base with none of them. An adapter that lies beneath the policy's (model.on_adapter: stack) belongs
to the base, so it acts under every role.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preftune.config import LoraConfig
from preftune.errors import ModelError
from preftune.models.adapters import GIVEN, TRAINED, acting, first_line, lora_settings
from preftune.models.loading import ADAPTER_FOLDER, Policy


@dataclass
class Role:
    """An adapter of its own on a policy's base. Within `acting` the policy's model is this role's model.

    Attributes:
        name: the adapter's name in the peft model.
    """

    policy: Policy
    name: str

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The adapter's weights, in a fixed order; their names hold the role's."""
        # by peft's part of the name: the base may have modules called `value` of its own
        mine = re.compile(rf"\.lora_\w+\.{re.escape(self.name)}(\.|$)")
        return [(n, p) for n, p in self.policy.model.named_parameters() if mine.search(n)]

    @contextmanager
    def acting(self, *, train: bool = False) -> Iterator[Any]:
        """Within it the policy's model runs as this role, its weights trained where `train` says so. Afterwards what
        is active and what is trained is as it was. A backward pass belongs inside: layers that are recomputed there
        must find the same adapter."""
        under = [GIVEN] if GIVEN in self.policy.model.peft_config else []
        with acting(self.policy.model, [*under, self.name]):
            if train:
                for _, parameter in self.parameters():
                    parameter.requires_grad_(True)
            yield self.policy.model

    def save(self, folder: Path) -> None:
        """Write the adapter in peft's form."""
        self.policy.model.save_pretrained(folder, selected_adapters=[self.name])


def add_role(policy: Policy, name: str, lora: LoraConfig, *, seed: int) -> Role:
    """A new adapter on the policy's base, frozen until it acts in training. Its start depends on the seed alone.

    Raises:
        ModelError: the policy trains all weights, so there is no frozen base to share; or targets that do not exist.
    """
    if not policy.is_adapter:
        raise ModelError(
            f"the {name} role shares the policy's frozen base, so the policy must be an adapter: model.lora"
        )
    model = policy.model
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    active = list(model.active_adapters)
    devices = [torch.cuda.current_device()] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        try:
            model.add_adapter(name, lora_settings(lora))
        except ValueError as error:
            raise ModelError(f"the {name} role's lora.targets {lora.targets}: {first_line(str(error))}") from error
    model.base_model.set_adapter(active)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    role = Role(policy, name)
    for _, parameter in role.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.float().to(policy.device)  # small updates to 16-bit weights round away
    return role


@dataclass(frozen=True, slots=True)
class RewardAdapter:
    """A reward model kept as an adapter: what `read_reward_adapter` found.

    Attributes:
        base: hub id or folder of the model that it adapts.
        lora: its shape.
    """

    folder: Path
    base: str
    base_revision: str | None
    lora: LoraConfig


def read_reward_adapter(path: str) -> RewardAdapter | None:
    """The adapter beside a reward model that `preftune reward` trained with LoRA; None where there is none, or one of
    a kind that rank and alpha do not tell all of (a continued adapter may be rank-stabilised, say).

    Raises:
        ModelError: its adapter_config.json is damaged.
    """
    folder = Path(path).expanduser() / ADAPTER_FOLDER
    file = folder / "adapter_config.json"
    if not file.exists() or not (folder / "adapter_model.safetensors").exists():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        lora = LoraConfig(
            r=settings["r"], alpha=settings["lora_alpha"], dropout=settings["lora_dropout"],
            targets=settings["target_modules"],
        )  # fmt: skip
        found = RewardAdapter(folder, str(settings["base_model_name_or_path"]), settings.get("revision"), lora)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is damaged: {first_line(str(error))}") from error
    return found if _is_plain(settings, lora) else None


def _is_plain(settings: Mapping[str, Any], lora: LoraConfig) -> bool:
    """Whether these settings of peft's are those of an adapter that `add_role` makes, but for what is its owner's."""
    usual = lora_settings(lora).to_dict()
    owners = {
        "base_model_name_or_path", "revision", "task_type", "modules_to_save", "inference_mode", "target_modules",
        "fan_in_fan_out", "auto_mapping", "peft_version",
    }  # fmt: skip
    return all((value or None) == (usual.get(name) or None) for name, value in settings.items() if name not in owners)


def shareable(path: str, policy: Policy) -> RewardAdapter | None:
    """The reward model's adapter, where it acts on exactly the base that the policy's adapter stands on."""
    if not policy.is_adapter or GIVEN in policy.model.peft_config or policy.saves_whole:
        return None
    found = read_reward_adapter(path)
    if found is None:
        return None
    mine = policy.model.peft_config[TRAINED]
    same = same_model(found.base, str(mine.base_model_name_or_path))
    return found if same and (found.base_revision or "main") == (mine.revision or "main") else None


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: a hub id, or a folder however it is written."""
    if Path(one).exists() and Path(other).exists():
        return Path(one).resolve() == Path(other).resolve()
    return one == other


def put_reward(policy: Policy, name: str, source: RewardAdapter) -> tuple[Role, torch.Tensor]:
    """A role with a reward adapter's weights, and its head [D] in fp32.

    Raises:
        ModelError: the adapter's weights do not fit the policy's base, or it has no single head.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    role = add_role(policy, name, source.lora, seed=0)
    try:
        weights = load_file(source.folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"can't read the adapter in {source.folder}: {first_line(str(error))}") from error
    heads = {key: value for key, value in weights.items() if "lora_" not in key}
    if len(heads) != 1 or next(iter(heads.values())).shape[0] != 1:
        raise ModelError(f"{source.folder} has no single reward head: {', '.join(heads) or 'none'}")
    body = {key: value for key, value in weights.items() if "lora_" in key}
    flags = [(parameter, parameter.requires_grad) for parameter in policy.model.parameters()]
    misfit = f"the reward adapter in {source.folder} does not fit {policy.config.path}"
    try:
        result = set_peft_model_state_dict(policy.model, body, adapter_name=name)
    except RuntimeError as error:  # other shapes
        raise ModelError(f"{misfit}: {first_line(str(error))}") from error
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    missing = [key for key in getattr(result, "missing_keys", ()) if f".{name}." in f"{key}."]
    unexpected = list(getattr(result, "unexpected_keys", ()))
    if missing or unexpected:
        raise ModelError(
            f"{misfit}: {len(missing)} weights missing, {len(unexpected)} without a place "
            f"({sorted(missing + unexpected)[0]})"
        )
    return role, next(iter(heads.values()))[0].float().to(policy.device)
