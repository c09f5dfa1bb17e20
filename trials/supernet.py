"""One NNI trial of the supernet phase."""

from trials.runner import run_stage

if __name__ == "__main__":
    run_stage("supernet")
