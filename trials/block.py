"""One NNI trial of the block phase."""

from nni_bertnas.stages import block
from trials.runner import run_trial

if __name__ == "__main__":
    run_trial("block", {"block": int}, block.run)
