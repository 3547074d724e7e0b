"""Signs that a run does not learn, read off its metrics: each a sentence."""

import math
from collections.abc import Mapping, Sequence

Row = Mapping[str, float]

KL = 50.0
"""Nats a completion beyond which a policy is far from its reference, whatever the
task: e^50."""
RATIO = 0.01
"""How far the mean ratio of the first update may be from 1."""
ALIGNED = 0.1
"""Share of the tokens of which a teacher of another tokenizer may say nothing."""


def signs(rows: Sequence[Row]) -> dict[str, str]:
    """What the last of some rows of metrics says against the run.

    Args:
      rows: of consecutive steps, the last one last; a few before it suffice.

    Returns:
      a sentence by the sign's name, and nothing of a healthy run.

    Example:
      >>> sorted(signs([{"signal": 0.0, "finished": 0.25, "kl": 0.5}]))
      ['cut', 'no_signal']
    """
    if not rows:
        return {}
    last, found = rows[-1], {}
    if last.get("signal", 1.0) == 0:
        found["no_signal"] = (
            "no group has a signal: all completions of each prompt have one reward, so "
            "that nothing is learned from them; take easier or harder prompts, more "
            "completions of each, or a reward with degrees"
        )
    cut = 1 - last.get("finished", 1.0)
    if cut > 0.5:
        found["cut"] = (
            f"{cut:.0%} of the completions are cut at the limit before they end; raise "
            "max_tokens, or ask for shorter answers"
        )
    ratio = last.get("ratio", 1.0)
    # Samples of an older policy have another ratio by right; no token's is 0.
    due = last.get("staleness", 0.0) == 0 and ratio != 0
    if due and abs(ratio - 1) > RATIO:
        found["ratio"] = (
            f"the mean ratio of the first update is {ratio:.4f} and not 1: what is "
            "trained is not what was sampled; take dtype float32, or sample from all "
            "tokens"
        )
    found |= _divergence([row["kl"] for row in rows if "kl" in row])
    apart = 1 - last.get("aligned", 1.0)
    if apart > ALIGNED:
        found["apart"] = (
            f"{apart:.0%} of the policy's tokens are in no text that the teacher's "
            "tokenizer writes as they do, and are not trained: bytes that are no "
            "character, special tokens, or what follows them; a model that writes text "
            "would do, or a teacher that reads it as it is"
        )
    failed = last.get("reward_failed", 0.0)
    if failed > 0:
        found["failed"] = (
            f"{failed:.0%} of the rewards are not finite, so that the update is "
            "skipped; mend the reward function, whose warnings name the records"
        )
    return found


def _divergence(kls: Sequence[float]) -> dict[str, str]:
    if not kls:
        return {}
    kl = kls[-1]
    # Twofold over the last rows: the mean of their halves, which noise moves less.
    half = len(kls) // 2
    early, late = kls[:half], kls[-half:] if half else []
    doubling = (
        half >= 5
        and math.fsum(early) > half * 1.0
        and math.fsum(late) > 2 * math.fsum(early)
    )
    if not kl > KL and not doubling:
        return {}
    how = f"beyond {KL:g}" if kl > KL else f"twice what it was {half} steps ago"
    return {
        "divergence": (
            f"the divergence runs away: the KL to the reference is {kl:.3g} nats a "
            f"completion, {how}; raise beta, hold the KL by target_kl, or lower the "
            "learning rate"
        )
    }
