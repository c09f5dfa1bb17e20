"""One NNI trial of the baselines beside the searched student."""

from trials.runner import run_stage

if __name__ == "__main__":
    run_stage("baselines")
