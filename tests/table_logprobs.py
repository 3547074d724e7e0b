"""Sample arguments for ``alignax.logprobs``."""

from functools import partial

import jax

from alignax import divergences, logprobs
from tests.row import Row

LOGITS = jax.random.normal(jax.random.key(0), (8, 3, 5))
TOKENS = jax.random.randint(jax.random.key(1), (8, 3), 0, 5)
HIDDEN, HEAD, HIDDEN_REF, HEAD_REF = jax.random.normal(jax.random.key(2), (4, 8, 3))

ROWS = [
    Row(name="logprobs.log_softmax", fn=logprobs.log_softmax, args=(LOGITS,)),
    Row(name="logprobs.token_logp", fn=logprobs.token_logp, args=(LOGITS, TOKENS)),
    Row(name="logprobs.entropy", fn=logprobs.entropy, args=(LOGITS,)),
    # Every token meets every row of the head.
    Row(
        name="logprobs.from_hidden",
        fn=partial(logprobs.from_hidden, block_size=3),
        args=(HIDDEN, HEAD, TOKENS),
        rowwise=False,
        grad=(0, 1),
    ),
    Row(
        name="logprobs.divergence_from_hidden",
        fn=partial(
            logprobs.divergence_from_hidden, divergences.reverse_kl(), block_size=3
        ),
        args=(HIDDEN, HEAD, HIDDEN_REF, HEAD_REF),
        rowwise=False,
        grad=(0, 1),
        estimator=True,
    ),
]
