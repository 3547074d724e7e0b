"""Train a reward model, which train rl takes as --reward model:FOLDER.

  alignax train reward --model FOLDER --data pairs.jsonl

Records have chosen and rejected answers behind a prompt, or an answer with a label.
docs/train.md has an example of each command.
"""

from alignax.train.runs import reward, setting
from alignax.train.runs.reward import Config

__all__ = ["Config", "main"]


def main(config: Config) -> None:
    """Run it, and say where things are.

    Args:
      config: the options.
    """
    result = reward.run(config)
    setting.done(result.folder)
