"""A run: a policy, a task and a method, and the step that trains one by the others.

One file a kind of step; each is a pure function ``(state, batch) -> (state, metrics)``
that a notebook scans, a sweep vmaps and a mesh shards. ``loop`` is the host's side:
files, resuming, progress.
"""

from alignax._lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    (
        "assembly",
        "critic",
        "evaluation",
        "loop",
        "measured",
        "memory",
        "options",
        "policy",
        "policy_gradient",
        "preference",
        "reward_folders",
        "reward_model",
        "runs",
        "sampler",
        "supervised",
        "tasks",
    ),
)
