"""One NNI trial of the block phase."""

from trials.runner import run_stage

if __name__ == "__main__":
    run_stage("block")
