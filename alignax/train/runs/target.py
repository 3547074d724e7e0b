"""Training towards a target law on one's own prompts: f-DPG."""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from alignax import targets
from alignax.pipeline import data, hosts, rewards
from alignax.train import reward_folders, tasks
from alignax.train.options import RL
from alignax.train.policy import Policy
from alignax.train.runs import rl, setting, writing
from alignax.train.runs.alarms import Alarms
from alignax.train.runs.options import Data, Flat, Model, Output
from alignax.train.runs.setting import Result, Sets
from alignax.train.runs.teaching import Teaching, worthless
from alignax.types import InputError

FITTED = "multipliers.json"
METHODS = {
    "experts": "f_dpg (experts)",
    "posterior": "f_dpg",
    "filter": "f_dpg (filter)",
    "constraints": "f_dpg (constraints)",
}
SHOWN = (
    *("kl_to_target", "kl_from_target", "log_z", "log_z_error", "target_samples"),
    *("excluded", "kl", "entropy", "length"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A divergence from a target law, descended on the policy's own samples."""

    model: Annotated[Model, Flat]
    data: Annotated[Data, Flat]
    target: Literal["posterior", "filter", "constraints", "experts"] = "posterior"
    """The law: the posterior of the model and a reward over beta, what KL-regularised
    RL ends at; a filter, the model's completions whose reward is at least right_at;
    constraints, the nearest law to the model in which features have given means; or
    experts, what they have together."""
    expert: tuple[Path, ...] = ()
    """Folders of models with the model's vocabulary: of experts all that the target is
    made of, of the posterior and of the filter what stands for the model in it. The
    model itself is among them if its folder is."""
    expert_weight: tuple[float, ...] = ()
    """One for each expert; by default 1 over their number. Of a product they are
    exponents: below 0 for what is to be avoided, above 1 to go beyond; of a mixture
    they sum to 1."""
    combine: Literal["product", "mixture"] = "product"
    """Whether experts must all find a completion likely, or one of them."""
    reward: tuple[str, ...] = ()
    """What a completion is worth, of the posterior and of the filter: spelled as those
    of train rl."""
    feature: tuple[str, ...] = ()
    """Of constraints: a number of each completion, spelled as a reward; several have as
    many moments."""
    moment: tuple[float, ...] = ()
    """The wanted mean of each feature under the target, over all prompts. 1 of a
    feature that is 0 or 1 means every completion."""
    right_at: float = 0.5
    """The reward from which on a completion passes the filter."""
    fit_prompts: int = 16
    """Prompts that the multipliers of constraints are fitted on."""
    fit_completions: int = 32
    """The model's completions of each of them."""
    prompt_length: int | None = None
    """Tokens of the longest prompt; longer ones are left out. By default the data's
    percentile."""
    max_tokens: int | None = None
    """Tokens of the longest completion. By default half more than the data's
    completions have, where it has some, else 256, as far as the context goes."""
    rl: Annotated[RL, Flat] = RL(
        method="f_dpg",
        divergence="forward_kl",
        steps=200,
        prompts=8,
        completions=8,
        microbatches=4,
        learning_rate=None,
        warmup=None,
    )
    alarm: Alarms = Alarms()
    output: Annotated[Output, Flat] = Output(out=Path("runs/target"))

    def __post_init__(self):
        constrained = self.target == "constraints"
        if (self.target in ("posterior", "filter")) != bool(self.reward):
            made = {"constraints": "feature and moment", "experts": "expert"}
            raise InputError(
                f"reward: the target {self.target} is made of "
                f"{made.get(self.target, 'reward')}, got "
                f"{', '.join(self.reward) or 'none'}"
            )
        self._check_experts()
        if constrained != bool(self.feature) or len(self.feature) != len(self.moment):
            raise InputError(
                "feature and moment must be given for the target constraints, as many "
                f"of one as of the other, got {len(self.feature)} and "
                f"{len(self.moment)} for the target {self.target}"
            )
        if not self.rl.method.startswith("f_dpg"):
            raise InputError(
                f"method must be f_dpg here, got {self.rl.method}; train rl has others"
            )
        if self.rl.completions < 2:
            raise InputError(
                "completions must be at least 2: each one's normaliser and baseline "
                f"are by the others, got {self.rl.completions}"
            )
        for name, least in (("fit_prompts", 1), ("fit_completions", 2)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} must be at least {least}, got {getattr(self, name)}"
                )

    def _check_experts(self):
        weights, count = self.expert_weight, len(self.expert)
        if self.target == "experts" and not count:
            raise InputError("expert must be one folder or more for the target experts")
        if self.target == "constraints" and count:
            raise InputError(
                "expert must be left out for constraints, which are fitted on the "
                f"model's own completions, got {self.expert[0]}"
            )
        if weights and len(weights) != count:
            raise InputError(
                f"expert_weight must be one for each of the {count} experts, got "
                f"{', '.join(map(str, weights))}"
            )
        if not all(math.isfinite(weight) for weight in weights):
            raise InputError(f"expert_weight must be finite, got {weights}")
        bad = weights and (min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6)
        if self.combine == "mixture" and bad:
            raise InputError(
                "expert_weight must be positive and sum to 1 for a mixture, got "
                f"{', '.join(map(str, weights))}, which sum to {sum(weights):g}"
            )


def _as_rl(config: Config) -> rl.Config:
    """The policy gradient that it is."""
    beta = config.rl.beta
    if config.target == "constraints":
        if beta not in (None, 1.0):
            raise InputError(
                f"beta has nothing to act on, got {beta}: the multipliers of "
                "constraints are fitted"
            )
        beta = None
    return rl.Config(
        model=config.model,
        data=config.data,
        reward=config.reward or config.feature,
        right_at=config.right_at,
        teaching=Teaching(teacher=config.expert),
        prompt_length=config.prompt_length,
        max_tokens=config.max_tokens,
        rl=dataclasses.replace(config.rl, method=METHODS[config.target], beta=beta),
        alarm=config.alarm,
        output=config.output,
    )


def run(config: Config) -> Result:
    """Train a policy towards a target, and write all that the folder is to hold.

    Args:
      config: the options.

    Returns:
      the state at the end, the policy with the trained parameters, the folder and the
      rows of its log.

    Raises:
      InputError: an option, the data, the model's folder or a reward is bad, or the
        constraints cannot be met.
      RunError: the run cannot go on.
    """
    setting.check(config.output, config.model)
    inner = _as_rl(config)
    with contextlib.ExitStack() as stack:
        spelled = [(x,) for x in config.feature] or [config.reward]
        opened = [
            stack.enter_context(reward_folders.open_rewards(texts))
            for texts in spelled
            if texts
        ]
        sets, policy, inner = rl.opened(inner)
        recorded = dataclasses.replace(
            config,
            prompt_length=inner.prompt_length,
            max_tokens=inner.max_tokens,
            rl=dataclasses.replace(
                config.rl, learning_rate=inner.rl.learning_rate, beta=inner.rl.beta
            ),
        )
        count = len(config.expert)
        task = rl.Task(
            "target",
            SHOWN,
            recorded,
            weights=config.expert_weight or (1 / count,) * count if count else (),
            mixture=config.combine == "mixture",
        )
        if config.target != "constraints":
            reward = opened[0] if opened else worthless
            return rl.trained(inner, sets, policy, reward, task)
        fitted = _fitted(config, inner, sets, policy, opened)
        reward = rewards.weighted_sum([(1 / len(opened), x) for x in opened])
        judged, said = _constrained(fitted, sets, policy, opened)
        task = task._replace(judge=judged, said=said, shown=(*fitted["names"], *SHOWN))
        return rl.trained(inner, sets, policy, reward, task)


def _names(spelled: Sequence[str]) -> list[str]:
    """Of features in the log: a function's, or a built-in's."""
    names = [text.split(",")[0].rsplit(":", 1)[-1].split("*")[-1] for text in spelled]
    return [
        name if names.count(name) == 1 else f"{name}_{i + 1}"
        for i, name in enumerate(names)
    ]


def _fitted(
    config: Config,
    inner: rl.Config,
    sets: Sets,
    policy: Policy,
    features: Sequence[rewards.Reward],
) -> dict[str, Any]:
    """The multipliers, fitted on the model's completions or read from the folder."""
    path = config.output.out / FITTED
    if config.output.resume and path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    values = _sampled(config, inner, sets, policy, features)
    names, wanted = _names(config.feature), np.array(config.moment)
    binary = np.isin(values, (0.0, 1.0)).all(axis=(0, 1))
    pointwise = binary & (wanted == 1)
    kept = np.all(values[..., pointwise] == 1, axis=-1)
    log_weights = jnp.where(jnp.asarray(kept), 0.0, -jnp.inf)
    fit = targets.fit_multipliers(
        jnp.asarray(values[..., ~pointwise]),
        jnp.asarray(wanted[~pointwise]),
        log_weights,
    )
    free = [name for name, point in zip(names, pointwise, strict=True) if not point]
    targets.refuse_unmet(fit, wanted[~pointwise].tolist(), free)
    multipliers, errors = np.zeros(len(names)), np.zeros(len(names))
    reached = np.ones(len(names))
    for whole, part in (
        (multipliers, fit.values),
        (errors, fit.errors),
        (reached, fit.moments),
    ):
        whole[~pointwise] = np.asarray(part)
    effective = float(np.mean(np.asarray(fit.effective)))
    found = {
        "names": names,
        "wanted": wanted.tolist(),
        "base": values.mean(axis=(0, 1)).tolist(),
        "moments": reached.tolist(),
        "multipliers": multipliers.tolist(),
        "errors": errors.tolist(),
        "pointwise": pointwise.tolist(),
        "effective_samples": effective,
        "samples": int(values.shape[1]),
    }
    for i, name in enumerate(names):
        how = "every completion"
        if not pointwise[i]:
            how = f"multiplier {multipliers[i]:.3f} ± {errors[i]:.3f}"
        setting.say(f"{name}: {found['base'][i]:.3f} to {wanted[i]:g}, {how}")
    setting.say(
        f"of {values.shape[1]} completions a prompt {effective:.1f} count for the "
        "target" + ("; the fit rests on few" if effective < 4 else "")
    )
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _sampled(config, inner, sets, policy, features) -> np.ndarray:
    """``[prompts, completions, D]``: the features of the model's own completions."""
    tokenizer, train = policy.tokenizer, sets.train
    some = np.linspace(0, len(train) - 1, min(config.fit_prompts, len(train)))
    numbers = sorted({int(x) for x in some})
    prompts = data.encode_prompts(
        [data.prompt_text(train[i], tokenizer) for i in numbers],
        tokenizer,
        length=inner.prompt_length or 1,
        indices=numbers,
        on_long="drop",
    )
    parts = writing.make_parts(
        inner.rl, policy, inner.writing, max_tokens=inner.max_tokens or 1
    )
    key, found = jax.random.key(inner.output.seed + 2), []
    for start in range(0, len(prompts.index), inner.rl.prompts):
        part = jax.tree.map(lambda x, at=start: x[at : at + inner.rl.prompts], prompts)
        rollout = parts.generate(
            policy.params, key, part, completions=config.fit_completions
        )
        rollout = hosts.fetch(rollout)
        index = np.repeat(np.asarray(part.index), config.fit_completions)
        columns = [
            tasks.judge_texts(train, feature, tokenizer)(rollout, index)["rewards"]
            for feature in features
        ]
        columns = [rewards.checked(column, index) for column in columns]
        found.append(
            np.stack(columns, -1).reshape(-1, config.fit_completions, len(columns))
        )
    values = np.concatenate(found).astype(np.float64)
    if not np.isfinite(values).all():
        print(
            "warning: features that are not finite count as 0 in the fit",
            file=sys.stderr,
        )
    return np.nan_to_num(values, posinf=0.0, neginf=0.0)


def _constrained(fitted, sets: Sets, policy: Policy, features):
    """The judge of a target with constraints, and the means that it saw last."""
    multipliers = np.array(fitted["multipliers"])
    pointwise = np.array(fitted["pointwise"])
    judges = [
        tasks.judge_texts(sets.train, feature, policy.tokenizer) for feature in features
    ]
    seen: dict[str, np.float32] = {}

    def judge(rollout, numbers):
        columns = [
            rewards.checked(judge(rollout, numbers)["rewards"], numbers)
            for judge in judges
        ]
        values = np.stack(columns, axis=-1)
        means = zip(fitted["names"], values.mean(axis=0), strict=True)
        seen.update({name: np.float32(mean) for name, mean in means})
        return {
            "rewards": (values @ multipliers).astype(np.float32),
            "right": np.all((values == 1) | ~pointwise, axis=-1),
        }

    return judge, lambda: dict(seen)
