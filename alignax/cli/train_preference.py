"""Train a policy by preferences: DPO and its like, f-DPO with any divergence, KTO.

  alignax train preference --model FOLDER --data pairs.jsonl
  alignax train preference --model FOLDER --data pairs.jsonl \\
    --divergence jensen_shannon --lora.rank 16

Records have chosen and rejected answers behind a prompt, or an answer with a label.
docs/train.md has an example of each command.
"""

from alignax.train.runs import preference, setting
from alignax.train.runs.preference import Config

__all__ = ["Config", "main"]


def main(config: Config) -> None:
    """Run it, and say where things are.

    Args:
      config: the options.
    """
    result = preference.run(config)
    setting.done(result.folder)
