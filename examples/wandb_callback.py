"""The same training loop with its FID in Weights & Biases: values by name, and so with their intervals, at the training's steps.

pip install wandb
WANDB_MODE=offline python examples/wandb_callback.py --project digits
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # in a checkout that is not installed

import fiducial
from examples.training_loop import train
from fiducial import UserError, user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="fiducial", help="as Weights & Biases calls it")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=200, help="steps between two evaluations")
    parser.add_argument("--count", type=int, default=500, help="images that are drawn for each")
    args = parser.parse_args()
    if find_spec("wandb") is None:
        raise UserError("Weights & Biases is not installed; pip install wandb brings it")
    import wandb

    if fiducial.environment_rank():  # rank 0 has the values, and logs them
        train(args.steps, args.every, args.count)
        return
    with wandb.init(project=args.project, config=vars(args)) as run:
        train(args.steps, args.every, args.count, log=lambda values, step: run.log(values, step=step))


if __name__ == "__main__":
    with user_errors():
        main()
