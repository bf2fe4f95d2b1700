"""LeRobot v3.0 data sets, read and written without LeRobot."""

from tasks.vla.lerobot.reading import Dataset, Windows, open_dataset, windows
from tasks.vla.lerobot.writing import write

__all__ = ["Dataset", "Windows", "open_dataset", "windows", "write"]
