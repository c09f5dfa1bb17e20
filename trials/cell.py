"""One NNI trial of the cell phase."""

from nni_bertnas.stages import cell
from trials.runner import run_trial

if __name__ == "__main__":
    run_trial("cell", {"block": int, "depth": int}, cell.run)
