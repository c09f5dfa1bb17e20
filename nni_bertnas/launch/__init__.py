"""NNI experiments, their files, the line from a trial to NNI, and the process from which trials are forked."""
