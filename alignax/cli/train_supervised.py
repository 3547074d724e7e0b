"""Teach a policy answers by maximum likelihood (SFT).

  alignax train supervised --model FOLDER --data answers.jsonl --lora.rank 16

Records have a prompt with its completion, or messages. docs/train.md has an example of
each command.
"""

from alignax.train.runs import setting, supervised
from alignax.train.runs.supervised import Config

__all__ = ["Config", "main"]


def main(config: Config) -> None:
    """Run it, and say where things are.

    Args:
      config: the options.
    """
    result = supervised.run(config)
    setting.done(result.folder)
