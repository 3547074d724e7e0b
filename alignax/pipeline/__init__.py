"""One module per arrow of a run: data, rollout, rewards, update, checkpoint."""

from alignax._lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    (
        "checkpoint",
        "data",
        "decoding",
        "metrics",
        "plots",
        "rewards",
        "rollout",
        "sharding",
        "update",
    ),
)
