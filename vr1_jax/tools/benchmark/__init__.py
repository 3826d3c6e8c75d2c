"""Speed, measured: inputs are built in and weights are random, so that a bare machine suffices."""
