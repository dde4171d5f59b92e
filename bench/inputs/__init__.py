"""What is measured: artifact, evaluation set, the session that runs it, the host that runs on."""
