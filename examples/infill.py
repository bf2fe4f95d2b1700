"""Train a small text model on English out of Python's own documentation, and fill a hole in a sentence."""

import subprocess
import sys

run = [sys.executable, "-m", "tasks.text"]
train = ["train", "--steps", "30", "--batch_size", "16", "--length", "48", "--num_layers", "1", "--hidden_size", "32",
         "--num_heads", "2", "--twin", "false", "--eval_rows", "32", "--samples", "4", "--progress", "false",
         "--device", "cpu", "--out", "runs/infill"]  # fmt: skip
subprocess.run([*run, *train], check=True)
subprocess.run([*run, "sample", "runs/infill", "--infill", "return the ____ of the list", "--count", "2"], check=True)
