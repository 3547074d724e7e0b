"""Teach a student a teacher's distributions (distillation).

  alignax train distil --model STUDENT --teacher FOLDER --data prompts.jsonl

The teacher may be of any size; its vocabulary must be the student's. docs/teachers.md
says which divergence and whose samples to take.
"""

from alignax.train.runs import distil, setting
from alignax.train.runs.distil import Config

__all__ = ["Config", "main"]


def main(config: Config) -> None:
    """Run it, and say where things are.

    Args:
      config: the options.
    """
    result = distil.run(config)
    setting.done(result.folder)
