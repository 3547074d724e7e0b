"""Sample arguments for ``alignax.logprobs``."""

import jax

from alignax import logprobs
from tests.row import Row

LOGITS = jax.random.normal(jax.random.key(0), (8, 3, 5))
TOKENS = jax.random.randint(jax.random.key(1), (8, 3), 0, 5)

ROWS = [
    Row(name="logprobs.log_softmax", fn=logprobs.log_softmax, args=(LOGITS,)),
    Row(name="logprobs.token_logp", fn=logprobs.token_logp, args=(LOGITS, TOKENS)),
    Row(name="logprobs.entropy", fn=logprobs.entropy, args=(LOGITS,)),
]
