"""One NNI trial of the supernet phase."""

from nni_bertnas.stages import supernet
from trials.runner import run_trial

if __name__ == "__main__":
    run_trial("supernet", {"seed": int, "student": str}, supernet.run)
