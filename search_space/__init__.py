"""Operations, the student, and the NNI model spaces. Imports nothing of nni_bertnas."""
