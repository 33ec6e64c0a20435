"""What an experiment is and where it runs: configuration files, settings, runs' folders, and how failures are said."""
