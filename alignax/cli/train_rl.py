"""Train a policy by its own samples, under a divergence from where it began.

  alignax train rl --model FOLDER --data problems.jsonl --reward numeric
  alignax train rl --model FOLDER --data problems.jsonl --reward my.py:score \\
    --method dapo --divergence jensen_shannon --lora.rank 16

Records have a prompt (a text, or messages) and what the reward wants, such as an
answer. docs/train.md has an example of each command.
"""

from alignax.train.runs import rl, setting
from alignax.train.runs.rl import Config

__all__ = ["Config", "main"]


def main(config: Config) -> None:
    """Run it, and say where things are.

    Args:
      config: the options.
    """
    result = rl.run(config)
    setting.done(result.folder)
