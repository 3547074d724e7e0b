"""Play a preference game against oneself (Nash learning from preferences).

  alignax train game --model FOLDER --data prompts.jsonl --judge my.py:prefer

The judge is given pairs of completions and says how likely the first is preferred.
docs/train.md has an example of each command.
"""

from alignax.train.runs import game, setting
from alignax.train.runs.game import Config

__all__ = ["Config", "main"]


def main(config: Config) -> None:
    """Run it, and say where things are.

    Args:
      config: the options.
    """
    result = game.run(config)
    setting.done(result.folder)
