"""Problems that ``reasoning-gym`` generates, as records."""

import dataclasses
import json
from typing import Any

from alignax.types import InputError


def reasoning_gym_records(
    name: str, *, size: int = 500, seed: int = 0, **options: Any
) -> list[dict[str, Any]]:
    """Generated problems with answers that can be verified.

    Two seeds may ask the same where a task has few problems: hold some of one set out
    by ``split``, or leave out of one those of another by ``apart``.

    Args:
      name: of the data set, such as ``"chain_sum"``.
      size: how many.
      seed: of the generator.
      **options: of the data set's own configuration, such as ``max_terms=2``.

    Returns:
      records with ``prompt``, ``answer`` and ``entry``, plain values as JSON has them:
      what ``rewards.reasoning_gym`` scores by.

    Raises:
      InputError: the package is missing, there is no such data set, an option is not
        the data set's or out of its range, or its entries are not plain values.

    Reference:
      Stojanovski et al., "Reasoning Gym: reasoning environments for reinforcement
      learning with verifiable rewards", arXiv 2505.24760.
    """
    try:
        # A second and a half.
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise InputError(
            'name: reasoning_gym needs its package; pip install "alignax[tasks]" '
            "would do."
        ) from error
    if name not in DATASETS:
        near = [known for known in DATASETS if name in known or known in name]
        raise InputError(
            f"name: reasoning_gym has no {name!r}; it has {len(DATASETS)} data sets, "
            f"such as {', '.join(near or list(DATASETS)[:4])}."
        )
    known = [field.name for field in dataclasses.fields(DATASETS[name][1])]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise InputError(
            f"{unknown[0]}: reasoning_gym:{name} has no such option; it has "
            f"{', '.join(known)}."
        )
    if not isinstance(size, int) or size < 1:
        raise InputError(f"size: {size!r} was given; 1 or more would do.")
    try:
        dataset = create_dataset(name, size=size, seed=seed, **options)
        entries = [dataset[number] for number in range(size)]
    # Its checks are assertions; values of a wrong type fail anywhere.
    except (AssertionError, ValueError, TypeError) as error:
        raise InputError(
            f"name: reasoning_gym:{name} refuses its options ({error}); its own "
            f"configuration says which would do: {', '.join(known)}."
        ) from error
    records = []
    for entry in entries:
        plain = json.loads(json.dumps(entry))
        records.append(
            {"prompt": entry["question"], "answer": entry["answer"], "entry": plain}
        )
    first = entries[0]
    if dataset.score_answer(first["answer"], first) != dataset.score_answer(
        first["answer"], records[0]["entry"]
    ):
        raise InputError(
            f"name: the entries of reasoning_gym:{name} are no plain values, so that "
            "its scorer does not know them again; another data set would do."
        )
    return records
