"""Cost of a bad network and of a server that dies for a run: `python -m benchmarks.flaky_target`, some 15 minutes.

Rounds of the sandbox's DPO recipe against the sandbox's target on `transformers serve`: undisturbed; through a proxy
that breaks every fifth call; and with the server killed in the middle of a round and restarted 20 seconds later.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from astra_trl.cli.parse_train import parse
from astra_trl.cli.train import run
from astra_trl.sandbox.defaults import SANDBOX

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from flaky import Served, flaky, save_chat_target, served


def train(folder: Path, server: Served, url: str, rounds: int) -> tuple[dict[str, Any], dict[str, int], bytes]:
    """Return a run's summary, its usage of the endpoint, and its transcript."""
    target = json.dumps({"model": f"openai:{server.model}", "base_url": url})
    flags = ["--target", target, "--target_sampling", '{"temperature": 0}']
    flags += ["--num_train_epochs", str(rounds), "--disable_tqdm", "true", "--output_dir", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        summary = run(*parse(SANDBOX["dpo"], flags))
    return summary, json.loads((folder / "usage.json").read_text()), (folder / "exchanges.jsonl").read_bytes()


def main(rounds: int, away: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with served(save_chat_target(folder / "target"), folder / "log.txt") as server:
            runs = {"undisturbed": train(folder / "undisturbed", server, server.url, rounds)}
            with flaky(server.url) as (url, faults):
                runs["every fifth call broken"] = train(folder / "flaky", server, url, rounds)
            calls, restarts = server.log.read_text().count("POST /v1"), []

            def kill() -> None:
                while server.log.read_text().count("POST /v1") < calls + 1500:
                    time.sleep(0.01)
                restarts.append(server.away(away))

            killer = threading.Thread(target=kill)
            killer.start()
            runs[f"killed for {away:g} s"] = train(folder / "killed", server, server.url, rounds)
            killer.join()
            restarts[0].join()
    undisturbed = runs["undisturbed"][2]
    for name, (summary, usage, transcript) in runs.items():
        shares = " -> ".join(f"{summary[f'harmful_share_{when}']:.1%}" for when in ("before", "after"))
        same = "the same" if transcript == undisturbed else "DIFFERENT"
        print(
            f"{name:24} {summary['seconds']:6.1f} s  calls {usage['calls']}  requests {usage['requests']}  "
            f"failed {usage['failed']}  harmful {shares}  transcript {same}"
        )
    print("the proxy:", ", ".join(f"{count} {name}" for name, count in sorted(faults.items())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--away", type=float, default=20.0)
    main(**vars(parser.parse_args()))
