"""A small server with OpenAI's endpoints that streams the un-masking (docs/serving.md).

python -m examples.chat_server                        # from the repository: one question to a tiny untrained model
python -m examples.chat_server runs/book --serve      # a folder of tasks.text train or finetune, on port 8000
"""

import argparse
import json
import string
from pathlib import Path

from discdiff.models import DiscDiffModel
from discdiff.processes import Absorbing
from examples.serving.completions import Answer, Served, load
from tasks.text.folder import Trained
from tasks.text.rows import layout_for
from tasks.text.settings import Network
from tasks.text.tokenizer import characters
from tasks.text.training import config_for


def tiny(sampler: str = "ancestral", length: int = 64) -> Served:
    """An untrained model of printable characters."""
    tokenizer, process = characters([string.printable]), Absorbing()
    layout = layout_for(tokenizer, length)
    config = config_for(layout, Network(hidden_size=32, num_layers=1, num_heads=2), process)
    return Served("tiny", Trained(DiscDiffModel.seeded(config, 0).eval(), layout, process), tokenizer, True, sampler)


if __name__ == "__main__":
    flags = argparse.ArgumentParser(prog="python -m examples.chat_server")
    flags.add_argument(
        "folder", nargs="?", type=Path, help="of tasks.text train or finetune, else a tiny untrained model"
    )
    flags.add_argument("--sampler", default="ancestral", help="a name of docs/samplers.md")
    flags.add_argument("--prompt", default="the ", help="what is completed where nothing is served")
    flags.add_argument("--serve", action="store_true", help="needs FastAPI and uvicorn: pip install discdiff[serve]")
    flags.add_argument("--port", type=int, default=8000)
    chosen = flags.parse_args()
    served = load(chosen.folder, chosen.sampler) if chosen.folder else tiny(chosen.sampler)
    if chosen.serve:
        import uvicorn

        from examples.serving.app import app

        uvicorn.run(app(served), host="127.0.0.1", port=chosen.port)
    else:
        for event in Answer(served, {"model": served.name, "prompt": chosen.prompt, "seed": 0}, chat=False).stream():
            print(json.dumps(event["discdiff"]["rows"][0], ensure_ascii=False))
        print(event["usage"])
