"""Log-probabilities, entropies, divergences: from logits, or from hidden states."""

from alignax.logprobs.dense import entropy, log_softmax, token_logp
from alignax.logprobs.hidden import TokenStats, from_hidden
from alignax.logprobs.two_heads import divergence_from_hidden

__all__ = [
    "TokenStats",
    "divergence_from_hidden",
    "entropy",
    "from_hidden",
    "log_softmax",
    "token_logp",
]
