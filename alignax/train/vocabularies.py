"""Whether two models read and write the same tokens."""

from pathlib import Path

from alignax.models import functional
from alignax.train import policy as policies
from alignax.train.policy import Policy
from alignax.types import InputError


def check_same(
    student: Policy,
    teacher: Policy,
    folder: Path,
    *,
    names: tuple[str, str] = ("student", "teacher"),
    instead: str = "",
) -> int:
    """Refuse a teacher of another vocabulary.

    Args:
      student: the policy.
      teacher: the other one.
      folder: the teacher's, for the message.
      names: what the message calls the two.
      instead: what the message ends with.

    Returns:
      the columns that both heads have: either may be padded beyond the tokens.

    Raises:
      InputError: a text is not the same tokens to both, with what differs.
    """
    ours, theirs = student.tokenizer, teacher.tokenizer
    differ = []
    for name in ("vocab_size", "eos_id"):
        if getattr(ours, name) != getattr(theirs, name):
            pair = getattr(theirs, name), getattr(ours, name)
            differ.append(f"its {name} is {pair[0]}, the {names[0]}'s {pair[1]}")
    for text in PROBES:
        found = [tokenizer.encode(text) for tokenizer in (theirs, ours)]
        if found[0] != found[1]:
            differ.append(f"{text!r} is the tokens {found[0][:8]}, not {found[1][:8]}")
            break
    if differ:
        raise InputError(
            f"{names[1]} must have the {names[0]}'s vocabulary; of {folder} "
            f"{'; '.join(differ)}. A {names[1]} of the same family would do{instead}"
        )
    return min(student.config.vocab_size, teacher.config.vocab_size)


PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.\n\tdef f(x): return x ** 2",
    "naïve Zürich – “quoted”, 東京, Привет 🙂",
)


def cropped(policy: Policy, columns: int) -> Policy:
    """A model whose head is without what pads it: it draws no token that another
    model's embedding has not.

    Args:
      policy: the model.
      columns: of the vocabulary, to keep.

    Returns:
      the policy, with other functions of the same parameters.
    """
    if policy.config.vocab_size == columns:
        return policy
    fns = policy.whole_fns or (
        functional.make_apply(policy.config),
        functional.make_hidden(policy.config),
    )

    def apply_fn(*args, **kwargs):
        out = fns[0](*args, **kwargs)
        return out._replace(logits=out.logits[..., :columns])

    def hidden_fn(*args, **kwargs):
        out = fns[1](*args, **kwargs)
        return out._replace(head=out.head[:columns])

    return policies.with_functions(policy, apply_fn, hidden_fn)
