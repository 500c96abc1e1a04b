"""What tests share: images, damaged files, faults and kills."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
