"""What one step samples, before the host has judged it."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from alignax.types import InputError, Rollout, Scored

_JUDGED = {
    *("right", "clusters", "confidence", "reward_version", "objectives"),
    *("objective_weights", "token_rewards", "logp_teacher", "reference_rewards"),
}


class Samples(NamedTuple):
    """What one step samples; rewards are the host's to add."""

    scored: Scored
    greedy: Rollout | None
    """One greedy completion of each prompt, of methods that want its reward."""
    memory: dict[str, Any] | None = None
    """What the sampler keeps for the next step, for the state's memory."""

    @property
    def rollout(self) -> Rollout:
        return self.scored.rollout

    def rewarded(
        self,
        rewards: Any,
        *,
        greedy: Any = None,
        **fields: Any,
    ) -> Scored:
        """The record for the step.

        Args:
          rewards: ``[B]`` numbers, in the order of the rollout's rows.
          greedy: ``[G]``, rewards of ``greedy``'s rows.
          fields: more that the task knows of each completion, ``[B]``: ``right``
            (booleans), ``clusters`` (the meanings of the answers), ``confidence``,
            ``reward_version``, ``objectives`` (``[B, R]``), ``token_rewards`` and
            ``logp_teacher`` (``[B, T]``); and ``objective_weights [R]`` and
            ``reference_rewards [G, N]``, of samples taken beforehand.

        Returns:
          the scored rollout.

        Raises:
          InputError: a shape is off.
        """
        # The sampler left the shape of the groups in place of the rewards.
        shape = self.scored.rewards.shape
        unknown = set(fields) - _JUDGED
        if unknown:
            raise InputError(
                f"fields must be among {', '.join(sorted(_JUDGED))}, got "
                f"{', '.join(sorted(unknown))}"
            )
        rows, judged = shape[0] * shape[1], {"rewards": rewards, **fields}
        whole = ("objective_weights", "reference_rewards")
        whole = {name: judged.pop(name, None) for name in whole}
        sampled = whole["reference_rewards"]
        if sampled is not None and (
            jnp.ndim(sampled) != 2 or len(sampled) != shape[0] or not jnp.size(sampled)
        ):
            raise InputError(
                f"reference_rewards must be some numbers for each of the {shape[0]} "
                f"prompts, got shape {list(jnp.shape(sampled))}"
            )
        for name, value in judged.items():
            found, tokens = jnp.shape(value), self.scored.rollout.tokens.shape
            by_token = name in ("token_rewards", "logp_teacher")
            wanted = tokens if by_token else (rows,)
            several = found[1:] if name == "objectives" else ()
            if found != (*wanted, *several):
                raise InputError(
                    f"{name} must be one number for each of the {rows} completions"
                    f"{' and its tokens' if by_token else ''}, got shape {list(found)}"
                )
            value = jnp.asarray(value)
            judged[name] = value if by_token else value.reshape(*shape, *several)
        judged |= {name: jnp.asarray(x) for name, x in whole.items() if x is not None}
        judged["rewards"] = judged["rewards"].astype(jnp.float32)
        if greedy is not None:
            if jnp.shape(greedy) != shape[:1]:
                raise InputError(
                    f"greedy must be one reward for each of the {shape[0]} prompts, "
                    f"got shape {list(jnp.shape(greedy))}"
                )
            judged["greedy"] = jnp.asarray(greedy, jnp.float32)
        return dataclasses.replace(self.scored, **judged)
