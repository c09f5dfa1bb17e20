"""One NNI trial of the students along the front."""

from trials.runner import run_stage

if __name__ == "__main__":
    run_stage("frontier")
