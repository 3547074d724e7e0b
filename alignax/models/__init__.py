"""Decoders, heads, adapters and their files; ``functional`` is the flax boundary."""

from alignax._lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    ("config", "decoder", "functional", "heads", "hf", "lora"),
    {
        "Decoder": "decoder",
        "DecoderConfig": "config",
        "LoRA": "lora",
        "RewardModel": "heads",
    },
)
