"""Turn raw samples into verdicts: the gate, replay, and the certificate of a host's error rates."""
