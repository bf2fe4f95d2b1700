"""One thread per worker: two workers that each take all cores are slower than one. The longest files come first."""

import gc

import pytest
import torch
from picture_toy import picture_model, picture_root  # noqa: F401  (fixtures that several files share)

torch.set_num_threads(1)

LONG = ("test_training.py", "test_survival.py", "test_text_task.py", "test_text_finetune.py", "test_laws.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long file that begins last is waited for by every other worker."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    """What is imported and collected stays to the end: looking through it for garbage takes a tenth of the suite's time."""
    gc.freeze()
