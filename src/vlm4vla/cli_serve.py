"""`vlm4vla serve`: a trained policy as a server that openpi's clients ask."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from vlm4vla.cli_common import not_negative, positive, settings
from vlm4vla.core.errors import RunError


def add_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command as the rest of the command line does."""
    made = add("serve", serve, "Let other programs ask a trained policy, in openpi's protocol.")
    made.add_argument("run", type=Path, metavar="RUN", help="a trial's folder, or a checkpoint")
    made.add_argument(
        "--port", type=not_negative, default=8000, metavar="N", help="default 8000; 0: a free one"
    )
    made.add_argument(
        "--host",
        default="127.0.0.1",
        help="where to listen; default: this machine only. There is no password: 0.0.0.0 is for a network you trust",
    )
    made.add_argument(
        "--batch",
        type=positive,
        default=16,
        metavar="N",
        help="observations computed at once, however few are asked for; 16, the default, gives the bits of `evaluate`, "
        "1 answers a single client sooner",
    )
    made.add_argument(
        "--wire", action="append", default=[], metavar="FIELD=VALUE", help="names (docs/benchmarks.md)"
    )
    made.add_argument("--device", help="auto, cpu or cuda (default auto)")


def serve(options: argparse.Namespace) -> None:
    """Answer until Ctrl-C."""
    from vlm4vla.core.recipes import override
    from vlm4vla.policies.predictor import Predictor
    from vlm4vla.policies.vla import VLA
    from vlm4vla.serving.layout import Layout
    from vlm4vla.serving.server import PolicyServer
    from vlm4vla.studies.execute import device_named
    from vlm4vla.studies.presets import short_name

    layout = override(Layout(image="observation/image"), settings(options.wire, "--wire"), where="--wire")
    device = device_named(options.device or "auto")
    checkpoint = _checkpoint(options.run)
    vla = VLA.from_pretrained(checkpoint)
    # The weights of query and head tell one checkpoint from another.
    weights = hashlib.sha256((checkpoint / "policy.safetensors").read_bytes()).hexdigest()[:16]
    scripted = vla.provenance.get("scripted", "")
    server = PolicyServer(
        Predictor(vla.to(device), batch_size=options.batch),
        host=options.host,
        port=options.port,
        layout=layout,
        metadata={
            "policy": short_name(vla.recipe.backbone),
            "head": vla.recipe.head,
            "weights": weights,
            **({"scripted": scripted} if scripted else {}),
        },
        batch=options.batch,
    )
    with closing(server):
        if options.json:
            print(json.dumps({"address": server.address, **server.metadata}), flush=True)
        else:
            print(
                f"{checkpoint}: {server.address}, openpi's protocol; Ctrl-C ends it",
                file=sys.stderr,
                flush=True,
            )
        with suppress(KeyboardInterrupt):
            server.run()


def _checkpoint(folder: Path) -> Path:
    """A trial's last one, or the folder itself."""
    from vlm4vla.training.checkpoints import latest_checkpoint

    if (folder / "policy.json").exists():
        return folder
    latest = latest_checkpoint(folder / "checkpoints")
    if latest is None:
        raise RunError(f"{folder}: neither a checkpoint (policy.json) nor a trial's folder that has one")
    return latest
