"""Self-Critique's two answers, on a tiny model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional, gguf
from alignax.train import critique, folders
from alignax.train.generation import Law
from alignax.types import InputError
from tests.models import gguf_file
from tests.models.cases import random_params
from tests.models.gguf_file import TINY


@pytest.mark.slow
def test_the_score_is_of_two_greedy_answers(tmp_path):
    """Against forward passes of whole texts, token by token."""
    gguf_file.write(tmp_path / "a.gguf", random_params(TINY, seed=0))
    gguf.convert(tmp_path / "a.gguf", tmp_path / "a")
    policy = folders.open_policy(tmp_path / "a")
    found = critique.scores(
        policy,
        [{"prompt": "ab"}, {"prompt": "the hell"}],
        law=Law(max_tokens=4, n=3, batch=2),
        plain=True,
        instruction=" {answer} 12",
    )
    apply_fn = jax.jit(functional.make_apply(policy.config))

    def answer(text):
        ids, entropies, written = policy.tokenizer.encode(text), [], []
        while len(written) < 4 and not set(written) & set(policy.tokenizer.end_ids):
            seen = [*ids, *written]
            tokens = jnp.array([seen + [0] * (64 - len(seen))])
            law = jax.nn.log_softmax(apply_fn(policy.params, tokens).logits[0])
            law = np.asarray(law, np.float64)[len(seen) - 1]
            entropies.append(-(np.exp(law) * law).sum())
            written.append(int(law.argmax()))
        return policy.tokenizer.decode(written), np.array(entropies)

    for text, value in zip(("ab", "the hell"), found, strict=True):
        said, first = answer(text)
        _, second = answer(f"{text} {said} 12")
        n = min(len(first), len(second))
        cosine = first[:n] @ second[:n]
        cosine /= np.linalg.norm(first) * np.linalg.norm(second)
        expected = cosine * n / max(len(first), len(second))
        assert value == pytest.approx(expected, rel=1e-4)


def test_the_question_is_asked_again():
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    again = critique.asked_again(chat, "3", instruction=" not {answer}")
    assert again == [chat[0], {"role": "user", "content": "u not 3"}]
    assert chat[1]["content"] == "u"
    with pytest.raises(InputError, match="instruction must have"):
        critique.asked_again("u", "3", instruction="again")
