"""Original packages (install.sh) as oracles: writers of checkpoints, and what tests of them share."""
