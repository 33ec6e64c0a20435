"""A page on this machine: hide faces by clicking, draw new ones, compare runs. Nothing that is shown to it is kept."""
