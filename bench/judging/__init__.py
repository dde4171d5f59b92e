"""From samples to verdicts: gate, replay, and the certificate of what a gate can see on a host."""
